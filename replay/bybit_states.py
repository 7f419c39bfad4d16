"""What a Bybit stand-in knows of each topic by itself: what a subscriber is sent first, at any point."""

import bisect
import sys
from collections.abc import Mapping
from typing import Any

import msgspec
import orjson

from replay.book import Levels
from replay.bybit_capture import V5, BybitCapture, split
from replay.history import BookHistory

_Row = dict[str, msgspec.Raw]


class _Data(msgspec.Struct):
    b: Levels
    a: Levels
    u: int


class _Event(msgspec.Struct):
    """A book message of v5."""

    type: str
    data: _Data


class _Rows(msgspec.Struct):
    """The data of a book message of v2, but for an inverse snapshot, which is the rows alone."""

    order_book: list[_Row] = []
    delete: list[_Row] = []
    update: list[_Row] = []
    insert: list[_Row] = []


class _EventV2(msgspec.Struct):
    """A book message of v2."""

    type: str
    data: _Rows | list[_Row]


_read_v5 = msgspec.json.Decoder(_Event).decode
_read_v2 = msgspec.json.Decoder(_EventV2).decode


class States:
    """The state of any recorded stream after the messages below a script position."""

    def __init__(self, capture: BybitCapture) -> None:
        self._capture = capture
        self._payloads = capture.script.payloads
        self._positions = capture.script.positions
        self._books: dict[int, BookHistory] = {}
        self._ids: dict[tuple[int, str], bytes] = {}  # v2: a level's row but for its size, by side and price
        self._tickers: dict[tuple[int, int], tuple[int, dict[str, Any]]] = {}

    def first(self, recorded: int, point: int, served: int) -> list[bytes]:
        """Return what a subscriber of a recorded stream gets at `point`; nothing before its first message.

        served  the stream as it is served, of which clones may stand at several points
        """
        known = split(self._capture.protocol, self._capture.script.names[recorded])
        assert known is not None
        channel, _ = known
        if self._capture.protocol != V5:
            return self._first_v2(recorded, channel, point)
        if channel == "orderbook.1":
            return self._last(recorded, point)
        if channel.startswith("orderbook."):
            book = self.book(recorded, point)
            return [] if book is None else [orjson.dumps(book)]
        return self._ticker(recorded, point, served) if channel == "tickers" else []

    def _last(self, recorded: int, point: int) -> list[bytes]:
        positions = self._positions[recorded]
        played = bisect.bisect_left(positions, point)
        return [self._payloads[positions[played - 1]]] if played else []

    # books

    def book(self, recorded: int, point: int) -> dict[str, Any] | None:
        """Return a book of v5 as a snapshot with its keys as recorded, None before the first one."""
        moment = self._history(recorded).at(point, sys.maxsize)
        if moment is None:
            return None
        said: dict[str, Any] = orjson.loads(self._payloads[moment.position])
        said["type"] = "snapshot"
        said["data"] |= {"b": moment.bids, "a": moment.asks}
        return said

    def _history(self, recorded: int) -> BookHistory:
        if recorded not in self._books:
            history = self._books[recorded] = BookHistory()
            read = self._add_v5 if self._capture.protocol == V5 else self._add_v2
            for position, message in self._capture.messages(recorded):
                try:
                    read(history, position, message)
                except msgspec.MsgspecError:
                    continue  # garbled when it was recorded
            history.sort()
        return self._books[recorded]

    def _add_v5(self, history: BookHistory, position: int, message: bytes) -> None:
        event = _read_v5(message)
        anew = event.type == "snapshot" or event.data.u == 1
        (history.snapshot if anew else history.change)(position, event.data.b, event.data.a)

    # v2

    def _first_v2(self, recorded: int, channel: str, point: int) -> list[bytes]:
        if channel == "trade" and self._capture.market == "linear":  # its last trade; inverse pushes none
            return self._last(recorded, point) or self._capture.cached.get(
                self._capture.script.names[recorded], []
            )
        if channel != "orderBookL2_25":
            return []
        moment = self._history(recorded).at(point, sys.maxsize)
        if moment is None:
            return []
        rows = [
            b'%b,"size":%b}' % (self._ids[side, price], size.encode())
            for side, levels in ((0, moment.bids[::-1]), (1, moment.asks))
            for price, size in levels
        ]
        data = b"[%b]" % b",".join(rows)
        if self._capture.market == "linear":
            data = b'{"order_book":%b}' % data
        last = orjson.loads(self._payloads[moment.position])
        head = {"topic": last["topic"], "type": "snapshot", "data": orjson.Fragment(data)}
        return [orjson.dumps({**last, **head})]

    def _add_v2(self, history: BookHistory, position: int, message: bytes) -> None:
        event = _read_v2(message)
        data = event.data
        rows = data if isinstance(data, list) else data.order_book + data.update + data.insert
        deleted = [] if isinstance(data, list) else data.delete
        sides: tuple[Levels, Levels] = ([], [])
        for row in [*deleted, *rows]:
            side = 0 if bytes(row["side"]) == b'"Buy"' else 1
            price = bytes(row["price"]).strip(b'"').decode()
            size = row.pop("size", b"0")
            self._ids[side, price] = msgspec.json.encode(row)[:-1]
            sides[side].append((price, bytes(size).decode()))
        (history.snapshot if event.type == "snapshot" else history.change)(position, *sides)

    # tickers

    def _ticker(self, recorded: int, point: int, served: int) -> list[bytes]:
        merged = self.ticker(recorded, point, served)
        return [orjson.dumps({**merged, "type": "snapshot"})] if merged else []

    def ticker(self, recorded: int, point: int, served: int) -> Mapping[str, Any]:
        """Return a ticker with all that was said up to `point`, as its last message; empty before the first.

        What a delta leaves out has not changed.
        """
        positions = self._positions[recorded]
        played = bisect.bisect_left(positions, point)
        done, merged = self._tickers.get((recorded, served), (0, {}))
        if done > played:
            done, merged = 0, {}
        for position in positions[done:played]:
            said = orjson.loads(self._payloads[position])
            old = merged.get("data", {}) if said["type"] == "delta" else {}
            merged = {**said, "data": {**old, **said["data"]}}
        self._tickers[recorded, served] = (played, merged)
        return merged
