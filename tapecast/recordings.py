"""Raw recordings read offline: the entries that a feeder would have published, with the recorded times.

>>> import tapecast
>>> for trade in tapecast.recording("binance_usdm/20210722", types=("trade",)):  # doctest: +SKIP
...     print(trade.ts_recv_ns, trade.symbol, trade.px, trade.qty)

The messages go through the venue's own adapter; what it asks its venue for, the recording answers.
"""

import asyncio
import os
from collections import Counter, deque
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from http import HTTPStatus
from pathlib import Path
from typing import NamedTuple
from urllib.parse import parse_qsl, urlsplit

import msgspec
import numpy as np

from feeder.batch import Batch, Request, VenueError
from feeder.columns import lazily_zeroed
from feeder.framing import DONE, NEED_ROOM, WRITER, frame_batch
from feeder.login import STAND_IN_CREDENTIALS
from feeder.markets import fed_venues, markets_of, speaking
from feeder.quality import Quality
from feeder.quality_settings import QualitySettings
from feeder.settings import VenueSettings
from feeder.venues.base import Adapter, Market, Shared, TokenMarket
from market_types.configuration import load
from market_types.enums import Flag, MsgType
from market_types.instruments import Instrument
from market_types.venues import VENUES, Venue, partition
from recording import Capture, CaptureError, open_capture
from replay.stand_ins import replayed_venues, stand_in_of
from replay.venue import Answer, Form, Postbox, Posted, Session, StandIn
from tapecast.captures import found
from tapecast.defaults_folder import DEFAULTS
from tapecast.errors import UsageError
from tapecast.subscription import Subscription
from tapecast.tapes import unrolled
from tapecast.wire import settings_of
from udp_protocol.datagram import walk
from udp_protocol.payloads import LAYOUTS, encode
from udp_protocol.sequencing import Item, SessionBegin

NS_PER_S = 1_000_000_000
ASK_AGAIN_NS = 5 * NS_PER_S  # after an answer of the venue's that it has none now
SUBSCRIBE_DEADLINE_S = 60  # of the venue's rate of messages: thousands of streams take a while
SEGMENT_BYTES = 4 * 2**20
POLL_MESSAGES = 64


class Desk:
    """A publisher without tape and sockets: batches in, frames out, sent at the time that is given.

    batch  what adapters fill
    """

    def __init__(self, venue: Venue, marks: Flag, session_id: int, max_datagram: int) -> None:
        self.batch = Batch(lambda _: self._frame())
        #: keeps the books that quotes are taken from where a venue sends none
        self._quality = Quality(
            QualitySettings(), Counter(), self.batch.alert, live=False, speed_one=False
        )  # fmt: skip
        self._now_ns = 0
        self._out: list[Item] = []
        self._segment = np.zeros(SEGMENT_BYTES, np.uint8)
        self._state = lazily_zeroed(WRITER)
        writer = self._state[0]
        writer["session_id"], writer["venue_id"], writer["marks"] = session_id, venue.venue_id, int(marks)
        writer["max_datagram"], writer["row"] = max_datagram, -1
        writer["next_seq"][:] = 1

    def define(self, instrument: Instrument, now_ns: int) -> None:
        """Append the definition of an instrument."""
        layout = LAYOUTS[MsgType.INSTRUMENT_DEF]
        root = {name: getattr(instrument, name) for name in layout.root.names if name not in layout.given}
        strings = [getattr(instrument, name) for name in layout.strings]
        writer = self._state[0]
        writer["channel_of"][instrument.number] = instrument.channel
        writer["kind_of"][instrument.number] = instrument.kind
        self._quality.define(instrument)
        payload, count = encode(MsgType.INSTRUMENT_DEF, root, strings=strings)
        self.batch.encoded(MsgType.INSTRUMENT_DEF, payload, count, now_ns, instrument)

    def take(self, now_ns: int) -> list[Item]:
        """Return the frames of all that waits in the batch, and clear it."""
        self._now_ns = now_ns
        if self.batch.n_events:
            self._frame()
        out, self._out = self._out, []
        return out

    def _frame(self) -> None:
        self._quality.inspect(self.batch)
        writer, status = self._state[0], NEED_ROOM
        while status != DONE:
            status = frame_batch(self.batch.block, self._state, self._segment, self._now_ns)
            n_out = int(writer["n_out"])
            writer["n_out"] = 0
            for at, size in zip(
                writer["out_at"][:n_out].tolist(), writer["out_len"][:n_out].tolist(), strict=True
            ):
                self._out += walk(self._segment[at : at + size].tobytes(), channel=None)
            if status == NEED_ROOM:
                writer["tape_at"] = 0
        self.batch.clear()


class Line(NamedTuple):
    """One connection to the stand-in."""

    adapter: Adapter
    session: Session


class CaptureReader:
    """The frames of a capture as the items of a wire: what a Subscription takes.

    counters  bad_messages, bad_answers, and what the adapters count
    alerts    (info, warn or crit, keyword, what it is about), as a feeder tells its operators
    done      everything was read
    The venue is a stand-in in this process, which keeps the messages of the recording in memory.
    """

    def __init__(self, capture: Capture, settings: VenueSettings, max_datagram: int) -> None:
        venue = VENUES[capture.venue]
        self.done = False
        self.alerts: list[tuple[str, str, str]] = []
        self._shared = Shared()
        self._stand_in: StandIn = stand_in_of(capture)
        market = speaking(markets_of(capture.venue)[capture.market], self._stand_in.protocol)
        self._pool = ThreadPoolExecutor(1)  # an event loop of its own: the caller may be in one
        self._calls = 0
        self._later: list[tuple[int, Line, Request]] = []
        start_ns = self._stand_in.start_ns
        marks = Flag.SIM if capture.source == "sim" else Flag.REPLAY
        self._desk = Desk(venue, marks, max(1, start_ns // NS_PER_S), max_datagram)
        self._batch = self._desk.batch
        self._log_in(market, start_ns)
        instruments = [
            msgspec.structs.replace(
                instrument,
                symbol_id=(venue.venue_id << 20) + number,
                channel=partition(venue, instrument.kind, instrument.symbol, settings.n_channels),
            )
            for number, instrument in enumerate(self._listed(market, capture.files[0]), 1)
        ]
        self._out: list[Item] = [
            SessionBegin(channel, max(1, start_ns // NS_PER_S))
            for channel in sorted({instrument.channel for instrument in instruments})
        ]
        self._defined = {instrument.number: instrument for instrument in instruments}
        for instrument in instruments:
            self._desk.define(instrument, start_ns)
        self._lines = []
        for plan in market.plans(instruments, settings, self._stand_in.streams):
            line = Line(market.adapter(plan, self._shared), self._stand_in.connect(plan.path))
            self._lines.append(line)
            self._batch.messages += line.adapter.hello()
            self._serve(line, start_ns)
        self._tick_ns = start_ns - SUBSCRIBE_DEADLINE_S * NS_PER_S
        while self._tick_ns < start_ns and not all(line.adapter.subscribed for line in self._lines):
            self._tick()
        self._tick_ns = start_ns + NS_PER_S
        self._now_ns = start_ns
        self._carriers = self._routes()

    @property
    def counters(self) -> Counter[str]:
        """Return what went wrong so far, by name."""
        return self._shared.counters

    def poll(self, timeout_s: float = 0.0) -> list[Item]:  # noqa: ARG002  (nothing is waited for here)
        """Return what comes next, in order."""
        out, self._out = self._out, []
        play = self._stand_in.play
        for _ in range(0 if self.done else POLL_MESSAGES):
            next_ns = play.next_ns()
            if next_ns is None:
                self.close()
                break
            self._now_ns = self._stand_in.start_ns + next_ns
            while self._tick_ns <= self._now_ns:
                self._tick()
                out += self._desk.take(self._tick_ns)
            message = play.take()
            payload = play.payload(message)
            for line, form in self._carriers.get(message.stream, ()):
                self._hear(line, form(payload) if form else payload, self._now_ns)
            out += self._desk.take(self._now_ns)
        return out

    def close(self) -> None:
        """Read no further."""
        self.done = True
        self._pool.shutdown()

    def _listed(self, market: Market, file: Path) -> list[Instrument]:
        """Return the instruments that the venue lists. Raises CaptureError where it does not."""
        requests = deque(market.instruments_requests())
        bodies: list[bytes] = []
        while requests:
            request = requests.popleft()
            listed = self._ask(request, self._stand_in.start_ns)
            if listed.status != HTTPStatus.OK:
                raise CaptureError(f"{file}: no list of instruments: HTTP {listed.status}")
            bodies.append(listed.body)
            following = market.next_page(request, listed.body)
            if following is not None:
                requests.appendleft(following)
        return market.instruments(bodies)

    def _routes(self) -> dict[int, list[tuple[Line, Form]]]:
        """Return which connections carry a stream, and in which form."""
        routes: dict[int, list[tuple[Line, Form]]] = {}
        for line in self._lines:
            for stream, form in line.session.wanted():
                routes.setdefault(stream, []).append((line, form))
        return routes

    def _tick(self) -> None:
        """Let a second pass."""
        now_ns = self._tick_ns
        self._tick_ns += NS_PER_S
        due = [call for call in self._later if call[0] <= now_ns]
        self._later = [call for call in self._later if call[0] > now_ns]
        for _, line, request in due:
            self._batch.fetch(request)
            self._serve(line, now_ns)
        for line in self._lines:
            line.adapter.tick(now_ns, self._batch)
            self._serve(line, now_ns)

    def _hear(self, line: Line, message: bytes, now_ns: int) -> None:
        self._try("bad_messages", lambda: line.adapter.receive(message, now_ns, self._batch))
        self._serve(line, now_ns)

    def _serve(self, line: Line, now_ns: int) -> None:
        """Do for an adapter what it asks for, until it asks for nothing more."""
        batch = self._batch
        while batch.messages or batch.requests:
            messages, batch.messages = batch.messages, []
            requests, batch.requests = batch.requests, []
            for message in messages:
                for reply in line.session.receive(message):
                    self._try("bad_messages", lambda: line.adapter.receive(reply, now_ns, batch))  # noqa: B023
            for request in requests:
                self._answer(line, request, now_ns)
            if messages:
                self._carriers = self._routes()
        self.alerts += batch.alerts
        batch.alerts.clear()
        statuses, batch.statuses = batch.statuses, []
        for instrument, status in statuses:
            known = self._defined[instrument.number]
            if known.status != status:
                version = known.def_version + 1
                known = msgspec.structs.replace(known, status=status, def_version=version)
                self._defined[known.number] = known
                self._desk.define(known, now_ns)

    def _answer(self, line: Line, request: Request, now_ns: int) -> None:
        answer = self._ask(request, now_ns)
        if answer.status >= HTTPStatus.INTERNAL_SERVER_ERROR:
            self._later.append((now_ns + ASK_AGAIN_NS, line, request))
        elif answer.status >= HTTPStatus.BAD_REQUEST:
            line.adapter.refused(request, answer.status, now_ns, self._batch)
        else:
            self._try("bad_answers", lambda: line.adapter.answer(request, answer.body, now_ns, self._batch))

    def _try(self, counter: str, work: Callable[[], None]) -> None:
        try:
            work()
        except VenueError:
            self._shared.counters[counter] += 1

    def _ask(self, request: Request, now_ns: int) -> Answer:
        """Return the stand-in's answer at a recorded time; no call counts towards a limit."""
        self._calls += 1
        url, client = urlsplit(request.path), str(self._calls)
        query = dict(parse_qsl(url.query))
        if request.body is not None and isinstance(self._stand_in, Postbox):
            headers = dict(request.headers)
            if self._shared.token is not None:
                headers["authorization"] = f"Bearer {self._shared.token.reveal()}"
            answer = self._stand_in.post(Posted(url.path, query, headers, request.body), client, now_ns)
        else:
            answer = self._stand_in.rest(url.path, query, client, now_ns)
        return self._pool.submit(lambda: asyncio.run(answer)).result()

    def _log_in(self, market: Market, now_ns: int) -> None:
        """Get a token where the venue gives nothing without."""
        if isinstance(market, TokenMarket):
            answer = self._ask(market.token_request(STAND_IN_CREDENTIALS), now_ns)
            self._shared.token = market.grant(answer.status, answer.body).token


def recording(
    path: str | Path | Sequence[str | Path],
    symbols: Iterable[str] = (),
    types: Iterable[str] = (),
    *,
    market: str | None = None,
    config: str | Path | None = None,
) -> Subscription:
    """Read raw captures as a feeder would have published them.

    path            the files of one capture, its folder, or how its name begins below TAPECAST_RECORDINGS
    symbols, types  as in `subscribe`
    market          of the venue, where the capture does not tell
    config          folder of the TOML files: which kind of trades, how many channels

    Iterates entries, then ends: ts_recv_ns is when the message was recorded, ts_send_ns the same, source is
    REPLAY or, of a simulation, SIM. `.books`, `.gaps` and `.stats` are a subscriber's. Raises CaptureError
    for what is no capture of a known venue, UsageError for an unknown word, ConfigError for a broken
    configuration.
    """
    for name, value in (("symbols", symbols), ("types", types)):
        if isinstance(value, str):
            raise UsageError(f"{name}: {value!r}, expected several of them, such as ({value!r},)")
    given = [Path(path)] if isinstance(path, str | Path) else [Path(one) for one in path]
    paths = found(given, os.environ)
    capture = open_capture(paths, market)
    known = [name for name in fed_venues() if name in replayed_venues()]
    if capture.venue not in known:
        raise CaptureError(f"{paths[0]}: no adapter for {capture.venue}; expected one of {', '.join(known)}")
    folder = Path(config) if config is not None else None
    kind = "stock" if VENUES[capture.venue].stocks else "crypto"
    file = f"feeder/{kind}/{capture.venue}"
    settings = load(VenueSettings, file, folder=folder, environ=os.environ, defaults=DEFAULTS)
    reader = CaptureReader(capture, settings, settings_of(folder, os.environ).max_datagram)
    return unrolled(reader, symbols=symbols, types=types)
