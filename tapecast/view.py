"""What the demo shows: the books as they are now, the flow, and whether anything is wrong."""

from collections import Counter, deque
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from market_types.decimals import to_text
from market_types.enums import NULL_PRICE, MsgType, VenueState
from market_types.instruments import Instrument
from tapecast.checking import BboCheck
from tapecast.folding import Folding

WINDOW_NS = 2_000_000_000
MAX_ROWS = 20


class Numbers:
    """What flowed, for rates. status is the root of the last VENUE_STATUS."""

    def __init__(self) -> None:
        self.status: Any = None
        self.trades: Counter[int] = Counter()
        self.updates: Counter[int] = Counter()
        self.total = 0

    def count(self, msg_type: int, symbol_id: int) -> None:
        """Count one frame."""
        self.total += 1
        if msg_type == MsgType.TRADE:
            self.trades[symbol_id] += 1
        elif msg_type in (MsgType.L2_DELTA, MsgType.L2_SNAPSHOT):
            self.updates[symbol_id] += 1


class DemoView:
    """Draws the state of a Folding."""

    def __init__(
        self, folding: Folding, check: BboCheck, numbers: Numbers, venue: str, *, replayed: bool
    ) -> None:
        self._folding = folding
        self._check = check
        self._numbers = numbers
        self._venue = venue
        self._replayed = replayed
        self._past: deque[tuple[int, int]] = deque()
        self._live: Live | None = None

    @contextmanager
    def live(self, *, enabled: bool) -> Iterator[None]:
        """Show it on stdout while the block runs, if enabled."""
        if not enabled:
            yield
            return
        with Live(console=Console(), auto_refresh=False, transient=False) as self._live:
            yield

    def refresh(self, now_ns: int) -> None:
        """Draw it anew."""
        self._past.append((now_ns, self._numbers.total))
        while now_ns - self._past[0][0] > WINDOW_NS and len(self._past) > 2:
            self._past.popleft()
        if self._live is not None:
            self._live.update(self.draw(), refresh=True)

    def _frames_per_s(self) -> float:
        (then_ns, then), (now_ns, now) = self._past[0], self._past[-1]
        return (now - then) / ((now_ns - then_ns) / 1e9) if now_ns > then_ns else 0.0

    def draw(self) -> Panel:
        """Return the whole screen."""
        mark = (
            Text(" REPLAY ", style="bold black on yellow")
            if self._replayed
            else Text(" LIVE ", style="bold white on green")
        )
        title = Text.assemble(mark, "  tapecast demo  ", (f"{self._venue} ➜ tape ➜ multicast ➜ books", "dim"))
        return Panel(
            Group(self._books(), self._flow()),
            title=title,
            title_align="left",
            border_style="cyan",
            padding=(0, 1),
        )

    def _books(self) -> Table:
        table = Table(expand=True, box=None, header_style="bold cyan", pad_edge=False)
        table.add_column("instrument")
        for name in ("bid qty", "bid", "ask", "ask qty", "spread bp", "levels", "updates", "trades"):
            table.add_column(name, justify="right")
        table.add_column("book")
        for instrument in self._folding.chosen(())[:MAX_ROWS]:
            table.add_row(*self._row(instrument))
        return table

    def _row(self, instrument: Instrument) -> list[Text | str]:
        symbol_id = instrument.symbol_id
        updates, trades = str(self._numbers.updates[symbol_id]), str(self._numbers.trades[symbol_id])
        if not self._folding.valid(symbol_id):
            return [instrument.name, "", "", "", "", "", "", updates, trades, Text("waiting", style="yellow")]
        book = self._folding.books[symbol_id]
        bid_px, bid_qty, ask_px, ask_qty = book.best()
        spread = ""
        if NULL_PRICE not in (bid_px, ask_px) and bid_px + ask_px:
            spread = f"{(ask_px - bid_px) / ((ask_px + bid_px) / 2) * 1e4:.2f}"
        return [
            instrument.name,
            to_text(bid_qty, book.qty_exp),
            Text(_price(bid_px, book.px_exp), style="green"),
            Text(_price(ask_px, book.px_exp), style="red"),
            to_text(ask_qty, book.qty_exp),
            spread,
            str(len(book)),
            updates,
            trades,
            Text("valid", style="bold green"),
        ]

    def _flow(self) -> Table:
        grid = Table.grid(expand=True, padding=(0, 2))
        for _ in range(4):
            grid.add_column()
        folding, check, status = self._folding, self._check, self._numbers.status
        p50, p99 = folding.recv_to_send.quantiles(0.5, 0.99)
        book50, book99 = folding.send_to_book.quantiles(0.5, 0.99)
        gaps = folding.types[MsgType.GAP]
        state = _state(status, replayed=self._replayed)
        links = f"{status.connected}/{status.total} links" if status is not None else ""
        right = Text(
            f"{check.agreed} of {check.checked}",
            style="green" if check.agreed == check.checked else "bold red",
        )
        grid.add_row("", "", "", "")
        grid.add_row(
            Text.assemble(("venue ", "dim"), state, "  ", links),
            Text.assemble(
                ("frames ", "dim"), f"{folding.types.total():,}", f"  {self._frames_per_s():,.0f}/s"
            ),
            Text.assemble(("gaps ", "dim"), _warned(gaps), ("  lost ", "dim"), _warned(folding.lost)),
            Text.assemble(("best = venue's own ", "dim"), right),
        )
        grid.add_row(
            Text.assemble(("messages ", "dim"), f"{status.msgs_in:,}" if status is not None else "0"),
            Text.assemble(("recv→send ", "dim"), f"{_us(p50)}, p99 {_us(p99)}"),
            Text.assemble(("send→book ", "dim"), f"{_us(book50)}, p99 {_us(book99)}"),
            Text("Ctrl-C ends", style="dim"),
        )
        return grid


def _price(mantissa: int, exp: int) -> str:
    """Return a price with all its digits, so that a column of them stays aligned."""
    if mantissa == NULL_PRICE:
        return "-"
    return f"{mantissa / 10**-exp:.{-exp}f}" if exp < 0 else to_text(mantissa, exp)


def _state(status: Any, *, replayed: bool) -> str:  # noqa: ANN401  (a root of VENUE_STATUS or None)
    """Return the venue's state in a word; a recording's venue goes down at its end."""
    if status is None:
        return "connecting"
    if replayed and status.state == VenueState.DOWN:
        return "the recording is over"
    return VenueState(status.state).name.lower()


def _us(ns: int) -> str:
    return f"{ns / 1e3:.0f} µs" if ns < 10_000_000 else f"{ns / 1e6:.0f} ms"


def _warned(number: int) -> Text:
    return Text(f"{number:,}", style="green" if not number else "bold red")
