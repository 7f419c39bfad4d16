"""The life of a connection, against servers on loopback that behave and that do not."""

import asyncio
import base64
import contextlib
import gc
import hashlib
import resource
import struct
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from feeder import connection as connection_module
from feeder import link as link_module
from feeder.batch import OutOfRange, VenueError
from feeder.link import Link
from feeder.venues.base import Limits, Plan, Shared

LIMITS = Limits(
    streams_per_connection=10, messages_per_s=10, connects=1000, connects_window_s=1.0, lifetime_s=10.0,
    weight_per_minute=100, weight_header="X-Used", backoff_base_s=0.02, backoff_cap_s=0.05,
)  # fmt: skip

Handler = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


class Recorder:
    """An adapter that keeps what it is told."""

    def __init__(self) -> None:
        self.messages: list[bytes] = []
        self.lost = 0
        self.subscribed = True
        self.syncing = False
        self.closing = False
        self.took_over: Any = None

    def hello(self) -> list[bytes]:
        return [b"hello"]

    def receive(self, message: bytes, ts_recv_ns: int, out: Any) -> None:
        if message == b"bad":
            raise VenueError("message: bad, expected a good one")
        if message == b"big":
            raise OutOfRange("message: big, expected one that fits")
        self.messages.append(message)

    def settle(self, message: bytes, ts_recv_ns: int) -> bool:
        self.subscribed = self.subscribed or message == b"ack"
        return message == b"ack"

    def take_over(self, other: Any, now_ns: int, out: Any) -> None:
        self.took_over = other

    def disconnected(self, now_ns: int, out: Any) -> None:
        self.lost += 1

    def tick(self, now_ns: int, out: Any) -> None:
        pass


class FakeBatch:
    def __init__(self) -> None:
        self.requests: list[Any] = []
        self.messages: list[bytes] = []
        self.statuses: list[Any] = []


class Stage:
    """What a link needs around it, and the server it meets."""

    def __init__(self, port: int) -> None:
        self.batch = FakeBatch()
        self.ends_with_recording = False
        self.ending = False
        self.tap = None
        self.refused: Counter[int] = Counter()
        self.handed: list[tuple[Any, Any]] = []
        self.subscribe_at_once = True
        self.touches = 0
        self.adapters: list[Recorder] = []
        self.market = self
        self.limits = LIMITS
        self.shared = Shared()
        self.ws_url = f"ws://127.0.0.1:{port}"
        self.rest = None
        self.link = Link(self, self, Plan("/x", ("s",), ()))  # type: ignore[arg-type]

    def adapter(self, plan: Plan, shared: Shared) -> Recorder:
        self.adapters.append(Recorder())
        self.adapters[-1].subscribed = self.subscribe_at_once
        return self.adapters[-1]

    def next_number(self) -> int:
        return len(self.adapters)

    async def gate(self) -> None:
        pass

    def touched(self) -> None:
        self.touches += 1

    def fetch(self, link: Link, connection: Any, request: Any) -> None:
        raise AssertionError

    def handed_over(self, stay: Any, leave: Any, now_ns: int) -> None:
        self.handed.append((stay, leave))

    @property
    def heard(self) -> list[bytes]:
        return [message for adapter in self.adapters for message in adapter.messages]


async def shake_hands(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    request = await reader.readuntil(b"\r\n\r\n")
    key = next(
        line for line in request.split(b"\r\n") if line.lower().startswith(b"sec-websocket-key")
    ).split(b": ")[1]
    accept = base64.b64encode(hashlib.sha1(key + b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11").digest())
    writer.write(b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n")
    writer.write(b"Sec-WebSocket-Accept: " + accept + b"\r\n\r\n")


def frame(payload: bytes, *, opcode: int = 1, fin: bool = True) -> bytes:
    head = bytes((opcode | 0x80 * fin,))
    if len(payload) < 126:
        return head + bytes((len(payload),)) + payload
    return head + b"\x7f" + struct.pack(">Q", len(payload)) + payload


@contextlib.asynccontextmanager
async def served(handler: Handler) -> AsyncIterator[Stage]:
    """Run a link against a server whose every connection is `handler`'s."""

    async def safely(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            await handler(reader, writer)
        writer.close()

    server = await asyncio.start_server(safely, "127.0.0.1", 0)
    stage = Stage(server.sockets[0].getsockname()[1])
    running = asyncio.create_task(stage.link.run())
    try:
        yield stage
    finally:
        stage.ending = True
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        server.close()


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.005)


def test_it_subscribes_and_hands_on_whole_messages() -> None:
    hello: list[bytes] = []

    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await shake_hands(reader, writer)
        hello.append(await reader.readexactly(6 + 5))
        writer.write(
            frame(b"one") + frame(b"tw", fin=False) + frame(b"o", opcode=0) + frame(b"three", opcode=2)
        )
        await asyncio.sleep(10)

    async def main() -> None:
        async with served(handler) as stage:
            await until(lambda: len(stage.heard) == 3)
            assert stage.heard == [b"one", b"two", b"three"]
            assert (stage.link.connected, stage.link.n_messages, stage.link.reconnects) == (True, 3, 0)
            assert len(hello) == 1

    asyncio.run(main())


def test_a_handshake_says_who_asks_and_in_which_language() -> None:
    """A firewall in front of one venue is said to leave others without an answer."""
    asked: list[bytes] = []

    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        asked.append(await reader.readuntil(b"\r\n\r\n"))

    async def main() -> None:
        async with served(handler):
            await until(lambda: bool(asked))
        lines = asked[0].lower().split(b"\r\n")
        assert b"user-agent: tapecast" in lines
        assert b"accept-language: en" in lines

    asyncio.run(main())


def test_a_bad_message_costs_itself_alone() -> None:
    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await shake_hands(reader, writer)
        writer.write(frame(b"one") + frame(b"bad") * 2 + frame(b"big") + frame(b"two"))
        await asyncio.sleep(10)

    async def main() -> None:
        async with served(handler) as stage:
            await until(lambda: len(stage.heard) == 2)
            assert stage.shared.counters == {"bad_messages": 3, "encode_range": 1}

    asyncio.run(main())


def test_a_lost_link_is_told_to_its_adapter_and_a_new_one_begins() -> None:
    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await shake_hands(reader, writer)
        writer.write(frame(b"x"))
        await writer.drain()
        await asyncio.sleep(0.02)
        writer.transport.abort()

    async def main() -> None:
        async with served(handler) as stage:
            await until(lambda: stage.link.reconnects >= 2)
            assert [adapter.lost for adapter in stage.adapters[:2]] == [1, 1]

    asyncio.run(main())


@pytest.mark.parametrize("answer", [b"HTTP/1.1 503 Busy\r\n\r\n", b"garbage\r\n\r\n", b""])
def test_a_handshake_that_fails_is_counted_and_tried_again(answer: bytes) -> None:
    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(answer)
        await writer.drain()

    async def main() -> None:
        async with served(handler) as stage:
            await until(lambda: stage.shared.counters["connect_failures"] >= 2)
            assert not stage.link.connected

    asyncio.run(main())


def test_a_server_that_never_answers_the_handshake_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection_module, "CONNECT_DEADLINE_S", 0.1)

    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await asyncio.sleep(10)

    async def main() -> None:
        async with served(handler) as stage:
            await until(lambda: stage.shared.counters["connect_failures"] >= 2)

    asyncio.run(main())


def test_a_half_open_socket_is_noticed_and_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection_module, "IDLE_S", 0.1)
    monkeypatch.setattr(connection_module, "PONG_DEADLINE_S", 0.1)

    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await shake_hands(reader, writer)
        writer.write(frame(b"x"))
        await asyncio.sleep(10)  # neither data nor a pong, and the socket stays open

    async def main() -> None:
        async with served(handler) as stage:
            await until(lambda: stage.link.reconnects >= 1)
            assert stage.adapters[0].lost == 1

    asyncio.run(main())


def test_a_message_of_64_mib_is_refused_without_taking_the_memory() -> None:
    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await shake_hands(reader, writer)
        writer.write(frame(b"small") + b"\x81\x7f" + struct.pack(">Q", 64 * 2**20))
        for _ in range(64):
            writer.write(bytes(2**20))
            await writer.drain()

    async def main() -> None:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        async with served(handler) as stage:
            await until(lambda: stage.link.reconnects >= 2)
            assert b"small" in stage.heard
        grown_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
        assert grown_kib < 32 * 1024

    asyncio.run(main())


def test_fragments_without_end_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection_module, "MAX_MESSAGE_BYTES", 10_000)

    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await shake_hands(reader, writer)
        writer.write(frame(bytes(1000), fin=False))
        for _ in range(20):
            writer.write(frame(bytes(1000), opcode=0, fin=False))
        await asyncio.sleep(10)

    async def main() -> None:
        async with served(handler) as stage:
            await until(lambda: stage.link.reconnects >= 1)
            assert not stage.heard

    asyncio.run(main())


def test_the_end_of_a_recording_is_no_loss() -> None:
    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await shake_hands(reader, writer)
        writer.write(frame(b"last") + frame(struct.pack(">H", 1000), opcode=8))
        await asyncio.sleep(10)

    async def main() -> None:
        async with served(handler) as stage:
            stage.ends_with_recording = True
            await until(lambda: stage.link.ended and not stage.link.connected)
            assert stage.link.alive
            assert stage.heard == [b"last"]
            assert stage.adapters[-1].lost == 0

    asyncio.run(main())


def test_pausing_holds_the_venue_back() -> None:
    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await shake_hands(reader, writer)
        for number in range(200):
            writer.write(frame(b"%d" % number))
            await asyncio.sleep(0.001)
        await asyncio.sleep(10)

    async def main() -> None:
        async with served(handler) as stage:
            await until(lambda: len(stage.heard) > 5)
            stage.link.pause()
            await asyncio.sleep(0.02)
            held = len(stage.heard)
            await asyncio.sleep(0.1)
            assert len(stage.heard) == held
            stage.link.resume()
            await until(lambda: len(stage.heard) == 200)

    asyncio.run(main())


class Overlapping:
    """A venue whose connections all get the same numbered messages, from where the clock stands."""

    def __init__(self, *, acknowledges: bool = True) -> None:
        self.acknowledges = acknowledges
        self.next = 0
        self.connections = 0

    async def handler(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        await shake_hands(reader, writer)
        if self.acknowledges:
            writer.write(frame(b"ack"))
        sent = self.next
        while True:
            while sent < self.next:
                writer.write(frame(b"%d" % sent))
                sent += 1
            await writer.drain()
            await asyncio.sleep(0.001)

    async def tell(self, n: int) -> None:
        for _ in range(n):
            self.next += 1
            await asyncio.sleep(0.001)


def test_a_planned_hand_over_loses_nothing_and_keeps_what_overlaps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(link_module, "OVERLAP_S", 0.1)
    venue = Overlapping()

    async def main() -> None:
        async with served(venue.handler) as stage:
            stage.subscribe_at_once = False
            await until(lambda: stage.link.connected)
            await venue.tell(50)
            stage.link.replan(Plan("/x", ("s", "t"), ()))
            await venue.tell(300)
            await until(lambda: stage.link.renewals == 1)
            await venue.tell(50)
            old, new = stage.adapters
            await until(lambda: new.messages[-1:] == [b"399"])
            assert new.took_over is old
            assert (old.lost, new.lost, stage.link.reconnects) == (0, 0, 0)
            assert b"ack" not in new.messages
            before, after = (
                [int(one) for one in old.messages if one != b"ack"],
                [int(one) for one in new.messages],
            )
            assert before == list(range(before[-1] + 1))
            assert after == list(range(after[0], 400))
            assert after[0] <= before[-1]  # the overlap: by the venue's numbers an adapter drops it
            assert len(stage.handed) == 1
            assert venue.connections == 2

    asyncio.run(main())


def test_a_hand_over_that_fails_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(link_module, "READY_DEADLINE_S", 0.2)
    venue = Overlapping()

    async def main() -> None:
        async with served(venue.handler) as stage:
            stage.subscribe_at_once = False
            await until(lambda: stage.link.connected)
            venue.acknowledges = False
            stage.link.replan(Plan("/x", ("s", "t"), ()))
            await until(lambda: stage.shared.counters["renewal_failures"] == 1)
            await venue.tell(20)
            await until(lambda: stage.adapters[0].messages[-1] == b"19")
            assert (stage.adapters[0].lost, stage.link.renewals, stage.handed) == (0, 0, [])

    asyncio.run(main())


def test_a_connection_lost_amid_a_hand_over_is_replaced_by_the_one_that_is_ready(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(link_module, "OVERLAP_S", 30.0)
    venue = Overlapping()

    async def main() -> None:
        async with served(venue.handler) as stage:
            stage.subscribe_at_once = False
            await until(lambda: stage.link.connected)
            await venue.tell(20)
            stage.link.replan(Plan("/x", ("s", "t"), ()))
            await until(lambda: len(stage.adapters) == 2 and stage.adapters[1].subscribed)
            assert stage.link.connection is not None
            stage.link.connection._socket.underlying_transport.abort()
            await until(lambda: stage.link.renewals == 1)
            old, new = stage.adapters
            assert (old.lost, new.took_over, stage.link.reconnects) == (0, old, 0)

    asyncio.run(main())


@pytest.mark.parametrize("due", ["old", "closing"])
def test_an_old_connection_and_one_of_no_use_are_renewed(due: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(link_module, "OVERLAP_S", 0.01)
    venue = Overlapping()

    async def main() -> None:
        async with served(venue.handler) as stage:
            await until(lambda: stage.link.connected)
            stage.link.tick(0, 3600.0)
            await asyncio.sleep(0.05)
            assert stage.link.renewals == 0
            if due == "closing":
                stage.adapters[0].closing = True
            stage.link.tick(0, 0.01 if due == "old" else 3600.0)
            await until(lambda: stage.link.renewals == 1)

    asyncio.run(main())


def test_a_link_that_is_stopped_clears_its_books_and_a_retired_one_does_not() -> None:
    venue = Overlapping()

    async def main() -> None:
        for retire in (False, True):
            async with served(venue.handler) as stage:
                await until(lambda: stage.link.connected)
                if retire:
                    stage.link.retire()
                for task in asyncio.all_tasks() - {asyncio.current_task()}:
                    if "Link.run" in repr(task.get_coro()):
                        task.cancel()
                await until(lambda: not stage.link.connected)
                assert stage.adapters[0].lost == (0 if retire else 1)

    asyncio.run(main())


@pytest.mark.long
def test_a_thousand_drops_leave_one_connection_and_nothing_else() -> None:
    now_open = 0
    most = 0

    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal now_open, most
        await shake_hands(reader, writer)
        now_open += 1
        most = max(most, now_open)
        writer.write(frame(b"x" * 1000) * 20)
        await writer.drain()
        now_open -= 1
        writer.transport.abort()

    def held() -> tuple[int, int]:
        gc.collect()
        rss = next(
            int(line.split()[1])
            for line in Path("/proc/self/status").read_text().splitlines()
            if line.startswith("RssAnon")
        )
        return len(list(Path("/proc/self/fd").iterdir())), rss

    async def main() -> None:
        async with served(handler) as stage:
            for goal in (200, 1200):
                async with asyncio.timeout(120):
                    while stage.link.reconnects < goal:
                        await asyncio.sleep(0.01)
                del stage.adapters[:-1]
                measured.append(held())

    measured: list[tuple[int, int]] = []
    asyncio.run(main())
    (descriptors, rss), (descriptors_after, rss_after) = measured
    assert most == 1
    assert abs(descriptors_after - descriptors) <= 3
    assert rss_after - rss < 4 * 1024  # KiB
