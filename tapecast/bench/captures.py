"""The recordings that benchmarks play: their messages, and what a venue's REST would say about them."""

import asyncio
import os
from collections import Counter
from collections.abc import Collection, Mapping
from functools import cached_property
from pathlib import Path
from urllib.parse import parse_qsl, urlsplit

import msgspec

from feeder.settings import Market as Endpoints
from feeder.settings import VenueSettings
from feeder.venues.base import Plan
from feeder.venues.binance import MARKETS
from market_types.instruments import Instrument
from market_types.venues import VENUES, partition
from recording.capture import open_capture
from recording.events import Received
from replay.stand_ins import stand_in_of
from replay.venue import StandIn
from tapecast.bench.figures import BenchError, Skipped
from tapecast.captures import folders
from tapecast.errors import UsageError

VENUE = "binance"
#: a fast market of one symbol, with single trades, by market of the venue
FAST = {
    "usdm": "binance_usdm/hftb_btcusdt_20240808.jsonl.gz",
    "spot": "binance_spot/hftb_btcusdt_20240808.jsonl.gz",
    "coinm": "binance_coinm/hftb_btcusd_perp_20240808.jsonl.gz",
}
#: half a minute of several symbols, for what need not be a figure
SMALL = {
    "usdm": "binance_usdm/20210722_BINANCE_FUTURES.ws.1.0.gz",
    "spot": "binance_spot/20210814_BINANCE.ws.1.0.gz",
    "coinm": "binance_coinm/20210722_BINANCE_DELIVERY.ws.1.0.gz",
}
#: the most merged trades
MERGED = {
    "usdm": "binance_usdm/20210405_BINANCE_FUTURES-1125a2.0.gz",
    "spot": "binance_spot/20210405_BINANCE-b38f7c.0.gz",
    "coinm": "binance_coinm/20210722_BINANCE_DELIVERY.ws.1.0.gz",
}


def recordings_folder(environ: Mapping[str, str] = os.environ) -> Path:
    """Return where recordings are. Raises UsageError if nowhere."""
    places = folders(environ)
    for place in places:
        if (place / SMALL["usdm"]).exists():
            return place.resolve()
    raise UsageError(
        f"bench: no recordings in {' or '.join(map(str, places))}; all is measured on real messages. "
        f"Name the folder that holds {SMALL['usdm']} by TAPECAST_RECORDINGS"
    )


def kind_of(stream: str) -> str:
    """Return the kind of a stream's name: `depth` of `btcusdt@depth@0ms`."""
    return stream.split("@")[1] if "@" in stream else ""


class Recording:
    """One capture of one market of the venue.

    name  the file's, without what tells its format
    Raises Skipped where the market has no adapter, no stand-in or no recording here.
    """

    def __init__(self, folder: Path, market: str, name: str) -> None:
        self.path = folder / name
        self.market = market
        if market not in MARKETS:
            raise Skipped(f"{VENUE} {market} has no adapter")
        if not self.path.exists():
            raise Skipped(f"{name}: not among the recordings")
        self.name = self.path.name.partition(".")[0]
        self._answers: dict[str, bytes] = {}

    @cached_property
    def _heard(self) -> list[tuple[str, int, bytes]]:
        """Return (stream, receive time in ns, message) of all stream messages."""
        return [
            (event.payload[11 : event.payload.index(b'"', 11)].decode(), event.ts_recv_ns, event.payload)
            for event in open_capture([self.path]).events()
            if isinstance(event, Received) and event.payload.startswith(b'{"stream":"')
        ]

    @cached_property
    def counts(self) -> Counter[str]:
        """Return the number of messages by kind of stream."""
        return Counter(kind_of(stream) for stream, _, _ in self._heard)

    @property
    def fed(self) -> tuple[str, ...]:
        """Return the kinds of stream that a feeder takes of it: one kind of trades is recorded."""
        return tuple(kind for kind in ("depth", "bookTicker", "trade", "aggTrade") if kind in self.counts)

    @property
    def n_fed(self) -> int:
        """Return how many messages a feeder takes of it."""
        return sum(self.counts[kind] for kind in self.fed)

    def messages(self, kinds: Collection[str]) -> list[bytes]:
        """Return the messages of some kinds of stream, in their order."""
        return [message for stream, _, message in self._heard if kind_of(stream) in kinds]

    @cached_property
    def offsets_ns(self) -> dict[bytes, int]:
        """Return when each stream message came, since the first of the recording; of equal ones the last."""
        events = [event for event in open_capture([self.path]).events() if isinstance(event, Received)]
        return {event.payload: event.ts_recv_ns - events[0].ts_recv_ns for event in events}

    @property
    def span_s(self) -> float:
        """Return the time from the first message to the last."""
        return (self._heard[-1][1] - self._heard[0][1]) / 1e9

    @cached_property
    def instruments(self) -> list[Instrument]:
        """Return the instruments, numbered from 1."""
        market = MARKETS[self.market]
        listed = market.instruments([self.answer(call.path) for call in market.instruments_requests()])
        n_channels = len(VENUES[VENUE].channels)
        return [
            msgspec.structs.replace(
                instrument,
                symbol_id=number,
                channel=partition(instrument.venue, instrument.kind, instrument.symbol, n_channels),
            )
            for number, instrument in enumerate(listed, 1)
        ]

    def plans(self, kinds: Collection[str]) -> list[Plan]:
        """Return the connections that carry these kinds of stream, with them alone. Raises BenchError."""
        settings = VenueSettings(
            symbols=("*",),
            market={self.market: Endpoints(ws_url="ws://venue", rest_url="http://venue")},
            trades="agg" if "aggTrade" in kinds else "trade",
        )
        offered = self._stand_in.play.names
        plans = [
            msgspec.structs.replace(plan, streams=streams)
            for plan in MARKETS[self.market].plans(self.instruments, settings, offered)
            if (streams := tuple(stream for stream in plan.streams if kind_of(stream) in kinds))
        ]
        carried = {kind_of(stream) for plan in plans for stream in plan.streams}
        if carried != set(kinds):
            raise BenchError(
                f"{self.path}: {carried} of {kinds} are subscribed; offered: {', '.join(offered)}"
            )
        return plans

    def answer(self, path: str) -> bytes:
        """Return what the venue's REST answered, the same at every call. Raises BenchError."""
        if path not in self._answers:
            url = urlsplit(path)
            stand_in = self._stand_in
            answered = asyncio.run(
                stand_in.rest(url.path, dict(parse_qsl(url.query)), "bench", stand_in.start_ns)
            )
            if answered.status != 200:
                raise BenchError(f"{self.path}: {path} answered {answered.status}: {answered.body[:200]!r}")
            self._answers[path] = answered.body
        return self._answers[path]

    @cached_property
    def _stand_in(self) -> StandIn:
        return stand_in_of(open_capture([self.path]))
