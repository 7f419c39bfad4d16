# mypy: disable-error-code="import-not-found"
"""nautilus_trader's Binance futures messages, alone: decoded, parsed, its book kept.

A program for an environment of its own: `python peer_nautilus_trader.py FOLDER`, see `tapecast.bench.peers`.
Prints `{"cost": CPU µs a message}` of the second pass.
"""

import json
import sys
import time
from pathlib import Path

import msgspec
from nautilus_trader.adapters.binance.common.schemas.market import (
    BinanceDataMsgWrapper,
    BinanceOrderBookData,
    BinanceOrderBookMsg,
    BinanceQuoteMsg,
)
from nautilus_trader.adapters.binance.futures.schemas.market import BinanceFuturesTradeMsg
from nautilus_trader.model.book import OrderBook
from nautilus_trader.model.enums import BookType
from nautilus_trader.model.identifiers import InstrumentId


def measure(folder: Path) -> float:
    """Return CPU µs a message."""
    instrument = InstrumentId.from_str("BTCUSDT-PERP.BINANCE")
    messages = (folder / "messages").read_bytes().splitlines()
    said = json.loads((folder / "snapshot.json").read_text())
    snapshot = msgspec.convert(
        {"e": "", "E": 0, "s": "", "U": 0, "u": said["lastUpdateId"], "b": said["bids"], "a": said["asks"]},
        BinanceOrderBookData,
    )
    wrapper = msgspec.json.Decoder(BinanceDataMsgWrapper).decode
    book_message = msgspec.json.Decoder(BinanceOrderBookMsg).decode
    quote_message = msgspec.json.Decoder(BinanceQuoteMsg).decode
    trade_message = msgspec.json.Decoder(BinanceFuturesTradeMsg).decode
    for _ in range(2):
        book = OrderBook(instrument, BookType.L2_MBP)
        book.apply_deltas(snapshot.parse_to_order_book_deltas(instrument, 0, snapshot=True))
        begun = time.process_time()
        for message in messages:
            stream = wrapper(message).stream
            if "@bookTicker" in stream:
                quote_message(message).data.parse_to_quote_tick(instrument, 0)
            elif "@trade" in stream:
                trade_message(message).data.parse_to_trade_tick(instrument, 0)
            else:
                book.apply_deltas(book_message(message).data.parse_to_order_book_deltas(instrument, 0))
        taken = time.process_time() - begun
        assert book.best_bid_price() is not None
    return taken / len(messages) * 1e6


print(json.dumps({"cost": measure(Path(sys.argv[1]))}))
