import contextlib
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from keeper.answers import (
    LIVE,
    MAX_RANGES,
    MAX_TCP_FRAMES,
    MAX_UDP_FRAMES,
    UdpAnswers,
    lookup,
    read_datagram,
    tcp_answer,
    tcp_refusal,
)
from keeper.limits import Cookies
from keeper.store import Store
from keeper.tapes import LOOK_NS
from market_types.enums import NO_SEQ, Flag, MsgType
from udp_protocol.datagram import walk
from udp_protocol.frame import MAGIC, VERSION, FrameError, Header, pack_header
from udp_protocol.payloads import RANGE_ENTRY, decode, encode
from udp_protocol.retransmission import Status

HERE, AWAY = ("127.0.0.1", 5000), ("192.0.2.7", 5000)
NOW = 1_763_683_200_000_000_000
SESSION = 1_763_683_199


def request(
    channel: int, session: int, *ranges: tuple[int, int], cookie: int = 0, marks: int = 0, size: int = 130,
    msg_type: MsgType = MsgType.RETX_REQUEST,
) -> bytes:  # fmt: skip
    entries = np.array([(begin, n, 0) for begin, n in ranges], RANGE_ENTRY)
    given = (entries,) if msg_type == MsgType.RETX_REQUEST else ()
    payload, count = encode(msg_type, {"request_id": 77, "cookie": cookie}, *given)
    payload = payload.ljust(size - 66, b"\0")
    first = ranges[0][0] if ranges else 0
    header = Header(
        MAGIC, VERSION, msg_type, Flag.UNSEQ | marks, len(payload), max(first, 0), session, 0, 0, 0, channel,
        0, 0, NOW, NOW, NO_SEQ, count,
    )  # fmt: skip
    return pack_header(header) + payload


class Desk:
    """Answers over one store; time stands still unless told otherwise."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.cookies = Cookies(bytes(32))
        self.answers = UdpAnswers(store, self.cookies, 1360)
        self.ns = 0
        self.looks = 0

    def poll(self) -> None:
        self.looks += 1  # writers that sleep are looked at now and then
        while self.store.poll(time.monotonic_ns() + self.looks * LOOK_NS):
            pass

    def one(self, data: bytes) -> Header:
        """Return the header of an answer of one datagram."""
        self.ns += 20_000_000
        _, (datagram,) = self.answers.answer(data, HERE, NOW, self.ns)
        return walk(datagram, channel=None, answers=True)[0].header

    def ask(self, data: bytes, source: tuple[str, int] = HERE) -> tuple[Any, list[bytes]]:
        """Return root of the last answer, and the frames of all of them."""
        self.ns += 20_000_000
        status, datagrams = self.answers.answer(data, source, NOW, self.ns)
        frames: list[bytes] = []
        for number, datagram in enumerate(datagrams, start=1):
            assert len(datagram) <= 1360 - 24
            head, *rest = walk(datagram, channel=None, answers=True)
            root = decode(head.header, head.payload).root
            assert (root.status, root.request_id) == (status, 77)
            assert root.last == (number == len(datagrams))
            frames += [bytes(frame.raw) for frame in rest]
        return root, frames


@pytest.fixture
def desk(base: Path, feed: Callable[..., Any]) -> Any:
    """Return a desk over the tape of a session that goes on, and the feed."""
    store = Store(base)
    made = Desk(store)
    made.feed = feed().play(600)  # type: ignore[attr-defined]
    made.frames = made.feed.frames  # type: ignore[attr-defined]
    made.poll()
    yield made
    store.close()


def busiest(desk: Any) -> tuple[int, list[bytes]]:
    channel, frames = max(desk.frames.items(), key=lambda item: len(item[1]))
    assert len(frames) > 300
    return channel, frames


def test_every_frame_can_be_asked_for_and_is_what_was_sent(desk: Any) -> None:
    for channel, frames in desk.feed.frames.items():
        got: list[bytes] = []
        while len(got) < len(frames):
            n = min(MAX_UDP_FRAMES, len(frames) - len(got))
            root, more = desk.ask(request(channel, SESSION, (len(got) + 1, n)))
            assert (root.status, root.first_avail, root.last_avail) == (Status.OK, 1, len(frames))
            got += more
        assert got == frames


def test_ranges_are_answered_in_their_order(desk: Any) -> None:
    channel, frames = busiest(desk)
    root, got = desk.ask(request(channel, SESSION, (200, 3), (5, 2), (300, 1)))
    assert root.status == Status.OK
    assert got == [frames[n - 1] for n in (200, 201, 202, 5, 6, 300)]


def test_a_request_without_ranges_tells_what_is_held(desk: Any) -> None:
    channel, frames = busiest(desk)
    for session in (SESSION, 0):
        root, got = desk.ask(request(channel, session))
        assert (root.status, root.first_avail, root.last_avail, got) == (Status.OK, 1, len(frames), [])
    header = desk.one(request(channel, 0))
    assert (header.session_id, header.channel_seq, header.flags) == (SESSION, 0, Flag.UNSEQ)


def test_the_end_of_a_session_is_told(desk: Any, feed: Callable[..., Any]) -> None:
    channel, _ = busiest(desk)
    desk.feed.end()
    desk.poll()
    header = desk.one(request(channel, SESSION))
    assert header.flags == Flag.UNSEQ | Flag.END


def test_marks_tell_two_sessions_of_one_channel_apart(desk: Any, feed: Callable[..., Any]) -> None:
    channel, frames = busiest(desk)
    replay = feed("binance.replay", SESSION + 5, Flag.REPLAY).play(50)
    desk.poll()
    live, marked = (desk.one(request(channel, 0, marks=marks)) for marks in (0, Flag.REPLAY))
    assert [live.session_id, marked.session_id] == [SESSION, SESSION + 5]
    assert desk.ask(request(channel, SESSION + 5, (1, 1)))[1] == replay.frames[channel][:1]
    assert desk.ask(request(channel, SESSION, (1, 1)))[1] == frames[:1]


@pytest.mark.parametrize(
    ("ranges", "status"),
    [
        ([(1, MAX_UDP_FRAMES)], Status.OK),
        ([(1, MAX_UDP_FRAMES + 1)], Status.USE_TCP),
        ([(1, 200), (1, 57)], Status.USE_TCP),
        ([(1, LIVE)], Status.USE_TCP),
        ([(10**9, 300)], Status.USE_TCP),  # goes before AHEAD
        ([(10**9, 1)], Status.AHEAD),
        ([(2**63 - 1, 2)], Status.AHEAD),
        ([(1, 1)] * MAX_RANGES, Status.OK),
        ([(1, 1)] * (MAX_RANGES + 1), Status.BAD_REQUEST),
        ([(0, 1)], Status.BAD_REQUEST),
        ([(-5, 1)], Status.BAD_REQUEST),
        ([(1, 0)], Status.BAD_REQUEST),
    ],
)
def test_statuses(desk: Any, ranges: list[tuple[int, int]], status: Status) -> None:
    channel, _ = busiest(desk)
    root, got = desk.ask(request(channel, SESSION, *ranges, size=500))
    assert root.status == status
    assert len(got) == (sum(n for _, n in ranges) if status == Status.OK else 0)


def test_what_is_held_comes_with_ahead(desk: Any) -> None:
    channel, frames = busiest(desk)
    root, got = desk.ask(request(channel, SESSION, (len(frames) - 1, 5)))
    assert (root.status, got) == (Status.AHEAD, frames[-2:])


def test_unknown_sessions_channels_and_small_requests(desk: Any) -> None:
    channel, _ = busiest(desk)
    assert desk.ask(request(channel, SESSION - 1, (1, 1)))[0].status == Status.UNKNOWN
    assert desk.ask(request(60, SESSION, (1, 1)))[0].status == Status.UNKNOWN
    assert desk.ask(request(60, 0))[0].status == Status.UNKNOWN
    assert desk.ask(request(channel, 0, (1, 1)))[0].status == Status.BAD_REQUEST
    assert desk.ask(request(channel, SESSION, (1, 1), size=129))[0].status == Status.BAD_REQUEST


def test_damage_on_the_tape_is_out_of_range_and_goes_before_ahead(desk: Any) -> None:
    channel, frames = busiest(desk)
    path = next(
        p for p in sorted(desk.feed.publisher._folder.path.rglob("*.tape")) if frames[200] in p.read_bytes()
    )
    data = bytearray(path.read_bytes())
    data[data.index(frames[200]) + 70] ^= 1
    with path.open("r+b") as file:
        file.write(data)
    desk.store = Store(desk.store._base)
    desk.answers = UdpAnswers(desk.store, desk.cookies, 1360)
    desk.poll()
    root, got = desk.ask(request(channel, SESSION, (198, 8)))
    assert root.status == Status.OUT_OF_RANGE
    assert frames[200] not in got
    assert got == [frame for frame in frames[197:205] if frame in got]
    assert desk.ask(request(channel, SESSION, (201, 1), (10**6, 1)))[0].status == Status.OUT_OF_RANGE
    demanded = read_datagram(request(channel, SESSION, (1, len(frames))))
    held = lookup(desk.store, demanded)
    assert held is not None
    *_, last = tcp_answer(desk.store, demanded, held, NOW)
    assert (
        decode(walk(bytes(last[0]), channel=None)[0].header, last[0][66:]).root.status == Status.OUT_OF_RANGE
    )


def test_a_frame_too_long_to_be_sent_again_goes_by_tcp(desk: Any) -> None:
    channel, frames = busiest(desk)
    longest = max(range(len(frames)), key=lambda at: len(frames[at]))
    desk.answers = UdpAnswers(desk.store, desk.cookies, 106 + len(frames[longest]) + 23)
    status, datagrams = desk.answers.answer(request(channel, SESSION, (longest + 1, 1)), HERE, NOW, 10**12)
    assert (status, len(datagrams), len(datagrams[0])) == (Status.USE_TCP, 1, 106)


def test_off_loopback_a_cookie_comes_first_and_nothing_is_amplified(desk: Any) -> None:
    channel, frames = busiest(desk)
    for size in (90, 120, 130, 500):
        data = request(channel, SESSION, size=size)
        _, datagrams = desk.answers.answer(data, AWAY, NOW, 10**12)
        assert sum(map(len, datagrams)) <= size
    root, got = desk.ask(request(channel, SESSION, (1, 100)), AWAY)
    assert (root.status, got) == (Status.COOKIE, [])
    assert root.first_avail == root.last_avail == 0
    proven = request(channel, SESSION, (1, 100), cookie=root.cookie)
    root, got = desk.ask(proven, AWAY)
    assert (root.status, got) == (Status.OK, frames[:100])
    assert desk.ask(proven, ("192.0.2.8", 5000))[0].status == Status.COOKIE
    assert desk.ask(request(channel, SESSION, (1, 100), cookie=5), AWAY)[0].status == Status.COOKIE


def test_sources_without_a_cookie_are_not_remembered(desk: Any) -> None:
    channel, _ = busiest(desk)
    data = request(channel, SESSION, (1, 1))
    for port in range(1, 3000):
        desk.answers.answer(data, (AWAY[0], port), NOW, 0)
    assert len(desk.answers._sources) == 0


def test_requests_and_frames_have_rates(desk: Any) -> None:
    channel, _ = busiest(desk)
    cookie = desk.cookies.of(AWAY, NOW)
    ping = request(channel, SESSION, cookie=cookie)
    statuses = [desk.answers.answer(ping, AWAY, NOW, 0)[0] for _ in range(250)]
    assert statuses == [Status.OK] * 200 + [Status.RATE_LIMITED] * 50
    other = ("192.0.2.9", 1)
    many = request(channel, SESSION, (1, 200), cookie=desk.cookies.of(other, NOW))
    statuses = [desk.answers.answer(many, other, NOW, 0)[0] for _ in range(30)]
    assert statuses == [Status.OK] * 20 + [Status.RATE_LIMITED] * 10
    assert desk.answers.answer(many, other, NOW, 11_000_000)[0] == Status.OK


def test_by_tcp_an_answer_comes_in_pieces_and_is_complete(desk: Any) -> None:
    channel, frames = busiest(desk)
    demanded = read_datagram(request(channel, SESSION, (1, 300), (301, MAX_TCP_FRAMES - 300)))
    held = lookup(desk.store, demanded)
    assert held is not None
    assert tcp_refusal(desk.store, demanded, held) == Status.OK
    got: list[bytes] = []
    pieces = list(tcp_answer(desk.store, demanded, held, NOW))
    for number, (head, *rest) in enumerate(pieces, start=1):
        header = walk(head, channel=channel)[0].header
        root = decode(header, memoryview(head)[66:]).root
        assert (header.count, root.last, root.last_avail) == (len(rest), number == len(pieces), len(frames))
        got += [bytes(frame) for frame in rest]
    assert root.status == Status.AHEAD
    assert got == frames


@pytest.mark.parametrize(
    ("session", "ranges", "status"),
    [
        (SESSION, [(1, MAX_TCP_FRAMES + 1)], Status.BAD_REQUEST),
        (SESSION, [(0, LIVE)], Status.BAD_REQUEST),
        (SESSION - 1, [(1, 1)], Status.UNKNOWN),
        (SESSION, [(10**6, LIVE)], Status.AHEAD),
        (SESSION, [(1, LIVE)], Status.OK),
        (SESSION, [], Status.OK),
    ],
)
def test_refusals_by_tcp(desk: Any, session: int, ranges: list[tuple[int, int]], status: Status) -> None:
    channel, _ = busiest(desk)
    demanded = read_datagram(request(channel, session, *ranges))
    assert tcp_refusal(desk.store, demanded, lookup(desk.store, demanded)) == status


@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_mutated_requests_raise_nothing_but_frame_error(desk: Any, data: st.DataObject) -> None:
    channel, _ = busiest(desk)
    ranges = data.draw(
        st.lists(st.tuples(st.integers(-(2**63), 2**63 - 1), st.integers(0, LIVE)), max_size=18)
    )
    datagram = bytearray(request(channel, data.draw(st.sampled_from([0, 1, SESSION])), *ranges))
    for at, value in data.draw(st.lists(st.tuples(st.integers(0, 129), st.integers(0, 255)), max_size=4)):
        datagram[at] = value
    cut = data.draw(st.sampled_from([len(datagram)] * 3 + [0, 65, 66, 89, 90, 129]))
    source = data.draw(st.sampled_from([HERE, AWAY]))
    desk.ns += 10**9
    with contextlib.suppress(FrameError):
        _, datagrams = desk.answers.answer(bytes(datagram[:cut]), source, NOW, desk.ns)
        assert all(len(answer) <= 1336 for answer in datagrams)
        if source == AWAY:
            assert sum(map(len, datagrams)) <= cut


def test_state_requests_and_answers_are_no_requests_by_udp(desk: Any) -> None:
    channel, frames = busiest(desk)
    _, answer = desk.answers.answer(request(channel, SESSION, (1, 1)), HERE, NOW, 0)
    for data in (
        request(channel, SESSION, msg_type=MsgType.STATE_REQUEST), answer[0], frames[0], b"", b"ALERT|x\n",
    ):  # fmt: skip
        with pytest.raises(FrameError):
            desk.answers.answer(data, HERE, NOW, 0)


def test_while_the_archive_is_opened_nothing_is_told_to_be_gone(
    desk: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    channel, frames = busiest(desk)
    segments = desk.store._tape["binance", SESSION]
    del segments[: len(segments) // 2]
    gone = desk.ask(request(channel, SESSION))[0].first_avail
    assert 1 < gone < len(frames)
    asked = request(channel, SESSION, (1, 3))
    live = request(channel, SESSION, (1, LIVE))
    for opening, first, status in ((True, 1, Status.UNKNOWN), (False, gone, Status.OUT_OF_RANGE)):
        monkeypatch.setattr(Store, "opening", opening)
        root, got = desk.ask(asked)
        assert (root.status, root.first_avail, got) == (status, first, [])
        for data in (asked, live):
            demanded = read_datagram(data)
            refusal = tcp_refusal(desk.store, demanded, lookup(desk.store, demanded))
            assert refusal == (Status.UNKNOWN if opening else Status.OK)
        assert desk.ask(request(channel, SESSION, (len(frames), 1)))[1] == frames[-1:]
