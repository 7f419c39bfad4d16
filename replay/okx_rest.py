"""What an OKX stand-in answers by REST. Source: venues/okx.md, sections 2, 3 and 7."""

import time
from collections import defaultdict, deque
from collections.abc import Callable, Mapping
from typing import Any

import orjson

from replay.okx_capture import BOOKS, OkxCapture, Symbol, cloned_entry
from replay.venue import Answer

WINDOW_S = 2.0
#: path -> requests of one client in WINDOW_S
LIMITS = {
    "/api/v5/public/instruments": 20,  # for each instType
    "/api/v5/public/underlying": 20,
    "/api/v5/public/time": 10,
    "/api/v5/market/books": 40,
    "/api/v5/market/history-trades": 20,
    "/api/v5/market/tickers": 20,
}
KINDS = ("SPOT", "MARGIN", "SWAP", "FUTURES", "OPTION", "EVENTS")
MAX_LEVELS = 400
MAX_TRADES = 100


class _Wrong(Exception):
    """A request that is answered with an error in the body, HTTP status 200 or 400."""

    def __init__(self, code: str, text: str, status: int = 400) -> None:
        super().__init__(text)
        self.answer = error_answer(status, code, text)


def error_answer(status: int, code: str, text: str) -> Answer:
    """Return an error in the venue's form."""
    return Answer(status, orjson.dumps({"code": code, "data": [], "msg": text}))


class OkxRest:
    """The REST side.

    present  stream -> its book as it is
    past     stream -> all its messages up to now
    """

    def __init__(
        self,
        capture: OkxCapture,
        symbols: Mapping[str, Symbol],
        present: Callable[[int], bytes | None],
        past: Callable[[int], list[bytes]],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._capture = capture
        self._symbols = symbols
        self._present = present
        self._past = past
        self._clock = clock
        self._asked_s: dict[tuple[str, str, str], deque[float]] = defaultdict(deque)
        self._paths: Mapping[str, Callable[[Mapping[str, str], int], list[Any]]] = {
            "/api/v5/public/time": self._time,
            "/api/v5/public/instruments": self._instruments,
            "/api/v5/public/underlying": self._underlying,
            "/api/v5/market/books": self._book,
            "/api/v5/market/history-trades": self._trades,
            "/api/v5/market/tickers": self._tickers,
        }
        self.ended: set[str] = set()  # instruments that are listed no more

    def answer(self, path: str, query: Mapping[str, str], client: str, now_ns: int) -> Answer:
        """Answer a GET of `client` at recording time `now_ns` (since the epoch)."""
        serve = self._paths.get(path)
        if serve is None:
            return error_answer(404, "404", "Not Found")
        if not self._admits(client, path, query.get("instType", "") if path in LIMITS else ""):
            return error_answer(429, "50011", "Too Many Requests")
        try:
            return Answer(200, orjson.dumps({"code": "0", "data": serve(query, now_ns), "msg": ""}))
        except _Wrong as wrong:
            return wrong.answer

    def _admits(self, client: str, path: str, kind: str) -> bool:
        now_s = self._clock()
        asked_s = self._asked_s[client, path, kind]
        while asked_s and now_s - asked_s[0] >= WINDOW_S:
            asked_s.popleft()
        if len(asked_s) >= LIMITS[path]:
            return False
        asked_s.append(now_s)
        return True

    def _time(self, query: Mapping[str, str], now_ns: int) -> list[Any]:  # noqa: ARG002  (takes none)
        return [{"ts": str(now_ns // 1_000_000)}]

    def entries(self) -> list[dict[str, Any]]:
        """Return all instruments that are listed."""
        return [
            cloned_entry(entry, symbol.text) if symbol.text != symbol.recorded else entry
            for symbol in self._symbols.values()
            if symbol.text not in self.ended
            for entry in (self._capture.entry(symbol.recorded),)
        ]

    def _instruments(self, query: Mapping[str, str], now_ns: int) -> list[Any]:  # noqa: ARG002
        kind = _kind(query)
        family = query.get("instFamily") or query.get("uly", "")
        if kind == "OPTION" and not family:
            raise _Wrong("50014", "Parameter instFamily can not be empty.")
        asked = query.get("instId", "")
        return [
            entry
            for entry in self.entries()
            if entry["instType"] == kind
            and family in ("", family_of(entry))
            and asked in ("", entry["instId"])
        ]

    def _underlying(self, query: Mapping[str, str], now_ns: int) -> list[Any]:  # noqa: ARG002
        kind = _kind(query)
        return [sorted({entry["uly"] for entry in self.entries() if entry["instType"] == kind})]

    def _symbol(self, query: Mapping[str, str]) -> Symbol:
        symbol = self._symbols.get(query.get("instId", ""))
        if symbol is None or symbol.text in self.ended:
            raise _Wrong("51001", "Instrument ID, Instrument ID code, or Spread ID doesn't exist.", 200)
        return symbol

    def _trades(self, query: Mapping[str, str], now_ns: int) -> list[Any]:  # noqa: ARG002
        """Answer with the trades before id `after`, newest first."""
        stream = self._symbol(query).stream("trades")
        after, limit = query.get("after", ""), query.get("limit", str(MAX_TRADES))
        if not limit.isdecimal() or (after and not after.isdecimal()):
            raise _Wrong("51000", "Parameter after error")
        if stream is None:
            return []
        rows = {
            int(row["tradeId"]): row
            for message in self._past(stream)
            for row in orjson.loads(message)["data"]
        }
        before = [rows[number] for number in sorted(rows, reverse=True) if not after or number < int(after)]
        return before[: min(int(limit), MAX_TRADES)]

    def _book(self, query: Mapping[str, str], now_ns: int) -> list[Any]:
        symbol = self._symbol(query)
        levels = query.get("sz", "1")
        if not (levels.isascii() and levels.isdigit() and 1 <= int(levels) <= MAX_LEVELS):
            raise _Wrong("51000", "Parameter sz error")
        stream = symbol.stream(BOOKS)
        present = self._present(stream) if stream is not None else None
        if present is None:
            return [{"asks": [], "bids": [], "ts": str(now_ns // 1_000_000)}]
        data = orjson.loads(present)["data"][0]
        book = {side: data[side][: int(levels)] for side in ("asks", "bids")} | {"ts": data["ts"]}
        return [book | ({"seqId": data["seqId"]} if "seqId" in data else {})]

    def _tickers(self, query: Mapping[str, str], now_ns: int) -> list[Any]:
        """Answer with the last recorded ticker of each instrument, the first where there was none yet."""
        kind = _kind(query)
        script = self._capture.script
        rows = []
        for symbol in self._symbols.values():
            recorded = self._capture.stream_of.get(f"tickers:{symbol.recorded}")
            if recorded is None or self._capture.entry(symbol.recorded)["instType"] != kind:
                continue
            positions = script.positions[recorded]
            played = [at for at in positions if script.start_ns + script.times_ns[at] <= now_ns]
            said = orjson.loads(symbol.renamed(script.payloads[(played or positions[:1])[-1]]))
            rows.append(said["data"][0])
        return rows


def family_of(entry: Mapping[str, Any]) -> str:
    """Return the family of a listed instrument; in 2021 and 2022 its underlying stood for it."""
    return str(entry.get("instFamily") or entry["uly"])


def _kind(query: Mapping[str, str]) -> str:
    kind = query.get("instType", "")
    if not kind:
        raise _Wrong("50014", "Parameter instType can not be empty.")
    if kind not in KINDS:
        raise _Wrong("51000", "Parameter instType error")
    return kind
