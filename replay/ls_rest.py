"""LS Securities' REST: token, lists of stocks, books, server time. Source: venues/ls.md, sections 1 to 4, 7.

Wrong keys are answered with 403 and IGW00103 or IGW00105 (measured 2026), dead tokens with IGW00121 or, when
they have expired, IGW00123 (named so by several clients; the HTTP status is not known).
"""

import bisect
import secrets
import time
from collections import deque
from collections.abc import Collection, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import parse_qs

import orjson

from replay.ls_capture import BOOKS, PADDED, TRADES, Frame, LsCapture, Stock
from replay.script import Play
from replay.venue import Answer, Posted

OK, OK_TEXT = "00000", "정상적으로 조회가 완료되었습니다."
NO_KEY, NO_SECRET, INVALID, EXPIRED, TOO_MANY = "IGW00103", "IGW00105", "IGW00121", "IGW00123", "IGW00201"
TEXTS = {
    NO_KEY: "유효하지 않은 AppKey입니다.",
    NO_SECRET: "유효하지 않은 AppSecret입니다.",
    INVALID: "유효하지 않은 token 입니다.",
    EXPIRED: "기간이 만료된 token 입니다.",
    TOO_MANY: "호출 거래건수를 초과하였습니다.",
}
#: TR -> path and calls a second
TRS: Mapping[str, tuple[str, int]] = {
    "t8436": ("/stock/etc", 2),
    "t9945": ("/stock/market-data", 2),
    "t1101": ("/stock/market-data", 10),
    "t8450": ("/stock/market-data", 10),
    "t8454": ("/stock/market-data", 10),
    "t0167": ("/etc/time-search", 5),
}
TOKEN_PATH = "/oauth2/token"  # noqa: S105  (no secret)
KST = timedelta(hours=9)
TOKEN_HOUR = 7  # KST: when the tokens of the day before end


class Tokens:
    """The tokens given out, and until when (monotonic seconds) they are good.

    lifetime_s  None: until 07:00 in Korea
    known       pairs of key and secret; None: every pair is
    """

    def __init__(self) -> None:
        self.lifetime_s: float | None = None
        self.known: dict[str, str] | None = None
        self._until_s: dict[str, float] = {}

    def issue(self) -> tuple[str, int]:
        """Return a new token and its seconds; the one before it is worth nothing any more."""
        for token in self._until_s:
            self._until_s[token] = -1.0
        lives_s = self.lifetime_s if self.lifetime_s is not None else _until_seven(time.time())
        token = secrets.token_urlsafe(24)
        self._until_s[token] = time.monotonic() + lives_s
        return token, max(1, int(lives_s))

    def expire(self) -> None:
        """End all tokens."""
        self._until_s = dict.fromkeys(self._until_s, 0.0)

    def fault(self, token: str) -> str:
        """Return what is wrong with a token, "" if nothing is."""
        until_s = self._until_s.get(token, -1.0)
        if until_s < 0:
            return INVALID
        return EXPIRED if time.monotonic() >= until_s else ""


def _until_seven(now_s: float) -> float:
    korea = datetime.fromtimestamp(now_s, UTC) + KST
    seven = korea.replace(hour=TOKEN_HOUR, minute=0, second=0, microsecond=0)
    return ((seven if seven > korea else seven + timedelta(days=1)) - korea).total_seconds()


class LsRest:
    """The REST answers of one stand-in.

    ended  codes that are listed no more
    """

    def __init__(self, capture: LsCapture, play: Play, stocks: Sequence[Stock], tokens: Tokens) -> None:
        self._capture = capture
        self._play = play
        self._stocks = {stock.code: stock for stock in stocks}
        self._tokens = tokens
        self._calls: dict[tuple[str, str], deque[float]] = {}
        self._stream_of = {name: stream for stream, name in enumerate(play.names)}
        self.ended: set[str] = set()

    def answer(self, call: Posted, client: str, now_ns: int) -> Answer:
        """Answer a POST of `client` at recording time `now_ns` (since the epoch)."""
        if call.path == TOKEN_PATH:
            return self._token(call)
        tr = call.headers.get("tr_cd", "")
        path, per_s = TRS.get(tr, ("", 0))
        if call.path != path:
            return Answer(404, orjson.dumps({"rsp_cd": "IGW00404", "rsp_msg": f"{call.path} {tr}"}))
        token = call.headers.get("authorization", "").removeprefix("Bearer ")
        fault = self._tokens.fault(token) if call.authorized else INVALID
        if fault:
            return refused(fault)
        if self._excess(client, tr, per_s):
            return refused(TOO_MANY)
        asked = _in_block(call.body, tr)
        return Answer(200, orjson.dumps({"rsp_cd": OK, "rsp_msg": OK_TEXT, **self._out(tr, asked, now_ns)}))

    def _token(self, call: Posted) -> Answer:
        form = {name: texts[0] for name, texts in parse_qs(call.body.decode("utf-8", "replace")).items()}
        known = self._tokens.known
        key = form.get("appkey", "")
        if not key or (known is not None and key not in known):
            return denied(NO_KEY)
        if not call.authorized or (known is not None and form.get("appsecretkey") != known[key]):
            return denied(NO_SECRET)
        token, lives_s = self._tokens.issue()
        said = {"access_token": token, "scope": "oob", "token_type": "Bearer", "expires_in": lives_s}
        return Answer(200, orjson.dumps(said))

    def _excess(self, client: str, tr: str, per_s: int) -> bool:
        """Count a call; return whether it is one too many in a second."""
        now_s = time.monotonic()
        calls = self._calls.setdefault((client, tr), deque(maxlen=per_s))
        if len(calls) == per_s and now_s - calls[0] < 1.0:
            return True
        calls.append(now_s)
        return False

    def _out(self, tr: str, asked: Mapping[str, Any], now_ns: int) -> Mapping[str, object]:
        """Return the blocks of an answer: none where there is no data."""
        if tr == "t8436":
            rows = self._capture.entries(self._stocks.values(), self.ended)
            wanted = str(asked.get("gubun", "0"))
            return {"t8436OutBlock": [row for row in rows if wanted in ("0", row["gubun"])]}
        if tr == "t9945":
            return {"t9945OutBlock": self._masters(str(asked.get("gubun", "1")))}
        if tr == "t0167":
            korea = datetime.fromtimestamp(now_ns // 1_000_000_000, UTC) + KST
            dated = {"dt": korea.strftime("%Y%m%d"), "time": korea.strftime("%H%M%S%f")}
            return {"t0167OutBlock": dated}
        code, exchange = str(asked.get("shcode", "")), str(asked.get("exchgubun", "K"))
        if tr == "t8454":
            return self._past_trades(code, exchange, str(asked.get("cts_time", "")))
        return self._book(tr, code, exchange)

    def _masters(self, market: str) -> list[dict[str, str]]:
        rows = self._capture.entries(self._stocks.values(), self.ended)
        return [
            {
                "hname": row["hname"],
                "shcode": row["shcode"],
                "expcode": row["expcode"],
                "etfchk": row["etfgubun"],
                "nxt_chk": "1" if self._capture.on_nxt(self._stocks[row["shcode"]]) else "0",
                "filler": "",
            }
            for row in rows
            if row["gubun"] == market
        ]

    def _book(self, tr: str, code: str, exchange: str) -> Mapping[str, object]:
        """Return the last book of a stock that was played, sent or not; none before the first."""
        stock = self._stocks.get(code)
        if stock is None or code in self.ended:
            return {}
        found = self._last_book(stock, "K" if tr == "t1101" else exchange)
        if found is None:
            return {}
        frame, letter = found
        row = next(iter(self._capture.entries([stock])))
        block: dict[str, object] = {
            "hname": row["hname"],
            "shcode": code,
            "hotime": f"{frame.clock or '000000'}00",
            "volume": _number(frame.body.get("volume", "")),
            "jnilclose": row["jnilclose"],
            "uplmtprice": row["uplmtprice"],
            "dnlmtprice": row["dnlmtprice"],
        }
        for side in ("offer", "bid"):
            for level in range(1, 11):
                block[f"{side}ho{level}"] = _number(frame.body.get(f"{side}ho{level}", ""))
                for prefix, theirs in _SIZES[letter]:
                    block[f"{prefix}{side}rem{level}"] = _number(
                        frame.body.get(f"{theirs}{side}rem{level}", "")
                    )
        return {f"{tr}OutBlock": block}

    def _last_book(self, stock: Stock, exchange: str) -> tuple[Frame, str] | None:
        """Return the last frame of a stock's book at an exchange (K, N, U), and the exchange."""
        played = self._played(BOOKS, stock, exchange)
        return (played[-1], exchange) if played else None

    def _past_trades(self, code: str, exchange: str, cursor: str) -> Mapping[str, object]:
        """Return a page of the trades that were played, sent or not, newest first.

        cursor  time of the oldest row of the page before, and four digits
        """
        stock = self._stocks.get(code)
        frames = self._played(TRADES, stock, exchange) if stock is not None else []
        before = [frame for frame in reversed(frames) if not cursor or frame.clock < cursor[:6]]
        page = before[:PAGE_ROWS]
        if not page:
            return {}
        oldest = f"{page[-1].clock}0001" if len(before) > len(page) else ""
        return {
            "t8454OutBlock": {"cts_time": oldest, "ex_shcode": _LETTERS[exchange] + code},
            "t8454OutBlock1": [_row(frame) for frame in page],
        }

    def _played(self, trs: Collection[str], stock: Stock, exchange: str) -> list[Frame]:
        """Return the frames of some TRs about a stock at an exchange up to the present point, in order."""
        letter, script = _LETTERS.get(exchange), self._capture.script
        for tr in trs:
            stream = self._stream_of.get(f"{tr}:{letter}{stock.code}")
            recorded = f"{tr}:{letter}{stock.recorded}"
            if (tr[0] if tr in PADDED else "") == letter and stream is not None and recorded in script.names:
                positions = script.positions[script.names.index(recorded)]
                played = bisect.bisect_left(positions, self._play.point(stream))
                return [self._capture.frames[position] for position in positions[:played]]
        return []


PAGE_ROWS = 20
_LETTERS = {"K": "", "N": "N", "U": "U"}
_COUNTS = ("mdvolume", "mdchecnt", "msvolume", "mschecnt")
#: exchange -> (prefix of the sizes in t1101 or t8450, prefix of those in its frames)
_SIZES = {
    "K": (("", ""),),
    "N": (("", "none_"), ("nxt_", ""), ("unx_", "")),
    "U": (("", "krx_"), ("nxt_", "nxt_"), ("unx_", "unt_")),
}


def _row(frame: Frame) -> dict[str, object]:
    """Return a trade's frame as a row of t8454."""
    body = frame.body
    whole = {name: _number(body.get(name, "")) for name in ("price", "change", "cvolume", "volume", *_COUNTS)}
    texts = {name: body.get(name, "") for name in ("chetime", "sign", "exchname")}
    return {**texts, **whole}


def refused(code: str) -> Answer:
    """Return a gateway's refusal of a TR: HTTP 500 with a code, as that of too many calls is."""
    return Answer(500, orjson.dumps({"rsp_cd": code, "rsp_msg": TEXTS[code]}))


def denied(code: str) -> Answer:
    """Return the refusal of a token."""
    return Answer(403, orjson.dumps({"error_description": TEXTS[code], "error_code": code}))


def _in_block(body: bytes, tr: str) -> Mapping[str, Any]:
    try:
        block = orjson.loads(body)[f"{tr}InBlock"]
    except (ValueError, KeyError, TypeError):
        return {}
    return block if isinstance(block, dict) else {}


def _number(text: object) -> int:
    digits = str(text).strip()
    return int(digits) if digits.isdecimal() else 0
