# mypy: disable-error-code="import-not-found"
"""cryptofeed's handler of Binance futures, alone: a message to its callbacks, its book kept.

A program for an environment of its own: `python peer_cryptofeed.py FOLDER`, see `tapecast.bench.peers`.
Prints `{"cost": CPU µs a message}` of the second pass.
"""

import asyncio
import json
import sys
import time
from pathlib import Path

from cryptofeed.defines import L2_BOOK, TICKER
from cryptofeed.exchanges import BinanceFutures
from cryptofeed.symbols import Symbols


class Recorded:
    """Answers REST with the recorded snapshot."""

    def __init__(self, snapshot: str) -> None:
        self.snapshot = snapshot

    async def read(self, _address: str) -> str:
        """Return it, whatever is asked for."""
        return self.snapshot


class Callbacks:
    """Counts them."""

    def __init__(self) -> None:
        self.n = 0

    async def take(self, _said: object, _receipt_timestamp: float) -> None:
        """Take one."""
        self.n += 1


async def measure(folder: Path) -> float:
    """Return CPU µs a message."""
    mapping, info = BinanceFutures._parse_symbol_data(json.loads((folder / "exchange_info.json").read_text()))  # noqa: SLF001
    Symbols.set(BinanceFutures.id, mapping, info)
    symbols = [name for name in mapping if name.endswith("-PERP")]
    messages = (folder / "messages").read_text().splitlines()
    for _ in range(2):
        callbacks = Callbacks()
        feed = BinanceFutures(
            symbols=symbols,
            channels=[L2_BOOK, TICKER],
            callbacks={L2_BOOK: callbacks.take, TICKER: callbacks.take},
        )
        feed.http_conn = Recorded((folder / "snapshot.json").read_text())
        begun = time.process_time()
        for message in messages:
            await feed.message_handler(message, None, 0.0)
        taken = time.process_time() - begun
        assert callbacks.n > 0.9 * len(messages), f"{callbacks.n} callbacks for {len(messages)} messages"
    return taken / len(messages) * 1e6


print(json.dumps({"cost": asyncio.run(measure(Path(sys.argv[1])))}))
