"""Deribit: the stand-in of one capture. Source: venues/deribit.md, sections 1 to 8.

Everything is served at `100ms`, the interval that needs no key, and on request at any other: `raw` after a
login with the key of `deribit_session`. A book's first message is the recorded snapshot; who subscribes later
gets the stand-in's own book of that moment, and the changes that follow it.
"""

import math
import re
from collections.abc import Callable, Collection, Mapping, Sequence

from recording import Capture
from replay.alias import AliasPlay
from replay.deribit_book import Levels, OwnBook, encode
from replay.deribit_capture import Channel, DeribitCapture, Symbol
from replay.deribit_rest import DeribitRest, error_answer
from replay.deribit_session import TOO_MANY, Credits, DeribitSession, RpcError
from replay.script import Play, StraightPlay
from replay.venue import Answer, Form, Refused, Rules, Session

PATH = "/ws/api/v2"
_RULES = Rules(
    messages_per_s=1_000,  # the venue counts credits
    ping_every_s=math.inf,
    pong_within_s=math.inf,
    lifetime_s=math.inf,
    pong_echoes=False,
    attempts_per_5min=None,
    connections=32,
)
_VENUE_CHANNELS = ("instrument.state.any.any", "platform_state")
#: channels that exist and say nothing in a recording of instruments
_SILENT = re.compile(
    r"platform_state(?:\.public_methods_state)?|announcements|instrument\.(?:state|creation)\.\w+\.\w+"
    r"|(?:deribit_price_index|deribit_volatility_index|markprice\.options|estimated_expiration_price)\.\w+"
)
_FAMILIES = re.compile(
    r"(?:book|trades|ticker|perpetual)\.[^.]+\.(?:raw|100ms|agg2)|(?:quote|incremental_ticker)\.[^.]+"
)
_BOOK_NUMBERS = re.compile(rb'"(change_id|prev_change_id)":(\d+)')
_TRADE_NUMBERS = re.compile(rb'"(trade_seq)":(\d+)')
_MILLIS = re.compile(rb'"(timestamp)":(\d{13})(?!\d)')
_NANOS = re.compile(rb'"(starbase_timestamp)":(\d{19})(?!\d)')


def stand_in(capture: Capture, n_aliases: int = 0, seed: int = 0) -> "DeribitStandIn":
    """Return the stand-in of a capture."""
    return DeribitStandIn(capture, n_aliases, seed)


class DeribitStandIn:
    """The stand-in of one capture.

    n_aliases  0, or how many clones of the recorded instruments to serve in their place, offset by `seed`
    news       what the venue told outside the recording: (channel, data)
    Raises CaptureError for a capture that cannot be served.
    """

    venue = "deribit"
    market = ""
    protocol = "v2"
    binary = False
    rules = _RULES

    def __init__(self, capture: Capture, n_aliases: int = 0, seed: int = 0) -> None:
        self._capture = DeribitCapture(capture)
        script = self._capture.script
        clones = self._capture.clones(n_aliases)
        self.play: Play = AliasPlay(script, clones, seed) if clones else StraightPlay(script)
        self._symbols = self._capture.cloned(clones, self.play.names) if clones else self._capture.symbols
        self._symbol_of = {
            stream: symbol for symbol in self._symbols.values() for stream in symbol.streams.values()
        }
        self._stem_of = {Channel.of(name).stem: stream for stream, name in enumerate(self.play.names)}
        self.start_ns = script.start_ns
        self.instruments = (
            "recorded" if any(text in self._capture.listed for text in self._capture.symbols) else "derived"
        )
        silent = [name for symbol in self._symbols.values() for name in symbol.silent]
        self.streams: Sequence[str] = [*self.play.names, *silent, *_VENUE_CHANNELS]
        self.credits = Credits()
        self.news: list[tuple[str, object]] = []
        self._forms: dict[tuple[int, str], Form] = {}
        self._books: dict[str, OwnBook] = {}
        self._restarted: set[int] = set()
        self._bases: dict[int, int] = {}
        self._rest = DeribitRest(
            self._capture, self.play, self._symbols, self.credits, self._levels, self._trades_base
        )

    def rewind(self) -> None:
        """Begin the recording anew, as after a reset of the venue; what faults changed is forgotten."""
        self.play.rewind()
        self._restarted.clear()
        self._bases.clear()
        self._rest.ended.clear()

    # WebSocket

    def connect(self, target: str) -> Session:
        """Return the session of a handshake for `target`, path and query. Raises Refused."""
        path = target.partition("?")[0].rstrip("/")
        if path != PATH:
            raise Refused(404, f"{path}: expected {PATH}")
        return DeribitSession(self)

    def known(self, name: str) -> bool:
        """Return whether the venue has a channel of that name: of an instrument it lists, or of none."""
        channel = Channel.of(name)
        if not channel.subject:
            return channel.stem in self._stem_of or _SILENT.fullmatch(name) is not None
        formed = _FAMILIES.fullmatch(name) or (channel.interval and channel.stem in self._stem_of)
        return bool(formed) and channel.subject in self._symbols and channel.subject not in self._rest.ended

    def resolve(self, name: str) -> int | None:
        """Return the stream a channel is served from, whatever its interval."""
        return self._stem_of.get(Channel.of(name).stem)

    def form(self, stream: int, name: str) -> Form:
        """Return how a recorded message becomes that of channel `name`."""
        served = self.play.names[stream]
        if name == served:
            return None
        key = (stream, name)
        if key not in self._forms:
            self._forms[key] = _renaming(served, name)
        return self._forms[key]

    def snapshot(self, stream: int, name: str) -> bytes | None:
        """Return the present book as the first message of channel `name`; None before the recorded one."""
        symbol = self._symbol_of.get(stream)
        if symbol is None or symbol.streams.get("book") != stream:
            return None
        levels = self._levels(symbol)
        if levels is None:
            return None
        return notification_of(name, encode(levels.snapshot(symbol.text)))

    # books

    def _levels(self, symbol: Symbol) -> Levels | None:
        """Return the book of a symbol at the present point, with the numbers of the last restart."""
        stream = symbol.streams.get("book")
        if stream is None:
            return None
        if symbol.text not in self._books:
            script = self._capture.script
            recorded = self._capture.symbols[symbol.recorded].streams["book"]
            self._books[symbol.text] = OwnBook(script.positions[recorded], script.payloads)
        levels = self._books[symbol.text].at(self.play.point(stream))
        if levels is None or stream not in self._restarted:
            return levels
        base = self._bases.setdefault(stream, levels.change_id - 1)
        return levels._replace(change_id=levels.change_id - base)

    # what faults change

    def restart_numbers(self, streams: Collection[int]) -> None:
        """Let the venue's numbers begin anew in `streams` and in REST answers about their instruments."""
        self._restarted.update(streams)
        for stream in streams:
            self._bases.pop(stream, None)

    def renumbered(self, stream: int, payload: bytes) -> bytes:
        """Return a message with the numbers of the last restart, 1 and up."""
        numbers = [int(digits) for _, digits in _BOOK_NUMBERS.findall(payload)]
        if numbers:
            base = self._bases.setdefault(stream, min(numbers) - 1)
            return _lowered(_BOOK_NUMBERS, payload, base)
        sequences = [int(digits) for _, digits in _TRADE_NUMBERS.findall(payload)]
        if sequences:
            base = self._bases.setdefault(stream, min(sequences) - 1)
            return _lowered(_TRADE_NUMBERS, payload, base)
        return payload

    def _trades_base(self, symbol: Symbol) -> int:
        return self._bases.get(symbol.streams.get("trades", -1), 0)

    def shifted(self, payload: bytes, shift_ms: int) -> bytes:
        """Return a message with its times moved."""
        moved = _MILLIS.sub(lambda match: b'"%b":%d' % (match[1], int(match[2]) + shift_ms), payload)
        shift_ns = shift_ms * 1_000_000
        return _NANOS.sub(lambda match: b'"%b":%d' % (match[1], int(match[2]) + shift_ns), moved)

    def delist(self, streams: Collection[int]) -> Sequence[int]:
        """Delist the instruments of `streams`, and say so; return all their streams."""
        texts = {self._symbol_of[stream].text for stream in streams if stream in self._symbol_of}
        entries = self._rest.entries()
        now_ms = self.start_ns // 1_000_000
        for text in sorted(texts & entries.keys()):
            entry = entries[text]
            channel = f"instrument.state.{entry['kind']}.{entry['base_currency']}"
            said = {"timestamp": now_ms, "state": "deactivated", "instrument_name": text}
            self.news.append((channel, said))
        self._rest.ended |= texts
        return [stream for text in texts for stream in self._symbols[text].streams.values()]

    # REST

    async def rest(self, path: str, query: Mapping[str, str], client: str, now_ns: int) -> Answer:  # noqa: ARG002
        """Answer a GET of `client` at recording time `now_ns` (since the epoch)."""
        return self._rest.answer(path, query, now_ns)

    def refusal(self, status: int, retry_after_s: int) -> Answer:
        """Return the venue's own 429, 418 or 503."""
        error = TOO_MANY if status in (429, 418) else RpcError(11051, "system_maintenance")
        return error_answer(status, error, {"Retry-After": str(retry_after_s)})


def notification_of(channel: str, data: bytes) -> bytes:
    """Return the message of a channel whose data is encoded already."""
    return b'{"jsonrpc":"2.0","method":"subscription","params":{"channel":"%b","data":%b}}' % (
        channel.encode(),
        data,
    )


def _renaming(served: str, name: str) -> Callable[[bytes], bytes]:
    """Return the form under another channel's name."""
    old, new = (b'"channel":"%b"' % text.encode() for text in (served, name))
    return lambda message: message.replace(old, new, 1)


def _lowered(pattern: re.Pattern[bytes], message: bytes, base: int) -> bytes:
    return pattern.sub(lambda match: b'"%b":%d' % (match[1], int(match[2]) - base), message)
