"""Bitstamp's books by difference: `diff_order_book` tells changed levels, by their absolute sizes."""

from feeder.batch import Batch
from feeder.venues.bitstamp_books import Book
from feeder.venues.bitstamp_messages import Event, Snapshot, read_diff


class DiffBook(Book):
    """One instrument's book, level by level."""

    group = 1
    events = frozenset(("data",))
    joins_us = 1

    __slots__ = ()

    def micros(self, event: Event) -> int:
        """Return the venue's time of an event. Raises VenueError."""
        return int(read_diff(bytes(event.data)).microtimestamp)

    def publish(self, event: Event, micros: int, ts_recv_ns: int, out: Batch) -> None:
        """Append changed levels. Raises VenueError."""
        diff = read_diff(bytes(event.data))
        self.append(micros, ts_recv_ns, bytes(diff.bids), bytes(diff.asks), out)

    def publish_snapshot(self, said: Snapshot, ts_recv_ns: int, out: Batch) -> None:
        """Append a whole book. Raises VenueError."""
        micros = int(said.microtimestamp)
        self.append(micros, ts_recv_ns, bytes(said.bids), bytes(said.asks), out, snapshot=True)
