"""Bitstamp's books by difference: `diff_order_book` tells changed levels, by their absolute sizes."""

from feeder.batch import Batch
from feeder.venues.bitstamp_books import Book, Held
from feeder.venues.bitstamp_messages import Diff, Event, Snapshot, read_diff


class DiffBook(Book[Diff]):
    """One instrument's book, level by level."""

    group = 1
    events = frozenset(("data",))
    joins_us = 1

    __slots__ = ()

    def read(self, event: Event) -> Diff:
        """Return what an event says. Raises VenueError."""
        return read_diff(bytes(event.data))

    def publish(self, held: Held[Diff], ts_recv_ns: int, out: Batch) -> None:
        """Append changed levels. Raises VenueError."""
        micros, _, diff = held
        self.append(micros, ts_recv_ns, bytes(diff.bids), bytes(diff.asks), out)

    def publish_snapshot(self, said: Snapshot, ts_recv_ns: int, out: Batch) -> None:
        """Append a whole book. Raises VenueError."""
        micros = int(said.microtimestamp)
        self.append(micros, ts_recv_ns, bytes(said.bids), bytes(said.asks), out, snapshot=True)
