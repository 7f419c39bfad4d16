"""The state that the keeper folds and tells, against the books that a consumer folds from the same frames."""

import itertools
import json
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from keeper.archive_folder import ArchiveFolder
from keeper.state import SPIN_BEGIN, SPIN_END, ChannelState
from keeper.state_files import StateFiles
from keeper.state_loop import CYCLE_NS, StateLoop, packed, tell
from keeper.states import States
from keeper.store import Store
from keeper.tapes import LOOK_NS
from market_types.enums import ClearReason, Flag, MsgType
from matching_engine.books import L2Books
from recording.capture import open_capture
from recording.events import Received, Response
from udp_protocol.datagram import walk
from udp_protocol.frame import Frame, FrameError
from udp_protocol.payloads import decode

CAPTURE = "20210722_BINANCE_FUTURES.ws.1.0.gz"
FED = ("depthUpdate", "bookTicker", "aggTrade")
MAX_DATAGRAM = 1360
SPIN = Flag.UNSEQ | Flag.SNAP


def play(feed: Any, recordings: Path, n: int) -> None:
    """Publish the first n events of a recording that has snapshots."""
    batch = feed.publisher.batch
    for event in itertools.islice(open_capture([recordings / "binance_usdm" / CAPTURE]).events(), n):
        if isinstance(event, Received):
            message = json.loads(event.payload)["data"]
            if message["e"] in FED:
                feed._fill(message)
        elif isinstance(event, Response) and "depth?symbol=" in event.url:
            symbol = event.url.partition("symbol=")[2].partition("&")[0]
            book = json.loads(event.body)
            sides = json.dumps(book["bids"]).encode(), json.dumps(book["asks"]).encode()
            instrument = feed._instrument(symbol)
            batch.l2(instrument, 0, event.ts_recv_ns, book["lastUpdateId"], *sides, snapshot=True)
        feed.publisher.publish(batch)


def folded(frames: list[bytes]) -> tuple[L2Books, dict[int, int]]:
    """Return the books of a channel's frames, and the last inst_seq of each instrument."""
    books, last = L2Books(), {}
    for raw in frames:
        (frame,) = walk(raw, channel=None)
        books.apply(frame.header, frame.payload)
        if frame.header.symbol_id:
            last[frame.header.symbol_id] = frame.header.inst_seq
    return books, last


def state_of(frames: list[bytes]) -> ChannelState:
    (first,) = walk(frames[0], channel=None)
    state = ChannelState(first.header.channel_id, first.header.session_id, 0, Counter())
    for raw in frames:
        state.fold(memoryview(raw))
    return state


def told(state: ChannelState) -> list[Frame]:
    """Return the frames of a whole cycle."""
    frames = tell(state, state.symbols, 7, MAX_DATAGRAM, time.time_ns)
    found = []
    for datagram in packed(frames, MAX_DATAGRAM):
        assert datagram is not None
        assert len(datagram) <= MAX_DATAGRAM - 24
        found += walk(datagram, channel=state.channel)
    return found


def same_books(one: L2Books, other: L2Books) -> None:
    assert set(one) == set(other)
    for symbol_id, book in one.items():
        twin = other[symbol_id]
        assert (book.valid, book.venue_seq) == (twin.valid, twin.venue_seq)
        assert (book.bids_text(), book.asks_text()) == (twin.bids_text(), twin.asks_text())


@pytest.fixture(scope="session")
def kept() -> dict[str, dict[int, list[bytes]]]:
    return {}


@pytest.fixture
def channels(
    feed: Callable[..., Any], recordings: Path, kept: dict[str, dict[int, list[bytes]]]
) -> dict[int, list[bytes]]:
    """Return the frames by channel of a recording with books, of channels with instruments."""
    if not kept:
        made = feed()
        play(made, recordings, 4000)
        kept.update({"all": {c: f for c, f in made.frames.items() if len(f) > 10}})
    return kept["all"]


def test_a_book_told_is_the_book_of_the_frames_up_to_its_number(channels: dict[int, list[bytes]]) -> None:
    n_valid = 0
    for frames in channels.values():
        state = state_of(frames)
        oracle, last = folded(frames)
        mine = L2Books()
        for frame in told(state):
            header = frame.header
            assert header.flags & SPIN == SPIN
            assert header.channel_seq == state.asof == len(frames)
            assert header.inst_seq == last.get(header.symbol_id, 0)
            mine.apply(header, frame.payload)
        same_books(mine, oracle)
        n_valid += sum(book.valid for book in mine.values())
    assert n_valid


def test_a_cycle_has_marks_definitions_and_a_book_or_its_absence(channels: dict[int, list[bytes]]) -> None:
    for frames in channels.values():
        state = state_of(frames)
        spun = told(state)
        begin, end = (decode(spun[at].header, spun[at].payload).root for at in (0, -1))
        assert (begin.phase, end.phase, begin.cycle, end.cycle) == (SPIN_BEGIN, SPIN_END, 7, 7)
        assert begin.begin_asof == end.begin_asof == len(frames)
        assert begin.n_instruments == end.n_instruments == len(state)
        by_symbol: dict[int, list[int]] = {}
        for frame in spun[1:-1]:
            by_symbol.setdefault(frame.header.symbol_id, []).append(frame.header.msg_type)
        assert set(by_symbol) == set(state.symbols)
        for types in by_symbol.values():
            assert types[0] == MsgType.INSTRUMENT_DEF
            assert set(types[1:]) in ({MsgType.L2_SNAPSHOT}, {MsgType.BOOK_CLEAR})


def test_nothing_is_told_inside_an_event(channels: dict[int, list[bytes]]) -> None:
    frames = max(channels.values(), key=len)
    (first,) = walk(frames[0], channel=None)
    state = ChannelState(first.header.channel_id, first.header.session_id, 0, Counter())
    n_inside = 0
    for raw in frames:
        state.fold(memoryview(raw))
        header = walk(raw, channel=None)[0].header
        if header.symbol_id:
            inside = bool(header.flags & Flag.MORE)
            n_inside += inside
            assert (state.told(header.symbol_id, MAX_DATAGRAM, 0) is None) == inside
    assert n_inside > 5


def test_an_instrument_inside_an_event_waits_for_its_end(channels: dict[int, list[bytes]]) -> None:
    frames = max(channels.values(), key=len)
    at = next(at for at, raw in enumerate(frames) if walk(raw, channel=None)[0].header.flags & Flag.MORE)
    state = state_of(frames[: at + 1])
    spinning = tell(state, state.symbols, 1, MAX_DATAGRAM, time.time_ns)
    before = list(itertools.takewhile(lambda frame: frame is not None, spinning))
    while walk(frames[at], channel=None)[0].header.flags & Flag.MORE:
        at += 1
        state.fold(memoryview(frames[at]))
    after = [frame for frame in spinning if frame is not None]
    symbols = {walk(frame, channel=None)[0].header.symbol_id for frame in after} - {0}
    assert len(before) + len(after) >= 2 + 2 * len(state)
    assert symbols == {walk(frames[at], channel=None)[0].header.symbol_id}


def test_a_hole_makes_the_book_unknown_until_its_next_snapshot(channels: dict[int, list[bytes]]) -> None:
    for frames in channels.values():
        headers = [walk(raw, channel=None)[0].header for raw in frames]
        at = max(i for i, header in enumerate(headers) if header.symbol_id)
        symbol_id = headers[at].symbol_id
        own = [i for i, header in enumerate(headers) if header.symbol_id == symbol_id]
        if (
            not folded(frames)[0].get(symbol_id)
            or len(own) < 3
            or headers[own[-1]].msg_type == MsgType.L2_SNAPSHOT
        ):
            continue
        state = state_of([raw for i, raw in enumerate(frames) if i != own[-2]])
        clear = [
            decode(frame.header, frame.payload).root.reason
            for frame in told(state)
            if frame.header.msg_type == MsgType.BOOK_CLEAR and frame.header.symbol_id == symbol_id
        ]
        assert clear == [ClearReason.KEEPER_UNKNOWN]
        assert state.counters["inst_holes"] == 1


def test_a_clear_is_told_as_the_feeder_said_it(feed: Callable[..., Any], recordings: Path) -> None:
    made = feed()
    play(made, recordings, 300)
    instrument = next(iter(made._instruments.values()))
    made.publisher.batch.book_clear(instrument, 0, ClearReason.LINK_LOST, 4711)
    made.publisher.publish(made.publisher.batch)
    state = state_of(made.frames[instrument.channel])
    (clear,) = (
        frame for frame in told(state)
        if frame.header.msg_type == MsgType.BOOK_CLEAR and frame.header.symbol_id == instrument.symbol_id
    )  # fmt: skip
    root = decode(clear.header, clear.payload).root
    assert (root.reason, root.last_good_venue_seq) == (ClearReason.LINK_LOST, 4711)


class Kept:
    """States over a store, and a state loop that sends into a list."""

    def __init__(self, base: Path, folder: Path, archive: ArchiveFolder | None = None) -> None:
        self.store = Store(base, archive)
        self.states = States(self.store)
        self.files = StateFiles(folder)
        self.sent: list[tuple[int, bytes]] = []
        send = lambda channel, datagram: self.sent.append((channel, datagram))  # noqa: E731
        self.loop = StateLoop(self.states, lambda *_: True, send, self.files, MAX_DATAGRAM)
        self.now = time.monotonic_ns()
        for writer, restored in self.files.load(self.states.counters):
            self.states.restore(writer, restored)

    def poll(self) -> None:
        self.now += LOOK_NS
        while stretches := self.store.poll(self.now):
            for stretch in stretches:
                self.states.take(stretch)
        while self.states.catch_up():
            pass

    def cycle(self) -> list[Frame]:
        """Run one whole cycle and return its frames."""
        done, self.sent[:] = self.loop.cycles, []
        self.now += CYCLE_NS
        while self.loop.cycles == done:
            self.loop.step(self.now)
            self.now += 1_000_000
        return [frame for channel, datagram in self.sent for frame in walk(datagram, channel=channel)]

    def books(self) -> L2Books:
        books = L2Books()
        for frame in self.cycle():
            books.apply(frame.header, frame.payload)
        return books

    def close(self) -> None:
        self.store.close()
        self.files.close()


@pytest.fixture
def keep(base: Path, tmp_path: Path) -> Iterator[Callable[..., Kept]]:
    made: list[Kept] = []

    def make(archive: ArchiveFolder | None = None) -> Kept:
        made.append(Kept(base, tmp_path / "spin", archive))
        return made[-1]

    yield make
    for kept in made:
        kept.close()


def all_books(frames: dict[int, list[bytes]]) -> L2Books:
    return folded([raw for part in frames.values() for raw in part])[0]


def test_the_loop_tells_every_channel_and_saves_it(
    keep: Callable[..., Kept], feed: Callable[..., Any], recordings: Path
) -> None:
    made = feed()
    play(made, recordings, 2000)
    first = keep()
    first.poll()
    spun = first.cycle()
    marks = [(frame.header.channel_id, decode(frame.header, frame.payload).root.phase)
             for frame in spun if frame.header.msg_type == MsgType.SPIN_MARK]  # fmt: skip
    assert marks == [(channel, phase) for channel in range(2, 10) for phase in (1, 2)]
    same_books(first.books(), all_books(made.frames))
    first.close()
    assert first.files.counters == {"state_saved": 2}


def test_what_was_saved_is_taken_up_and_goes_on_from_the_tape(
    keep: Callable[..., Kept], feed: Callable[..., Any], recordings: Path
) -> None:
    made = feed()
    play(made, recordings, 1500)
    first = keep()
    first.poll()
    first.cycle()
    first.close()
    play(made, recordings, 700)  # the venue's numbers do not matter to the fold
    second = keep()
    assert second.states.counters["state_restored"] == 8
    before = {state.channel: state.asof for state in second.states._channels.values()}
    assert all(before[channel] < len(frames) for channel, frames in made.frames.items() if len(frames) > 100)
    second.poll()
    same_books(second.books(), all_books(made.frames))
    assert not second.states.counters["inst_holes"]


def test_a_damaged_file_is_told_and_the_state_folded_anew(
    keep: Callable[..., Kept], feed: Callable[..., Any], recordings: Path, tmp_path: Path
) -> None:
    made = feed()
    play(made, recordings, 500)
    first = keep()
    first.poll()
    first.cycle()
    first.close()
    (path,) = (tmp_path / "spin").glob("*.tape")
    whole = path.read_bytes()
    for data in (whole[:-20], whole[:40], b"", whole[:200] + bytes([whole[200] ^ 1]) + whole[201:]):
        path.write_bytes(data)
        again = keep()
        assert again.files.counters["state_damaged"] == 1
        again.poll()
        same_books(again.books(), all_books(made.frames))
        again.close()
        path.write_bytes(whole)


def test_a_new_session_begins_from_nothing(
    keep: Callable[..., Kept], feed: Callable[..., Any], recordings: Path
) -> None:
    made = feed()
    play(made, recordings, 600)
    kept = keep()
    kept.poll()
    made.end(planned=False)
    later = feed(session=made.publisher.session_id + 1)
    play(later, recordings, 200)
    kept.poll()
    assert {frame.header.session_id for frame in kept.cycle()} == {later.publisher.session_id}
    same_books(kept.books(), all_books(later.frames))
    assert kept.states.find(2, made.publisher.session_id, 0) is None
    assert kept.states.find(2, later.publisher.session_id, 0) is kept.states.find(2, 0, 0)


def test_a_writer_that_is_gone_for_a_minute_is_not_told_any_more(
    base: Path, keep: Callable[..., Kept], feed: Callable[..., Any], recordings: Path
) -> None:
    play(feed(), recordings, 200)
    kept = keep()
    kept.loop._alive = lambda *_: False
    kept.poll()
    assert kept.cycle()
    assert kept.cycle()
    kept.now += 60_000_000_000
    assert not kept.cycle()
    kept.loop._alive = lambda *_: True
    assert kept.cycle()


def test_a_cycle_is_paced(keep: Callable[..., Kept], feed: Callable[..., Any], recordings: Path) -> None:
    play(feed(), recordings, 1500)
    kept = keep()
    kept.poll()
    begun = kept.now + CYCLE_NS
    n_bytes = sum(len(frame.raw) for frame in kept.cycle())
    took_ns = kept.now - begun
    assert n_bytes * 8 / 20e6 - 0.05 < took_ns / 1e9 < n_bytes * 8 / 20e6 + 0.1


def test_statistics_are_told_by_their_newest_value(channels: dict[int, list[bytes]]) -> None:
    import numpy as np

    from udp_protocol.frame import pack_header
    from udp_protocol.payloads import STATS_ENTRY, encode

    frames = max(channels.values(), key=len)
    state = state_of(frames)
    symbol_id = state.symbols[0]
    header = next(
        frame.header for raw in reversed(frames) for frame in walk(raw, channel=None)
        if frame.header.symbol_id == symbol_id
    )  # fmt: skip
    for number, entries in enumerate(
        [[(1, -2, 0, 0, 5, 6), (3, -8, 0, 0, 7, 8)], [(1, -2, 0, 0, 9, 10)]], start=1
    ):
        payload, count = encode(MsgType.STATS, {}, np.array(entries, STATS_ENTRY))
        following = header._replace(
            msg_type=MsgType.STATS, payload_len=len(payload), count=count, flags=0,
            channel_seq=len(frames) + number, inst_seq=header.inst_seq + number,
        )  # fmt: skip
        state.fold(memoryview(pack_header(following) + payload))
    (stats,) = (frame for frame in told(state) if frame.header.msg_type == MsgType.STATS)
    assert decode(stats.header, stats.payload).entries.tolist() == [(1, -2, 0, 0, 9, 10), (3, -8, 0, 0, 7, 8)]
    broken = pack_header(following._replace(
        payload_len=3, channel_seq=following.channel_seq + 1, inst_seq=following.inst_seq + 1
    )) + b"\0\0\0"  # fmt: skip
    state.fold(memoryview(broken))
    assert state.counters == {"bad_payload": 1}


def test_a_cycle_of_another_session_is_refused(channels: dict[int, list[bytes]]) -> None:
    state = state_of(next(iter(channels.values())))
    saved = [(frame.header, bytes(frame.payload)) for frame in told(state)]
    with pytest.raises(FrameError, match="session"):
        ChannelState(state.channel, state.session + 1, 0, Counter()).restore(saved)
