"""What a capture says in the words of Advanced Trade: its own messages, or those of the Exchange feed.

Source: venues/coinbase.md sections 3 to 8 and single messages of 2026. No continuous capture of Advanced
Trade is known; but both feeds show the same books and trades, under the same trade ids (seen 2026-09). So a
capture of the Exchange feed serves, too, told as Advanced Trade tells it: levels as `l2_data`, trades
collected over 250 ms, figures without those that the Exchange has none of.

Single messages without receive times are played in the order of their own times.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import orjson

from recording import Capture, Event, Received, Response
from replay.coinbase_capture import FeedCapture, Levels, Product, Trade, iso, stream_of
from replay.coinbase_capture import sides as exchange_sides

BOOK, TRADES, TICKER = "level2", "market_trades", "ticker"
STEP_NS = 10_000_000  # between messages without receive times
_UNDATED_NS = 86_400_000_000_000  # receive times below are none
_COLLECTED_NS = 250_000_000  # how long trades wait for one another
_TRADE_ID = re.compile(rb'"trade_id":"(\d+)"')
_SIDES = {"buy": "bid", "sell": "offer"}
#: figure of Advanced Trade -> of the Exchange
_FIGURES = {
    "price": "price",
    "volume_24_h": "volume_24h",
    "low_24_h": "low_24h",
    "high_24_h": "high_24h",
    "best_bid": "best_bid",
    "best_ask": "best_ask",
    "best_bid_quantity": "best_bid_size",
    "best_ask_quantity": "best_ask_size",
}

Part = Mapping[str, Any]  # one of the `events` of a message


def told(channel: str, now_ns: int, *events: Part) -> bytes:
    """Return a message of a channel. Its number, which is its connection's, stands open as 0."""
    said = {"channel": channel, "timestamp": iso(now_ns), "sequence_num": 0, "events": events}
    return orjson.dumps(said)


def sides(message: bytes) -> tuple[Levels, Levels]:
    """Return the (bids, asks) of a book's message, in their order."""
    both: dict[str, Levels] = {"bid": [], "offer": []}
    for event in orjson.loads(message)["events"]:
        for level in event["updates"]:
            both[level["side"]].append((level["price_level"], level["new_quantity"]))
    return both["bid"], both["offer"]


def levels_event(kind: str, product: str, levels: Iterable[tuple[str, str, str]], time: str) -> Part:
    """Return an event of a book: `snapshot` or `update`, of (bid or offer, price, quantity)."""
    updates = [
        {"side": side, "event_time": time, "price_level": price, "new_quantity": qty}
        for side, price, qty in levels
    ]
    return {"type": kind, "product_id": product, "updates": updates}


def lowered(message: bytes, base: int) -> bytes:
    """Return a message whose trade ids are lower by so much."""
    return _TRADE_ID.sub(lambda found: b'"trade_id":"%d"' % max(0, int(found[1]) - base), message)


class AdvancedCapture(FeedCapture):
    """A capture in the words of Advanced Trade."""

    _expected = "a message of Advanced Trade, with channel and events, or one of the Exchange feed"
    books = BOOK

    def __init__(self, capture: Capture, *, whole: bool) -> None:
        self._waiting: dict[str, list[dict[str, Any]]] = {}  # trades of a product, to be told together
        self._tell_ns = 0  # when those that wait are told
        super().__init__(capture, whole=whole)

    def _take_all(self, events: Sequence[Event]) -> None:
        if events and events[-1].ts_recv_ns < _UNDATED_NS:
            events = _in_order(events)
        super()._take_all(events)
        self._tell_trades()

    def _answer(self, event: Response) -> None:
        """Take a list of products: of Advanced Trade, or the Exchange's told as it would."""
        path = event.url.partition("?")[0].rstrip("/")
        if path.endswith("/market/products"):
            self.listed += orjson.loads(event.body)["products"]
        elif path.endswith("/products"):
            self.listed += [_row(entry) for entry in orjson.loads(event.body)]

    def _take(self, event: Received) -> None:
        if self._waiting and event.ts_recv_ns >= self._tell_ns:
            self._tell_trades()
        said = orjson.loads(event.payload)
        if "channel" in said:
            self._own(said, event.ts_recv_ns)
        else:
            self._of_the_exchange(said, event)

    def _add(self, channel: str, product: Product, ts_recv_ns: int, message: bytes) -> None:
        self.script.add(ts_recv_ns, stream_of(channel, product.text), message)

    # its own messages

    def _own(self, said: dict[str, Any], ts_recv_ns: int) -> None:
        """Take a message apart by product; what is about a connection is the stand-in's own."""
        for event in said["events"]:
            match said["channel"]:
                case "l2_data":
                    self._book(event, said, ts_recv_ns)
                case "market_trades":
                    self._trades(_by_product(event, "trades"), said, ts_recv_ns)
                case "ticker":
                    self._ticker(_by_product(event, "tickers"), said, ts_recv_ns)

    def _book(self, event: Part, said: Mapping[str, Any], ts_recv_ns: int) -> None:
        product, message = self.product(event["product_id"]), _alone(said, event)
        if event["type"] == "snapshot" and not product.snapshot:
            product.snapshot = message
            if not self._whole:
                return
        self._add(BOOK, product, ts_recv_ns, message)

    def _trades(self, parts: Mapping[str, Part], said: Mapping[str, Any], ts_recv_ns: int) -> None:
        """Take trades; those of a snapshot are past ones, which a subscription is answered with."""
        for text, event in parts.items():
            product = self.product(text)
            past = event["type"] == "snapshot"
            self._remember(product, event["trades"], -1 if past else len(self.script))
            if not past:
                self._add(TRADES, product, ts_recv_ns, _alone(said, event))

    def _ticker(self, parts: Mapping[str, Part], said: dict[str, Any], ts_recv_ns: int) -> None:
        for text, event in parts.items():
            product, message = self.product(text), _alone(said, event)
            if event["type"] == "snapshot" and TICKER not in product.first:
                product.first[TICKER] = message
            else:
                self._add(TICKER, product, ts_recv_ns, message)

    def _remember(self, product: Product, rows: Iterable[dict[str, Any]], position: int) -> None:
        """Keep trades for REST and for snapshots, each once, oldest first."""
        known = {trade.trade_id for trade in product.trades}
        new = {int(row["trade_id"]): row for row in rows}
        product.trades += [Trade(position, number, new[number]) for number in sorted(new.keys() - known)]

    # those of the Exchange feed

    def _of_the_exchange(self, said: dict[str, Any], received: Received) -> None:
        if said["type"] in ("subscriptions", "error", "heartbeat"):
            return
        now_ns, product = received.ts_recv_ns, self.product(said["product_id"])
        match said["type"]:
            case "snapshot" | "l2update":
                self._exchange_book(said, product, received)
            case "last_match":
                self._remember(product, [_trade(said)], -1)
            case "match":
                if not self._waiting:
                    self._tell_ns = now_ns + _COLLECTED_NS
                self._waiting.setdefault(product.text, []).append(_trade(said))
            case "ticker":
                kind = "update" if TICKER in product.first else "snapshot"
                event = {"type": kind, "tickers": [_figures(said)]}
                self._ticker({product.text: event}, _head("ticker", now_ns), now_ns)

    def _exchange_book(self, said: dict[str, Any], product: Product, received: Received) -> None:
        now_ns = received.ts_recv_ns
        if said["type"] == "l2update":
            levels = [(_SIDES[side], price, qty) for side, price, qty in said["changes"]]
            event = levels_event("update", product.text, levels, said.get("time") or iso(now_ns))
        else:
            bids, asks = exchange_sides(received.payload)
            levels = [("bid", *level) for level in bids] + [("offer", *level) for level in asks]
            event = levels_event("snapshot", product.text, levels, iso(now_ns))
        self._book(event, _head("l2_data", now_ns), now_ns)

    def _tell_trades(self) -> None:
        """Tell the trades that waited, newest first."""
        for text, rows in self._waiting.items():
            event = {"type": "update", "trades": rows[::-1]}
            self._trades({text: event}, _head("market_trades", self._tell_ns), self._tell_ns)
        self._waiting.clear()

    # instruments

    def entries(self) -> dict[str, dict[str, Any]]:
        """Return the recorded products as listed, derived from their messages where no list was recorded."""
        listed = {entry["product_id"]: entry for entry in self.listed}
        return {text: listed.get(text) or self._derived(product) for text, product in self.products.items()}

    def _derived(self, product: Product) -> dict[str, Any]:
        tick, lot = self.steps(product, sides)
        base, _, quote = product.text.partition("-")
        row = _row({"id": product.text, "base_currency": base, "quote_currency": quote,
                    "quote_increment": tick, "base_increment": lot, "status": "online"})  # fmt: skip
        if not product.text.endswith("-PERP-INTX"):
            return row
        terms = {"contract_size": "1", "contract_root_unit": base, "contract_expiry_type": "PERPETUAL"}
        currencies = {"base_currency_id": "", "quote_currency_id": "USDC"}
        return {**row, **currencies, "product_type": "FUTURE", "future_product_details": terms}


def _in_order(events: Sequence[Event]) -> list[Event]:
    """Return single messages by their own times, at regular ones of receipt; REST goes before."""
    answers: list[Event] = [event for event in events if not isinstance(event, Received)]
    messages = [event for event in events if isinstance(event, Received)]
    messages.sort(key=lambda event: _own_time(event.payload))
    return answers + [event._replace(ts_recv_ns=number * STEP_NS) for number, event in enumerate(messages)]


def _own_time(message: bytes) -> str:
    """Return when a message says it was sent; for one that is none, which is told of when it is taken, ""."""
    found = re.search(rb'"(?:timestamp|time)"\s*:\s*"([^"]+?)Z?"', message)
    return found[1].decode() if found else ""


def _head(channel: str, now_ns: int) -> dict[str, Any]:
    return {"channel": channel, "timestamp": iso(now_ns)}


def _alone(said: Mapping[str, Any], event: Part) -> bytes:
    """Return a message with one event of it, its number left open."""
    head = {key: value for key, value in said.items() if key not in ("sequence_num", "events")}
    return orjson.dumps({**head, "sequence_num": 0, "events": [event]})


def _by_product(event: Part, rows: str) -> dict[str, Part]:
    """Return an event's parts, each about one product."""
    parts: dict[str, list[Any]] = {}
    for row in event[rows]:
        parts.setdefault(row["product_id"], []).append(row)
    return {text: {**event, rows: own} for text, own in parts.items()}


def _trade(said: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "product_id": said["product_id"],
        "trade_id": str(said["trade_id"]),
        "price": said["price"],
        "size": said["size"],
        "time": said["time"],
        "side": said["side"].upper(),  # both feeds name the maker's
    }


def _figures(said: Mapping[str, Any]) -> dict[str, Any]:
    figures = {name: said[theirs] for name, theirs in _FIGURES.items() if theirs in said}
    change = {}
    if float(said.get("open_24h") or 0):
        change["price_percent_chg_24_h"] = str(100 * (float(said["price"]) / float(said["open_24h"]) - 1))
    return {"type": "ticker", "product_id": said["product_id"], **figures, **change}


def _row(entry: Mapping[str, Any]) -> dict[str, Any]:
    """Return a spot product of the Exchange's list as Advanced Trade lists it; empty text means absent."""
    flags = ("cancel_only", "limit_only", "post_only", "trading_disabled", "auction_mode")
    return {
        "product_id": entry["id"],
        "price": "",
        "volume_24h": "",
        "base_increment": entry["base_increment"],
        "quote_increment": entry["quote_increment"],
        "price_increment": entry["quote_increment"],
        "base_min_size": entry.get("base_min_size", ""),
        "base_max_size": entry.get("base_max_size", ""),
        "quote_min_size": entry.get("min_market_funds", ""),
        "is_disabled": False,
        "view_only": False,
        "status": entry["status"],
        **{flag: bool(entry.get(flag)) for flag in flags},
        "product_type": "SPOT",
        "product_venue": "CBE",
        "base_currency_id": entry["base_currency"],
        "quote_currency_id": entry["quote_currency"],
        "alias": "",
        "alias_to": [],
        "display_name": entry["id"],
        "approximate_quote_24h_volume": "",
        "fcm_trading_session_details": None,
        "future_product_details": None,
    }
