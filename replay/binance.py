"""Binance spot, USD-M and COIN-M: the stand-in of one capture. Source: venues/binance.md, sections 1 to 7."""

import functools
from collections.abc import Callable, Collection, Mapping, Sequence

from recording import Capture
from replay.alias import AliasPlay
from replay.binance_capture import WRAPPER, BinanceCapture, symbols_of
from replay.binance_market import Market
from replay.binance_markets import MARKETS
from replay.binance_numbers import Numbers, in_microseconds, shifted
from replay.binance_rest import BinanceRest
from replay.binance_session import BinanceSession
from replay.script import Play, StraightPlay
from replay.venue import Answer, Form, Refused, Session, Violation


def stand_in(capture: Capture, n_aliases: int, seed: int) -> "BinanceStandIn":
    """Return the stand-in of a capture of any of the three markets. Raises CaptureError."""
    return BinanceStandIn(MARKETS[capture.market], capture, n_aliases, seed)


class BinanceStandIn:
    """The stand-in of one capture.

    n_aliases  0, or how many clones of the recorded symbols to serve in their place, at offsets by `seed`
    Raises CaptureError for a capture that cannot be served.
    """

    venue = "binance"
    protocol = "v1"
    binary = False

    def __init__(self, market: Market, capture: Capture, n_aliases: int = 0, seed: int = 0) -> None:
        self.market = market.name
        self.rules = market.rules
        self._market = market
        self._capture = BinanceCapture(capture, market)
        script = self._capture.script
        clones = self._capture.clones(n_aliases)
        self.play: Play = AliasPlay(script, clones, seed) if clones else StraightPlay(script)
        self._symbols = symbols_of(self.play.names, market, clones)
        self._symbol_of = {stream: symbol for symbol in self._symbols.values() for stream in symbol.streams}
        self._stream_of = {name: stream for stream, name in enumerate(self.play.names)}
        self.start_ns = script.start_ns
        self.instruments = "recorded" if self._capture.info(0) else "derived"
        self.streams: Sequence[str] = [*self.play.names, *self._polled()]
        self._forms: dict[tuple[int, str, bool], Form] = {}
        self._numbers = Numbers(self._capture, self.play, self._symbol_of)
        self._rest = BinanceRest(self._capture, self.play, self._symbols, self._numbers)

    def _polled(self) -> list[str]:
        """Return names for the open interest of symbols that REST answers tell: it is no stream here."""
        asked = self._capture.answers.get("openInterest", {})
        return [
            f"{symbol.text.lower()}@openInterest"
            for symbol in self._symbols.values()
            if frozenset((("symbol", symbol.recorded),)) in asked
        ]

    def rewind(self) -> None:
        """Begin the recording anew, as after a reset of the venue; what faults changed is forgotten."""
        self.play.rewind()
        self._numbers.rewind()
        self._rest.rewind()

    # WebSocket

    def connect(self, target: str) -> Session:
        """Return the session of a handshake for `target`, path and query. Raises Refused."""
        asked = self._market.target(target)

        def resolve(name: str) -> int | None:
            return self._resolve(name) if self._market.carries(name, asked.public) else None

        try:
            return BinanceSession(
                asked.names,
                resolve,
                functools.partial(self._form, microseconds=asked.microseconds),
                self._market.valid_id,
                functools.partial(self._market.shutdown, microseconds=asked.microseconds),
                combined=asked.combined,
            )
        except Violation as violation:
            raise Refused(400, str(violation)) from violation

    def _resolve(self, name: str) -> int | None:
        """Return the stream that `name` is served from: any speed of a symbol's depth is its recorded one."""
        stream = self._stream_of.get(name)
        if stream is None and (match := self._market.depth.fullmatch(name)) and match[1].islower():
            symbol = self._symbols.get(match[1].upper())
            return symbol.depth if symbol else None
        return stream

    def _form(self, stream: int, combined: bool, name: str, *, microseconds: bool) -> Form:
        recorded = self.play.names[stream]
        if combined and name == recorded and not microseconds:
            return None
        key = (stream, name if combined else "", microseconds)
        if key not in self._forms:
            data = len(WRAPPER % recorded.encode())
            form = _rewrapped(data, name) if combined else _bare(data)
            self._forms[key] = _timed(form) if microseconds else form
        return self._forms[key]

    # what faults change

    def restart_numbers(self, streams: Collection[int]) -> None:
        """Let the venue's numbers begin anew in `streams` and in REST answers about their symbols."""
        self._numbers.restart(streams)

    def renumbered(self, stream: int, payload: bytes) -> bytes:
        """Return a message with the numbers of the last restart: 1 and up, 0 for the one before."""
        return self._numbers.renumbered(stream, payload)

    def shifted(self, payload: bytes, shift_ms: int) -> bytes:
        """Return a message with its event and transaction times moved."""
        return shifted(payload, shift_ms)

    def delist(self, streams: Collection[int]) -> Sequence[int]:
        """Delist the symbols of `streams`; return all their streams."""
        symbols = {self._symbol_of[stream].text for stream in streams if stream in self._symbol_of}
        self._rest.ended |= symbols
        return [stream for text in symbols for stream in self._symbols[text].streams]

    # REST

    async def rest(self, path: str, query: Mapping[str, str], client: str, now_ns: int) -> Answer:
        """Answer a GET of `client` at recording time `now_ns` (since the epoch)."""
        return await self._rest.answer(path, query, client, now_ns)

    def refusal(self, status: int, retry_after_s: int) -> Answer:
        """Return the venue's own 429, 418 or 503."""
        return self._market.refusal(status, retry_after_s)


def _bare(data: int) -> Callable[[bytes], bytes]:
    """Return the form without the wrapper, which is `data` bytes long."""
    return lambda message: message[data:-1]


def _rewrapped(data: int, name: str) -> Callable[[bytes], bytes]:
    """Return the form under another stream name."""
    wrapper = WRAPPER % name.encode()
    return lambda message: wrapper + message[data:]


def _timed(form: Callable[[bytes], bytes]) -> Callable[[bytes], bytes]:
    """Return a form with times in microseconds."""
    return lambda message: in_microseconds(form(message))
