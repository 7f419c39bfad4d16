"""Upbit and Bithumb as a feeder meets them: an adapter at a desk, or a whole fleet before their stand-ins."""

import ast
import asyncio
import contextlib
import copy
import gzip
import json
import lzma
import math
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from decimal import Decimal
from pathlib import Path
from typing import Any

import msgspec
import pytest
import uvloop

from feeder.fleet import Feed, Fleet
from feeder.markets import markets_of, speaking
from feeder.quality import Quality
from feeder.quality_settings import QualitySettings
from feeder.rest import Rest
from feeder.roster import Roster
from feeder.selection import Choice
from feeder.settings import VenueSettings
from feeder.venues.base import Plan, Shared
from market_types.enums import Flag, MarketKind, MsgType
from market_types.instruments import Instrument
from market_types.registry import SymbolRegistry
from market_types.venues import VENUES
from matching_engine.books import L2Books
from recording import open_capture
from replay.faults import read_faults
from replay.server import Server
from replay.stand_ins import stand_in_of
from udp_protocol.payloads import decode

Side = list[tuple[Decimal, Decimal]]
S = 1_000_000_000


def raw_messages(path: Path) -> list[bytes]:
    """Return the received messages of a file, read without the project's readers."""
    openers: dict[str, Callable[..., Any]] = {".gz": gzip.open, ".xz": lzma.open}
    with openers.get(path.suffix, open)(path, "rb") as file:
        lines = file.read().splitlines()
    messages = []
    for line in lines:
        if line.startswith(b"{"):
            messages.append(line)
        elif line[:1].isdigit():
            text = line.partition(b": ")[2]
            messages.append(ast.literal_eval(text.decode()) if text.startswith(b"b") else text)
    return messages


def slow_book(said: dict[str, Any]) -> tuple[Side, Side]:
    """Return bids and asks of a whole book, best first, from JSON read with Decimal numbers."""
    units = said.get("obu") or said["orderbook_units"]
    sides = []
    for names, best in (
        (("bp", "bid_price", "bs", "bid_size"), -1),
        (("ap", "ask_price", "as", "ask_size"), 1),
    ):
        levels = [
            (Decimal(unit.get(names[0], unit.get(names[1]))), Decimal(unit.get(names[2], unit.get(names[3]))))
            for unit in units
        ]
        kept = {price: qty for price, qty in levels if price and qty}
        sides.append(sorted(kept.items(), key=lambda level: best * level[0]))
    return sides[0], sides[1]


class Reader:
    """Publishes a batch as the feeder does, and keeps what a subscriber sees."""

    def __init__(self, make_desk: Callable[..., Any]) -> None:
        self.desk = make_desk([], segment_bytes=2**22)
        self.counters: Counter[str] = Counter()
        self.quality = Quality(
            QualitySettings(), self.counters, self.desk.batch.alert, live=False, speed_one=False
        )
        self.books = L2Books()
        self.instruments: dict[int, Instrument] = {}
        self.seen: list[tuple[str, Any, Any, dict[str, Any]]] = []  # symbol, header, root, entry

    def define(self, instruments: Sequence[Instrument]) -> None:
        for instrument in instruments:
            writer = self.desk.state[0]
            writer["venue_id"] = instrument.venue.venue_id
            writer["channel_of"][instrument.number] = instrument.channel
            writer["kind_of"][instrument.number] = instrument.kind
            self.quality.define(instrument)
            self.instruments[instrument.symbol_id] = instrument

    def publish(self) -> list[tuple[str, Any, Any, dict[str, Any]]]:
        """Publish the batch; return what came out, one tuple an entry."""
        batch = self.desk.batch
        self.quality.inspect(batch)
        self.desk.publish()
        frames = self.desk.frames
        self.desk.datagrams.clear()
        new = []
        for frame in frames:
            self.books.apply(frame.header, frame.payload)
            payload = decode(frame.header, frame.payload)
            symbol = self.instruments[frame.header.symbol_id].symbol
            names = payload.entries.dtype.names or () if len(payload.entries) else ()
            rows = [{name: row[name] for name in names} for row in payload.entries] or [{}]
            new += [(symbol, frame.header, payload.root, row) for row in rows]
        self.seen += new
        return new

    def levels(self, symbol: str) -> tuple[Side, Side]:
        book = self.book(symbol)
        return tuple(  # type: ignore[return-value]
            [(Decimal(px), Decimal(qty)) for px, qty in side] for side in (book.bids_text(), book.asks_text())
        )

    def book(self, symbol: str) -> Any:
        (number,) = (known.symbol_id for known in self.instruments.values() if known.symbol == symbol)
        return self.books[number]

    def trades(self, symbol: str | None = None) -> list[dict[str, Any]]:
        """Return the trades published: symbol, id, times, price, qty, aggressor, whether by REST."""
        return [
            {
                "symbol": of,
                "id": int(row["trade_id"]),
                "ts": header.ts_event_ns,
                "price": Decimal(int(row["price"])).scaleb(root.px_exp),
                "qty": Decimal(int(row["qty"])).scaleb(root.qty_exp),
                "aggressor": int(row["aggressor"]),
                "backfill": bool(header.flags & Flag.BACKFILL),
            }
            for of, header, root, row in self.seen
            if header.msg_type == MsgType.TRADE and symbol in (None, of)
        ]

    def kinds(self) -> Counter[MsgType]:
        """Return how many entries of each type were published."""
        return Counter(MsgType(header.msg_type) for _, header, _, _ in self.seen)

    def of(self, kind: MsgType) -> list[tuple[str, Any, Any, dict[str, Any]]]:
        return [entry for entry in self.seen if entry[1].msg_type == kind]


class Rig:
    """An adapter at a desk. now_ns rises by a millisecond a message."""

    def __init__(
        self, make_desk: Callable[..., Any], venue: str, streams: Sequence[str], protocol: str = "v1"
    ) -> None:
        self.market = speaking(markets_of(venue)[""], protocol)
        codes = list(dict.fromkeys(stream.partition(":")[2].partition(".")[0] for stream in streams))
        self.instruments = [
            Instrument(
                venue=VENUES[venue], symbol_id=(VENUES[venue].venue_id << 20) + number,
                channel=VENUES[venue].first_channel, kind=MarketKind.SPOT, symbol=code, name=code, base="",
                quote="", settle="", px_exp=-8, qty_exp=-8, tick_size=1, lot_size=1, min_qty=1,
            )
            for number, code in enumerate(codes, 1)
        ]  # fmt: skip
        self.reader = Reader(make_desk)
        self.reader.define(self.instruments)
        self.shared = Shared()
        self.plan = Plan("/websocket/v1", tuple(streams), tuple(self.instruments))
        self.batch = self.reader.desk.batch
        self.now_ns = 1_700_000_000 * S
        self.adapter: Any = self.connect()

    def connect(self) -> Any:
        """Return an adapter for another connection of the plan, its greeting said."""
        adapter = self.market.adapter(self.plan, self.shared)
        adapter.hello()
        return adapter

    def hear(self, message: bytes | dict[str, Any] | str) -> list[tuple[str, Any, Any, dict[str, Any]]]:
        self.now_ns += 1_000_000
        if isinstance(message, dict):
            message = json.dumps(message)
        self.adapter.receive(
            message if isinstance(message, bytes) else message.encode(), self.now_ns, self.batch
        )
        return self.reader.publish()

    def wait(self, seconds: float) -> None:
        """Let time pass, with a tick a second."""
        end_ns = self.now_ns + int(seconds * S)
        while self.now_ns < end_ns:
            self.now_ns = min(self.now_ns + S, end_ns)
            self.adapter.tick(self.now_ns, self.batch)
        self.reader.publish()

    def said(self) -> list[bytes]:
        messages: list[bytes] = self.batch.messages
        self.batch.messages = []
        return messages

    def requests(self) -> list[Any]:
        requests: list[Any] = self.batch.requests
        self.batch.requests = []
        return requests

    def alerts(self) -> list[str]:
        alerts, self.batch.alerts = self.batch.alerts, []
        return [f"{keyword} {field}" for _, keyword, field in alerts]


class Live(Fleet):
    """A fleet before a stand-in, in one loop; it publishes at a desk."""

    def __init__(self, reader: Reader, server: Server, feed: Feed) -> None:
        super().__init__(reader.desk.batch)
        self.reader = reader
        self.server = server
        self.feed = feed
        self.alerts: list[str] = []

    def define(self, instruments: Sequence[Instrument]) -> None:
        self.instruments.update({instrument.number: instrument for instrument in instruments})
        self.reader.define(instruments)

    def touched(self) -> None:
        self.reader.publish()

    def handed_over(self, stay: Sequence[Instrument], leave: Sequence[Instrument], now_ns: int) -> None:
        self.reader.publish()

    def second(self, now_ns: int) -> None:
        """Do what is due each second, at a time of the test's own."""
        self.tick(now_ns)
        self.reader.publish()
        self.alerts += [f"{keyword} {field}" for _, keyword, field in self.batch.alerts]
        self.batch.alerts.clear()

    async def until(self, condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(50):
            while not condition():
                self.check()
                await asyncio.sleep(0.005)


class Kit:
    """What tests of the two venues are made from."""

    raw_messages = staticmethod(raw_messages)
    slow_book = staticmethod(slow_book)

    def __init__(self, recordings: Path, make_desk: Callable[..., Any]) -> None:
        self.recordings = recordings
        self.make_desk = make_desk

    def rig(self, venue: str, streams: Sequence[str], protocol: str = "v1") -> Rig:
        return Rig(self.make_desk, venue, streams, protocol)

    def rig_of(self, path: Path) -> Rig:
        """Return a rig that carries what was recorded."""
        standin = stand_in_of(open_capture([path]))
        return self.rig(standin.venue, standin.streams, standin.protocol)

    def samples(self, venue: str) -> Iterator[bytes]:
        for path in sorted((self.recordings / venue).glob("samples_*.jsonl")):
            yield from path.read_bytes().splitlines()

    def run(
        self, scenario: Callable[[Live], Awaitable[None]], path: Path, folder: Path, *, faults: str = "",
        alias: int = 0, speed: float = math.inf, **settings: Any,
    ) -> None:  # fmt: skip
        """Run a scenario with a fleet whose links are connected, and the clock of its stand-in held."""

        async def main() -> None:
            async with asyncio.timeout(60), self._live(path, folder, faults, alias, speed, settings) as live:
                await scenario(live)
                live.check()

        uvloop.run(main())

    @contextlib.asynccontextmanager
    async def _live(
        self, path: Path, folder: Path, faults: str, alias: int, speed: float, settings: dict[str, Any]
    ) -> AsyncIterator[Live]:
        file = None
        if faults:
            (folder / "faults.toml").write_text(faults)
            file = read_faults(folder / "faults.toml")
        standin = stand_in_of(open_capture([path]), alias, 0)
        server = Server(standin, speed, file, 0, marked=alias == 0, hold=True)
        await server.open()
        ready = server.ready()
        market: Any = copy.copy(speaking(markets_of(standin.venue)[""], standin.protocol))
        market.limits = msgspec.structs.replace(market.limits, backoff_base_s=0.02, backoff_cap_s=0.05)
        shared = Shared()
        settings = {"symbols_per_connection": 50, **settings}
        chosen = VenueSettings(symbols=("*",), ws_url="ws://x", rest_url="http://x", n_channels=1, **settings)
        async with Rest(str(ready["rest"]), market.limits, shared.counters) as rest:
            feed = Feed(market, rest, str(ready["ws"]), shared)
            live = Live(Reader(self.make_desk), server, feed)
            registry = SymbolRegistry(folder / "symbols", VENUES[standin.venue])
            roster = Roster(live, live, feed, Choice(chosen, ("*",)), registry, list(standin.streams))
            playing = asyncio.create_task(server.play())
            try:
                await roster.begin()
                live.roster = roster  # type: ignore[attr-defined]
                live.playing = playing  # type: ignore[attr-defined]
                yield live
            finally:
                await live.stop()
                playing.cancel()
                await server.close()


@pytest.fixture(scope="session")
def kit(recordings: Path, make_desk: Callable[..., Any]) -> Kit:
    """Return recordings, rigs and fleets."""
    return Kit(recordings, make_desk)
