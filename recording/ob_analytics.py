"""Bitstamp's orders and trades as ob-analytics keeps them: `<pair>_orders.csv` and `<pair>_trades.csv`.

A row of orders tells of one event of `live_orders_<pair>`, a row of trades one of `live_trades_<pair>`; both
are read back into the venue's messages. Rows that share the first `exchange_timestamp` are the REST book from
which the recorder began; rows whose two times are equal are its own closing of what was left, no messages.
Times are milliseconds. Format: recordings/README.md, "True order-by-order data".
"""

import csv
import heapq
import re
from collections.abc import Iterable, Iterator
from decimal import Decimal
from pathlib import Path
from typing import Final

from recording.events import CaptureError, Event, Opened, Received, Response
from recording.files import numbered_lines

ORDERS: Final = b"id,timestamp,exchange_timestamp,price,volume,action,direction"
TRADES: Final = b"trade_id,timestamp,exchange_timestamp,price,amount,buy_order_id,sell_order_id,side"
WS_URL: Final = "wss://ws.bitstamp.net/"
REST_URL: Final = "https://www.bitstamp.net/api/v2/order_book/%s/?group=2"
NAME: Final = re.compile(r"(?P<capture>(?:.+_)?(?P<pair>[a-z0-9]+))_(?:orders|trades)\.csv(?:\.gz|\.xz)?")

_NS_PER_MS = 1_000_000
_SIDES = {"bid": 0, "ask": 1, "buy": 0, "sell": 1}


def is_ob_analytics(line: bytes) -> bool:
    """Return whether `line` is the first of such a file."""
    return line in (ORDERS, TRADES)


def read(path: Path) -> Iterator[Event]:
    """Yield the events of one file by receive time. Raises CaptureError."""
    named = NAME.fullmatch(path.name)
    if named is None:
        raise CaptureError(f"{path}: no pair in the name; expected <pair>_orders.csv or <pair>_trades.csv")
    lines = numbered_lines(path)
    _, head = next(lines)
    rows = _rows(path, lines)
    if head == TRADES:
        yield from (_trade(named["pair"], row) for row in rows)
        return
    first = next(rows, None)
    if first is None:
        raise CaptureError(f"{path}: no rows; expected order events")
    book, later = [first], iter(rows)
    for row in later:
        if row[2] != first[2]:
            break
        book.append(row)
    else:
        row = []
    answer = _book(named["pair"], book)
    live = (row for row in _chain(row, later) if row[1] != row[2])
    messages: Iterator[Event] = (_order(named["pair"], row) for row in live)
    opened = Opened(int(row[1]) * _NS_PER_MS if row else answer.ts_recv_ns, WS_URL)
    yield opened
    answers: list[Event] = [answer]
    yield from heapq.merge(messages, answers, key=lambda event: event.ts_recv_ns)


def _rows(path: Path, lines: Iterable[tuple[int, bytes]]) -> Iterator[list[str]]:
    """Yield the columns of rows whose numbers are numbers. Raises CaptureError."""
    for number, line in lines:
        row = next(csv.reader([line.decode(errors="replace")]))
        good = len(row) in (7, 8) and all(column.isdecimal() for column in row[:3]) and row[-1] in _SIDES
        try:
            prices = [Decimal(column) for column in row[3:5]] if good else []
        except ArithmeticError:
            prices = []
        if not (prices and all(price.is_finite() and price >= 0 for price in prices)):
            shown = line[:80].decode(errors="replace")
            raise CaptureError(f"{path}:{number}: {shown!r}; expected an order event or a trade")
        yield row


def _chain(row: list[str], rows: Iterator[list[str]]) -> Iterator[list[str]]:
    if row:
        yield row
    yield from rows


def _plain(text: str, decimals: int | None = None) -> str:
    """Return a number in plain notation, with so many decimals or as many as it needs."""
    number = Decimal(text)
    if decimals is not None:
        return f"{number:.{decimals}f}"
    return f"{number.normalize():f}"


def _order(pair: str, row: list[str]) -> Received:
    number, recv_ms, event_ms, price, volume, action, direction = row
    price, volume = _plain(price), _plain(volume, 8)
    message = (
        f'{{"data":{{"id":{number},"id_str":"{number}","order_type":{_SIDES[direction]},'
        f'"datetime":"{event_ms[:-3]}","microtimestamp":"{event_ms}000","amount":{volume},'
        f'"amount_str":"{volume}","price":{price},"price_str":"{price}"}},'
        f'"channel":"live_orders_{pair}","event":"order_{action}"}}'
    )
    return Received(int(recv_ms) * _NS_PER_MS, message.encode(), WS_URL)


def _trade(pair: str, row: list[str]) -> Received:
    number, recv_ms, event_ms, price, amount, buy, sell, side = row
    price, amount = _plain(price), _plain(amount, 8)
    message = (
        f'{{"data":{{"id":{number},"timestamp":"{event_ms[:-3]}","amount":{amount},"amount_str":"{amount}",'
        f'"price":{price},"price_str":"{price}","type":{_SIDES[side]},"microtimestamp":"{event_ms}000",'
        f'"buy_order_id":{buy},"sell_order_id":{sell}}},"channel":"live_trades_{pair}","event":"trade"}}'
    )
    return Received(int(recv_ms) * _NS_PER_MS, message.encode(), WS_URL)


def _book(pair: str, rows: list[list[str]]) -> Response:
    """Return the order book, an order a row, best price first, as `group=2` gives it."""
    sides: tuple[list[list[str]], list[list[str]]] = ([], [])
    for row in rows:
        sides[_SIDES[row[6]]].append(row)
    sides[0].sort(key=lambda row: -Decimal(row[3]))
    sides[1].sort(key=lambda row: Decimal(row[3]))
    bids, asks = (
        ",".join(f'["{_plain(row[3])}","{_plain(row[4], 8)}","{row[0]}"]' for row in side) for side in sides
    )
    event_ms = rows[0][2]
    body = (
        f'{{"timestamp":"{event_ms[:-3]}","microtimestamp":"{event_ms}000","bids":[{bids}],"asks":[{asks}]}}'
    )
    return Response(int(rows[0][1]) * _NS_PER_MS, REST_URL % pair, body.encode())
