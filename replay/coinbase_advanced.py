"""Coinbase Advanced Trade: the stand-in of one capture. Source: venues/coinbase.md, sections 1 to 8."""

import time
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import orjson

from recording import Capture
from replay.coinbase_advanced_capture import (
    BOOK,
    TICKER,
    TRADES,
    AdvancedCapture,
    levels_event,
    lowered,
    sides,
    told,
)
from replay.coinbase_advanced_session import AdvancedSession, CountedPlay
from replay.coinbase_capture import iso
from replay.coinbase_products import RULES, ProductStandIn
from replay.venue import Answer, Session

_PREFIX = "/api/v3/brokerage"  # of the venue's own address; a client may leave it out here
_PAGE = 100  # past trades, unless fewer are asked for; of a snapshot, too: no number is documented


class AdvancedStandIn(ProductStandIn):
    """The stand-in of one capture, of either feed, in the words of Advanced Trade.

    n_aliases  0, or how many clones of the recorded products to serve in their place, at offsets by `seed`
    Raises CaptureError for a capture that cannot be served.
    """

    market = "advanced"
    protocol = "advanced"
    rules = RULES._replace(messages_per_s=8)

    def __init__(self, capture: Capture, n_aliases: int = 0, seed: int = 0) -> None:
        read = AdvancedCapture(capture, whole=n_aliases > 0)
        super().__init__(read, sides, (BOOK, TRADES, TICKER), connects=8, n_aliases=n_aliases, seed=seed)
        self._counted = CountedPlay(self.play)
        self.play = self._counted
        other = {row["product_id"]: row["alias"] for row in read.listed if row.get("alias")}
        self._aliases = {text: served for text, served in other.items() if served in self._products}
        self._listed = {row["product_id"]: row for row in read.listed}

    # WebSocket

    def connect(self, target: str) -> Session:
        """Return the session of a handshake. Raises Refused beyond 8 a second."""
        self._admit(target)
        asked = {**{text: text for text in self._products}, **self._aliases}
        session = AdvancedSession(asked, self._resolve, self._first, self._now_ns, time.monotonic())
        self._counted.join(session)
        return session

    def _now_ns(self) -> int:
        return self.start_ns + self._counted.time_ns

    def _first(self, channel: str, texts: Sequence[str]) -> bytes:
        """Return the message that tells what products are like at the present point, b"" for nothing."""
        now_ns = self._now_ns()
        match channel:
            case "level2":
                books = [book for text in texts if (book := self._book(text))]
                return told("l2_data", now_ns, *books) if books else b""
            case "market_trades":
                rows = [self._trade(text, *past) for text in texts for past in self._past(text, _PAGE)]
                rows.sort(key=lambda row: str(row["time"]), reverse=True)
                return told(TRADES, now_ns, {"type": "snapshot", "trades": rows}) if rows else b""
            case "ticker":
                figures = [one for text in texts for one in self._figures(text)]
                return told(TICKER, now_ns, {"type": "snapshot", "tickers": figures}) if figures else b""
        return b""

    def _book(self, text: str) -> Mapping[str, Any] | None:
        """Return the event that tells a whole book, None before the first that was recorded."""
        levels = self._books[text].at(self._point(text))
        if levels is not None:
            rows = [("bid", *level) for level in levels[0]] + [("offer", *level) for level in levels[1]]
            return levels_event("snapshot", text, rows, iso(self._now_ns()))
        first = self._products[text].snapshot
        return {**orjson.loads(first)["events"][0], "product_id": text} if first else None

    def _figures(self, text: str) -> list[dict[str, Any]]:
        """Return what a product's ticker told last."""
        last = self._last(TICKER, text, self._products[text])
        return (
            [{**row, "product_id": text} for row in orjson.loads(last)["events"][0]["tickers"]]
            if last
            else []
        )

    # what faults change

    def _lowered(self, text: str, message: bytes) -> bytes:
        return lowered(message, self._bases[text][0]) if text in self._bases else message

    def restart_numbers(self, streams: Collection[int]) -> None:
        """Let trade ids of the streams' products begin anew; the count of a connection goes on."""
        for text in {self._text(stream) for stream in streams}:
            point = self._point(text) - 1
            ids = [trade.trade_id for trade in self._products[text].trades if trade.position < point]
            self._bases[text] = (max(ids, default=0), 0)

    def withheld(self, stream: int) -> None:
        """Take back the number of the message of `stream` that was played last: the venue never said it."""
        self._counted.withheld(stream)

    # REST

    async def rest(self, path: str, query: Mapping[str, str], client: str, now_ns: int) -> Answer:
        """Answer a GET of `client` at recording time `now_ns` (since the epoch)."""
        if refused := self._refused(client):
            return refused
        match path.removeprefix(_PREFIX).strip("/").split("/"):
            case ["time"]:
                said = {
                    "iso": iso(now_ns),
                    "epochSeconds": str(now_ns // 10**9),
                    "epochMillis": str(now_ns // 10**6),
                }
                return Answer(200, orjson.dumps(said))
            case ["market", "products"]:
                return self._products_page(query)
            case ["market", "products", text] if text in self._products or text in self._aliases:
                return Answer(200, orjson.dumps(self._entry(text)))
            case ["market", "products", text, "ticker"] if text in self._products:
                return self._ticker(text, query)
            case ["market", "product_book"] if query.get("product_id") in self._products:
                return self._product_book(query["product_id"], query)
        return _bad(404, "NOT_FOUND", "no such product or call")

    def _products_page(self, query: Mapping[str, str]) -> Answer:
        kind = query.get("product_type", "")
        if kind not in ("", "SPOT", "FUTURE") or not all(
            query.get(name, "0").isdecimal() for name in ("limit", "offset")
        ):
            return _bad(400, "INVALID_ARGUMENT", "product_type, limit or offset")
        rows = [self._entry(text) for text in (*self._products, *self._aliases)]
        rows = [row for row in rows if kind in ("", row["product_type"])]
        first, most = int(query.get("offset", "0")), int(query.get("limit", "0"))
        page = rows[first : first + most] if most else rows[first:]
        return Answer(200, orjson.dumps({"products": page, "num_products": len(page), "pagination": None}))

    def _entry(self, text: str) -> dict[str, Any]:
        """Return a product's row, with its last price and volume; a delisted one trades no more."""
        if text in self._aliases:
            return self._listed[text]
        product = self._products[text]
        entry = dict(self._entries[product.text])
        if text != product.text:
            entry |= _renamed(entry, text)
        for figures in self._figures(text):
            price, volume = figures["price"], figures.get("volume_24_h", "")
            entry |= {"price": price, "volume_24h": volume}
            if volume and not entry.get("approximate_quote_24h_volume"):
                entry["approximate_quote_24h_volume"] = f"{float(volume) * float(price):.2f}"
        if text in self._ended:
            entry |= {"status": "delisted", "trading_disabled": True, "is_disabled": True}
        return entry

    def _trade(self, text: str, trade_id: int, row: Mapping[str, Any]) -> dict[str, Any]:
        return {**row, "product_id": text, "trade_id": str(trade_id)}

    def _ticker(self, text: str, query: Mapping[str, str]) -> Answer:
        """Answer with the newest trades, newest first, sent or not, and the best prices."""
        limit = query.get("limit", str(_PAGE))
        if not limit.isdecimal():
            return _bad(400, "INVALID_ARGUMENT", "limit")
        more = {"bid": "", "ask": "", "exchange": "coinbase"}
        rows = [{**self._trade(text, *past), **more} for past in self._past(text, int(limit))]
        bids, asks = self._levels(text)
        best = {"best_bid": bids[0][0] if bids else "", "best_ask": asks[0][0] if asks else ""}
        return Answer(200, orjson.dumps({"trades": rows, **best}))

    def _levels(self, text: str) -> tuple[list[tuple[str, str]], list[tuple[str, str]]]:
        """Return a book's bids and asks at the present point, best first."""
        event = self._book(text)
        rows = event["updates"] if event else []
        both = [
            [(row["price_level"], row["new_quantity"]) for row in rows if row["side"] == side]
            for side in ("bid", "offer")
        ]
        both[0].sort(key=lambda level: -float(level[0]))
        both[1].sort(key=lambda level: float(level[0]))
        return both[0], both[1]

    def _product_book(self, text: str, query: Mapping[str, str]) -> Answer:
        limit = query.get("limit", "0")
        if not limit.isdecimal():
            return _bad(400, "INVALID_ARGUMENT", "limit")
        bids, asks = (
            [{"price": price, "size": size} for price, size in side[: int(limit) or None]]
            for side in self._levels(text)
        )
        book = {"product_id": text, "bids": bids, "asks": asks, "time": iso(self._now_ns())}
        return Answer(200, orjson.dumps({"pricebook": book}))

    def refusal(self, status: int, retry_after_s: int) -> Answer:
        """Return the venue's own 429 or 503; it has no 418."""
        if status == 429:
            said = {"errors": [{"id": "rate_limit_exceeded", "message": "Too many requests"}]}
            return Answer(status, orjson.dumps(said), {"Retry-After": str(retry_after_s)})
        headers = {"Retry-After": str(retry_after_s)} if status != 503 else {}
        return Answer(status, b'{"error":"unavailable"}', headers)


def _renamed(entry: Mapping[str, Any], text: str) -> dict[str, Any]:
    """Return what a clone's row has of its own."""
    base = text.partition("-")[0]
    renamed: dict[str, Any] = {"product_id": text, "display_name": text, "alias": "", "alias_to": []}
    if entry.get("future_product_details"):
        renamed["future_product_details"] = {**entry["future_product_details"], "contract_root_unit": base}
    else:
        renamed["base_currency_id"] = base
    return renamed


def _bad(status: int, error: str, message: str) -> Answer:
    return Answer(status, orjson.dumps({"error": error, "message": message}))
