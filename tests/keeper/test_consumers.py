"""Consumers of the real keeper in one process with it: late join from a tape, and answers that are lost."""

import os
import socket
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from keeper import connection as connection_module
from keeper import server_tcp
from keeper.main import Keeper
from keeper.settings import KeeperSettings
from market_types.enums import Flag
from market_types.venues import VENUES
from tapecast.folding import Folding
from tapecast.joining import Joining
from tapecast.wire import Wire
from udp_protocol.datagram import walk
from udp_protocol.frame import Frame
from udp_protocol.ordering import NS_PER_S, Item
from udp_protocol.receiver import Receiver
from udp_protocol.recovery import Recovery
from udp_protocol.recovery_client import RecoveryClient
from udp_protocol.retransmission import Status, parse_answer, request
from udp_protocol.settings import Archive as ArchiveSettings
from udp_protocol.settings import Multicast

SESSION = 1_763_683_199
HOST = "127.0.0.1"
PORTS = ("recovery_port_crypto", "recovery_port_stocks", "spin_crypto", "spin_stocks", "port_crypto")


@pytest.fixture
def wire(free_ports: Callable[[int], list[int]], tmp_path: Path) -> Multicast:
    ports = dict(zip(PORTS, free_ports(len(PORTS)), strict=True))
    return Multicast(**ports, archive=ArchiveSettings(dir=str(tmp_path / "archive"), max_bytes=256 * 2**20))


@pytest.fixture
def keeper(wire: Multicast, base: Path, tmp_path: Path) -> Iterator[Keeper]:
    with ExitStack() as stack:
        made = Keeper(wire, KeeperSettings(), base, tmp_path / "state", stack)
        made.begin()
        yield made


def follow(keeper: Keeper, feed: Any) -> None:
    """Have the keeper take in all that the feed published."""
    deadline = time.monotonic() + 60
    numbers = {channel: len(part) for channel, part in feed.frames.items()}
    while any(keeper._store.last_available(channel, SESSION) < n for channel, n in numbers.items()):
        keeper.turn(0.001)
        assert time.monotonic() < deadline


def state_books(feed: Any) -> None:
    """Publish a snapshot of every instrument, of which the recording has none."""
    now_ns, batch = time.time_ns(), feed.publisher.batch
    for instrument in feed._instruments.values():
        batch.l2(instrument, now_ns, now_ns, 1, b'[["0.1","5"]]', b'[["99","7"]]', snapshot=True)
    feed.publisher.publish(batch)


def books_of(books: Any) -> dict[int, Any]:
    return {symbol: (book.valid, book.bids_text(), book.asks_text()) for symbol, book in books.items()}


def test_a_tape_whose_beginning_is_gone_is_joined_late(
    keeper: Keeper, wire: Multicast, base: Path, feed: Callable[..., Any]
) -> None:
    made = feed(n_segments=4)
    state_books(made.play(100))
    for _ in range(12):  # the keeper must not be lapped
        made.play(100)
        follow(keeper, made)
    assert not list(base.rglob("*/0000000000000000000*1.tape")), "the first segment has to be gone"
    environ = os.environ | {"TAPECAST_SHM": str(base)}
    with Wire([VENUES["binance"]], wire, allow=Flag(0), via="tape", environ=environ) as tape:
        joining = Joining(tape, books=True)
        folding = Folding(joining)
        deadline = time.monotonic() + 60
        while not (joining.ready and len(folding.directory.instruments) == 5):
            made.play(2)
            made.publisher.beat(time.monotonic_ns())
            keeper.turn(0)
            folding.fold(tape.poll(0.0), time.time_ns())
            joining.step(time.monotonic_ns())
            assert time.monotonic() < deadline, (folding.troubles, tape.counters)
        follow(keeper, made)
        while items := tape.poll(0.0):
            folding.fold(items, time.time_ns())
        assert min(channel.first for channel in tape.channels.values() if channel.session) > 1
    oracle: dict[int, Any] = {}
    for state in keeper._states.by_writer()["binance"]:
        oracle |= books_of(state.books)
    assert books_of(folding.books) == oracle
    assert all(map(folding.valid, oracle))
    assert all(len(bids) > 10 for _, bids, _ in oracle.values())
    assert not folding.lost
    assert not folding.troubles


def small_client(port: int, n_bytes: int) -> socket.socket:
    client = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, n_bytes)
    client.setblocking(False)
    client.connect((HOST, port))
    return client


def drained(client: socket.socket) -> list[bytes]:
    found = []
    while True:
        try:
            found.append(client.recv(2048))
        except BlockingIOError:
            return found


def test_a_short_answer_is_the_kernel_s_doing_and_the_last_datagram_alone_says_last(
    keeper: Keeper, wire: Multicast, feed: Callable[..., Any]
) -> None:
    made = feed().play(2500)
    follow(keeper, made)
    channel, frames = max(made.frames.items(), key=lambda item: len(item[1]))
    asked = request(channel, SESSION, [(1, 256)], 1)
    whole, small = (small_client(wire.recovery_port_crypto, n) for n in (4 * 2**20, 8 * 1024))
    got = {}
    for client in (whole, small):
        client.send(asked)
        for _ in range(20):
            keeper.turn(0.001)
        got[client] = [walk(datagram, channel=channel, answers=True) for datagram in drained(client)]
        client.close()
    heads = [parse_answer(head) for head, *_ in got[whole]]
    assert [bytes(frame.raw) for _, *rest in got[whole] for frame in rest] == frames[:256]
    assert [head.last for head in heads] == [False] * (len(heads) - 1) + [True]
    assert {head.status for head in heads} == {Status.OK}
    assert 0 < len(got[small]) < len(got[whole]), "the small buffer has to overflow for this test"
    assert keeper.counters["udp_send_drop"] == 0  # what was dropped was dropped behind the keeper's back
    sent = [bytes(frame.raw) for _, *rest in got[small] for frame in rest]
    assert sent == frames[: len(sent)]


def test_a_receiver_asks_for_the_rest_of_a_short_answer_and_gives_nothing_up(
    keeper: Keeper, wire: Multicast, feed: Callable[..., Any]
) -> None:
    """Every answer is cut short by a receive buffer of 24 KiB, and yet all comes, by UDP alone."""
    made = feed().play(2500)
    follow(keeper, made)
    channel, frames = max(made.frames.items(), key=lambda item: len(item[1]))
    n = min(len(frames), 1500)
    receiver = Receiver([channel], 0)
    counters: Counter[str] = receiver.counters
    recovery = Recovery(counters)
    client = RecoveryClient(recovery, HOST, wire.recovery_port_crypto, counters)
    client._udp.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 12 * 1024)
    sequencer = receiver.channels[channel]
    recovery.adopt(sequencer)
    out: list[Item] = []
    begun_ns = time.monotonic_ns()
    sequencer.switch(SESSION, 1, begun_ns, out)
    sequencer._ordered = False
    sequencer.numbers.notice(n, begun_ns)
    out.clear()
    while sequencer.expected <= n:
        now_ns = time.monotonic_ns()
        keeper.turn(0)
        client.poll(now_ns, time.time_ns(), out)
        receiver.tick(now_ns, out)
        assert now_ns - begun_ns < 10 * NS_PER_S, (sequencer.expected, recovery.traffic)
    client.close()
    assert [bytes(item.raw) for item in out] == frames[:n]
    assert sequencer.lost == 0
    assert recovery.traffic["udp"] > -(-n // 256), "no answer was cut short"


def test_a_tcp_client_that_stalls_is_closed_and_comes_back_without_loss(
    keeper: Keeper, wire: Multicast, feed: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection_module, "STALLED_NS", NS_PER_S // 5)
    monkeypatch.setattr(server_tcp, "_SEND_BUFFER_BYTES", 4096)
    made = feed().play(200)
    follow(keeper, made)
    via = f"tcp://{HOST}:{wire.recovery_port_crypto}"
    items: list[Item] = []
    with Wire([VENUES["binance"]], wire, allow=Flag(0), via=via, environ={}) as tcp:
        source: Any = tcp._source
        deadline = time.monotonic() + 60
        while len(items) < 50:  # it joins late, and is up to date
            made.play(1)
            keeper.turn(0)
            items += tcp.poll(0)
            assert time.monotonic() < deadline
        made.play(3_000)
        while not keeper.counters["tcp_stalled"]:
            keeper.turn(0.001)
            assert time.monotonic() < deadline, keeper.counters
        firsts = {channel: sequencer.first for channel, sequencer in tcp.channels.items()}
        follow(keeper, made)
        numbers = {channel: len(part) for channel, part in made.frames.items()}
        while any(tcp.channels[channel].expected <= n for channel, n in numbers.items()):
            keeper.turn(0)
            items += tcp.poll(0)
            assert time.monotonic() < deadline, (tcp.counters, numbers)
        assert source._live.opened == 2
        assert not tcp.counters["frames_lost"]
    got: dict[int, list[bytes]] = {}
    for item in items:
        if isinstance(item, Frame):
            got.setdefault(item.header.channel_id, []).append(bytes(item.raw))
    wanted = {channel: part[firsts[channel] - 1 :] for channel, part in made.frames.items()}
    assert got == {channel: part for channel, part in wanted.items() if part}
