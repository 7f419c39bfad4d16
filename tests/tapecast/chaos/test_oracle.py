"""The oracle agrees with the project's own books, and no false step before the judge goes unseen."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from matching_engine.books import L2Books
from tapecast.chaos.judge import Judge, Verdict
from tapecast.chaos.oracle import INVALID, Oracle, fingerprint
from udp_protocol.datagram import walk
from udp_protocol.frame import Frame
from udp_protocol.ordering import Item, Lost

CHANNEL = 3


@pytest.fixture(scope="session")
def oracle(tape: tuple[Path, Oracle]) -> Oracle:
    return tape[1]


@pytest.fixture(scope="session")
def session(oracle: Oracle) -> int:
    ((session, *_),) = {(session,) for _, session in oracle.logs}
    return int(session)


@pytest.fixture(scope="session")
def frames(oracle: Oracle, session: int) -> list[Frame]:
    log = oracle.logs[CHANNEL, session]
    raw = [log.frame(number) for number in range(log.first, log.last + 1)]
    return [frame for data in raw if data is not None for frame in walk(bytes(data), channel=CHANNEL)]


def test_books_are_the_matching_engines_at_every_number(oracle: Oracle, session: int) -> None:
    n_compared = 0
    for (channel, _), log in oracle.logs.items():
        books = L2Books()
        for number in range(log.first, log.last + 1):
            raw = log.frame(number)
            assert raw is not None
            (frame,) = walk(raw, channel=channel)
            changed = books.apply(frame.header, frame.payload)
            if changed is not None and number % 10 == 0:
                symbol_id = frame.header.symbol_id
                assert fingerprint(changed) == oracle.books.at(session, symbol_id, number)
                n_compared += changed.valid
        for symbol_id, book in books.items():
            assert fingerprint(book) == oracle.books.at(session, symbol_id, log.last)
            assert oracle.books.at(session, symbol_id, 0) == INVALID
    assert n_compared > 300


def judged(oracle: Oracle, items: list[Item], **options: object) -> Verdict:
    judge = Judge()
    for item in items:
        judge.take(item)
    return judge.close(oracle, **options)  # type: ignore[arg-type]


def test_all_frames_in_order_hold(oracle: Oracle, session: int, frames: list[Frame]) -> None:
    verdict = judged(oracle, list(frames), firsts={(CHANNEL, session): 1})
    assert verdict.complete
    assert verdict.delivered == len(frames)


def _without(items: list[Item], session: int) -> list[Item]:
    return items[:100] + items[103:]


def _lost(items: list[Item], session: int) -> list[Item]:
    return [*items[:100], Lost(CHANNEL, session, 101, 103), *items[103:]]


def _twice(items: list[Item], session: int) -> list[Item]:
    return [*items[:100], items[99], *items[100:]]


def _swapped(items: list[Item], session: int) -> list[Item]:
    return [*items[:100], items[101], items[100], *items[102:]]


def _changed(items: list[Item], session: int) -> list[Item]:
    frame = items[100]
    assert isinstance(frame, Frame)
    raw = bytearray(frame.raw)
    raw[-1] ^= 1
    return [*items[:100], *walk(bytes(raw), channel=CHANNEL), *items[101:]]


def _unknown(items: list[Item], session: int) -> list[Item]:
    frame = items[-1]
    assert isinstance(frame, Frame)
    header = frame.header._replace(channel_seq=frame.header.channel_seq + 1)
    return [*items, frame._replace(header=header)]


def _cut_off(items: list[Item], session: int) -> list[Item]:
    return items[:-5]


def _late(items: list[Item], session: int) -> list[Item]:
    return items[5:]


def _lost_twice(items: list[Item], session: int) -> list[Item]:
    return [*items[:103], Lost(CHANNEL, session, 101, 103), *items[103:]]


@pytest.mark.parametrize(
    ("change", "field", "number"),
    [
        (_without, "unbalanced", 1),
        (_twice, "repeated", 1),
        (_swapped, "repeated", 1),
        (_changed, "changed", 1),
        (_unknown, "unknown", 1),
        (_cut_off, "missing", 5),
        (_late, "missing", 5),
        (_lost_twice, "repeated", 1),
    ],
)
def test_no_false_step_goes_unseen(
    change: Callable[[list[Item], int], list[Item]], field: str, number: int, oracle: Oracle, session: int,
    frames: list[Frame],
) -> None:  # fmt: skip
    verdict = judged(oracle, change(list(frames), session), firsts={(CHANNEL, session): 1})
    assert not verdict.held
    assert getattr(verdict, field) == number


def test_a_loss_that_was_reported_holds_but_is_not_complete(
    oracle: Oracle, session: int, frames: list[Frame]
) -> None:
    verdict = judged(oracle, _lost(list(frames), session))
    assert verdict.held
    assert not verdict.complete
    assert (verdict.delivered, verdict.lost) == (len(frames) - 3, 3)


def _copies(tape: Path, folder: Path, change: Callable[[bytearray], None]) -> Iterator[Path]:
    for path in sorted(tape.rglob("*.tape")):
        data = bytearray(path.read_bytes())
        change(data)
        copy = folder / tape.name / path.parent.name / path.name
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_bytes(data)
        yield folder / tape.name


def test_a_number_used_twice_is_seen_and_an_archive_of_the_same_is_not(
    tape: tuple[Path, Oracle], tmp_path: Path
) -> None:
    import zlib

    folder, oracle = tape
    (same, *_) = _copies(folder, tmp_path / "archive", lambda data: None)
    assert Oracle([folder, same]).frames() == oracle.frames()

    def change(data: bytearray) -> None:
        length = int.from_bytes(data[64:68], "little")
        data[72 + length - 1] ^= 1
        data[68:72] = zlib.crc32(data[72 : 72 + length]).to_bytes(4, "little")

    (other, *_) = _copies(folder, tmp_path / "other", change)
    with pytest.raises(AssertionError, match="was used twice"):
        Oracle([folder, other])
