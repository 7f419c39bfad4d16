"""LS Securities, Korean stocks: the stand-in of one capture. Source: venues/ls.md, sections 1 to 8.

| Message | Answer |
| --- | --- |
| `{"header":{"token","tr_type":"3"},"body":{"tr_cd","tr_key"}}` | `{"header":{..., "rsp_cd":"00000"}}` |
| the same with `"4"` | the same; no more frames of that TR and key |
| a token that is not good | `rsp_cd` IGW00121 or IGW00123, the codes of REST: a socket's are not known |
| a TR that is none of Korean stocks | `rsp_cd` 10001 |
| a code of another market, an unknown one, a key of NXT without its blanks | 00000, and silence |

Nothing is known of limits: neither of connections, nor of registrations, nor of a lifetime.
"""

import math
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

import orjson

from recording import Capture
from replay.alias import AliasPlay
from replay.ls_capture import PADDED, TIME_FIELDS, TRADES, LsCapture, Stock, code_of, frame_of
from replay.ls_rest import TEXTS, TOO_MANY, LsRest, Tokens, refused
from replay.script import Play, StraightPlay
from replay.venue import Answer, Form, Posted, Refused, Rules, Session

WS_PATHS = ("/websocket", "/websocket/stock")  # clients use the first for every market
KEY_LENGTH = 10  # of NXT and unified TRs
OK, REFUSED = "00000", "10001"
OK_TEXT, REFUSED_TEXT = "정상처리되었습니다", "정의되지 않은 TR 입니다."
REGISTER, RELEASE = "3", "4"
_CLOCK = re.compile(rb'("(?:%s)"\s*:\s*")(\d{6})(")' % b"|".join(
    {name.encode() for name in TIME_FIELDS.values() if name} | {b"nxt_time"}
))  # fmt: skip
_VOLUME = re.compile(rb'("volume"\s*:\s*")(\d+)(")')
_DAY_S = 86_400


class LsStandIn:
    """The stand-in of one capture.

    n_aliases  0, or how many clones of the recorded stocks to serve in their place, at offsets by `seed`
    tokens     those given out; tests end them here
    Raises CaptureError for a capture that cannot be served.
    """

    venue = "ls"
    market = ""
    protocol = "v1"
    binary = False
    rules = Rules(
        messages_per_s=100,  # none is published
        ping_every_s=math.inf,
        pong_within_s=math.inf,
        lifetime_s=math.inf,
        pong_echoes=False,
        attempts_per_5min=None,
    )

    def __init__(self, capture: Capture, n_aliases: int = 0, seed: int = 0) -> None:
        self._capture = LsCapture(capture)
        script = self._capture.script
        clones = self._capture.clones(n_aliases)
        self.play: Play = AliasPlay(script, clones, seed) if clones else StraightPlay(script)
        self.streams: Sequence[str] = self.play.names
        self.start_ns = script.start_ns
        self.instruments = "recorded" if self._capture.lists else "derived"
        self.tokens = Tokens()
        self._stream_of = {name: stream for stream, name in enumerate(self.play.names)}
        stocks = [Stock(clone.symbol, clone.recorded) for clone in clones]
        stocks = stocks or [Stock(code, code) for code in self._capture.codes]
        self._rest = LsRest(self._capture, self.play, stocks, self.tokens)
        self._bases: dict[int, int] = {}  # volume of a stream when its numbers began anew

    def rewind(self) -> None:
        """Begin the recording anew; what faults changed is forgotten."""
        self.play.rewind()
        self._rest.ended.clear()
        self._bases.clear()

    # WebSocket

    def connect(self, target: str) -> Session:
        """Return the session of a handshake. Raises Refused."""
        path = target.partition("?")[0].rstrip("/")
        if path not in WS_PATHS:
            raise Refused(404, f"{path}: expected one of {', '.join(WS_PATHS)}")
        return LsSession(self._stream_of, self.tokens)

    # what faults change

    def restart_numbers(self, streams: Collection[int]) -> None:
        """Let the day's volume of `streams` begin anew: it is the only number there is."""
        for stream in streams:
            if self.play.names[stream].partition(":")[0] in TRADES:
                self._bases[stream] = -1

    def renumbered(self, stream: int, payload: bytes) -> bytes:
        """Return a message with the day's volume counted from the last restart."""
        match = _VOLUME.search(payload)
        base = self._bases.get(stream)
        if match is None or base is None:
            return payload
        if base < 0:
            frame = frame_of(payload)
            size = int(frame.body.get("cvolume", "0")) if frame else 0
            base = self._bases[stream] = int(match[2]) - size
        return _VOLUME.sub(lambda found: b"%b%d%b" % (found[1], int(found[2]) - base, found[3]), payload)

    def shifted(self, payload: bytes, shift_ms: int) -> bytes:
        """Return a message with its time of day moved, to the second."""
        return _CLOCK.sub(
            lambda found: found[1] + _moved(found[2], round(shift_ms / 1_000)) + found[3], payload
        )

    def delist(self, streams: Collection[int]) -> Sequence[int]:
        """Delist the stocks of `streams`; return all their streams."""
        codes = {self._code(stream) for stream in streams} - {""}
        self._rest.ended |= codes
        return [stream for stream in range(len(self.play.names)) if self._code(stream) in codes]

    def _code(self, stream: int) -> str:
        """Return the code a stream is about, "" for what concerns all."""
        tr, _, key = self.play.names[stream].partition(":")
        return code_of(tr, key).strip("0") and code_of(tr, key)

    # REST

    async def rest(self, path: str, query: Mapping[str, str], client: str, now_ns: int) -> Answer:  # noqa: ARG002
        """Answer a GET: the venue has none, and says nothing."""
        return Answer(200, b"")

    async def post(self, call: Posted, client: str, now_ns: int) -> Answer:
        """Answer a POST of `client` at recording time `now_ns` (since the epoch)."""
        return self._rest.answer(call, client, now_ns)

    def refusal(self, status: int, retry_after_s: int) -> Answer:
        """Return the venue's own refusal: too many calls are HTTP 500 here, without a time to wait."""
        if status in {429, 418}:
            return refused(TOO_MANY)
        return Answer(status, b"Service Unavailable", {"Retry-After": str(retry_after_s)}, "text/plain")


class LsSession:
    """One connection: what is registered on it, by TR and key."""

    def __init__(self, stream_of: Mapping[str, int], tokens: Tokens) -> None:
        self._stream_of = stream_of
        self._tokens = tokens
        self._registered: dict[tuple[str, str], None] = {}

    @property
    def subscribed(self) -> bool:
        """Return whether anything is registered, known or not."""
        return bool(self._registered)

    def wanted(self) -> Iterator[tuple[int, Form]]:
        """Yield the streams to send."""
        for tr, key in self._registered:
            padded = (len(key) == KEY_LENGTH and key[:1].isalpha()) or not key.strip("0")
            stream = self._stream_of.get(f"{tr}:{key.strip()}")
            if stream is not None and (padded or tr not in PADDED):
                yield stream, None

    def farewell(self, now_ns: int) -> list[bytes]:  # noqa: ARG002  (as the others)
        """Return what is said before maintenance: nothing."""
        return []

    def receive(self, message: str | bytes) -> list[bytes]:
        """Take a registration or a release, return its acknowledgement."""
        asked = _asked(message)
        if asked is None:
            return [_reply("", "", "", REFUSED, "JSON 형식이 올바르지 않습니다.")]
        token, kind, tr, key = asked
        fault = self._tokens.fault(token)
        if fault:
            return [_reply(tr, key, kind, fault, TEXTS[fault])]
        if tr not in TIME_FIELDS or kind not in (REGISTER, RELEASE):
            return [_reply(tr, key, kind, REFUSED, REFUSED_TEXT)]
        if kind == REGISTER:
            self._registered[tr, key] = None
        else:
            self._registered.pop((tr, key), None)
        return [_reply(tr, key, kind, OK, OK_TEXT)]


def _asked(message: str | bytes) -> tuple[str, str, str, str] | None:
    """Return token, kind, TR and key of a request; None for what is none."""
    try:
        said: Any = orjson.loads(message)
        header, body = said["header"], said["body"]
        asked = header["token"], header["tr_type"], body["tr_cd"], body.get("tr_key", "")
    except (ValueError, KeyError, TypeError, AttributeError):
        return None
    return asked if all(isinstance(text, str) for text in asked) else None


def _reply(tr: str, key: str, kind: str, code: str, text: str) -> bytes:
    header = {"tr_cd": tr, "tr_key": key, "tr_type": kind, "rsp_cd": code, "rsp_msg": text}
    return orjson.dumps({"header": header})


def _moved(clock: bytes, shift_s: int) -> bytes:
    """Return HHMMSS moved by seconds, within a day."""
    total = (int(clock[:2]) * 60 + int(clock[2:4])) * 60 + int(clock[4:]) + shift_s
    total %= _DAY_S
    return b"%02d%02d%02d" % (total // 3_600, total // 60 % 60, total % 60)


def stand_in(capture: Capture, n_aliases: int, seed: int) -> LsStandIn:
    """Return the stand-in of a capture. Raises CaptureError."""
    return LsStandIn(capture, n_aliases, seed)
