"""A publisher's desk without tape and sockets: batches in, frames out as a subscriber would see them."""

from collections.abc import Callable, Sequence

import numpy as np
import pytest

from feeder.batch import Batch
from feeder.framing import DONE, NEED_ROOM, WRITER, frame_batch
from market_types.instruments import Instrument
from udp_protocol.datagram import walk
from udp_protocol.frame import Frame


class Desk:
    """A batch, a writer's state and a segment of memory; frames come back as a subscriber would see them."""

    def __init__(
        self, instruments: Sequence[Instrument], *, segment_bytes: int = 2**20, max_datagram: int = 1360
    ) -> None:
        self.batch = Batch(self._drain)
        self.state = np.zeros(1, WRITER)
        writer = self.state[0]
        writer["session_id"], writer["venue_id"], writer["row"] = 1_763_683_199, 1, -1
        writer["max_datagram"] = max_datagram
        writer["next_seq"][:] = 1
        for instrument in instruments:
            writer["channel_of"][instrument.number] = instrument.channel
            writer["kind_of"][instrument.number] = instrument.kind
        self.segment_bytes = segment_bytes
        self.segment = np.zeros(segment_bytes, np.uint8)
        self.datagrams: list[bytes] = []
        self.rolled = 0

    def _drain(self, batch: Batch) -> None:
        self.publish()

    def publish(self, now_ns: int = 1000) -> None:
        writer = self.state[0]
        while True:
            status = frame_batch(self.batch.block, self.state, self.segment, now_ns)
            for at, size in zip(writer["out_at"][: writer["n_out"]], writer["out_len"], strict=False):
                self.datagrams.append(self.segment[at : at + size].tobytes())
            writer["n_out"] = 0
            if status == DONE:
                break
            if status == NEED_ROOM:
                self.segment = np.zeros(self.segment_bytes, np.uint8)
                writer["tape_at"] = 0
                self.rolled += 1
        self.batch.clear()

    @property
    def frames(self) -> list[Frame]:
        return [frame for datagram in self.datagrams for frame in walk(datagram, channel=None)]


@pytest.fixture(scope="session")
def make_desk() -> Callable[..., Desk]:
    """Return the Desk class."""
    return Desk
