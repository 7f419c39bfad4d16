"""Writer, keeper and consumers in one process, in a time that jumps from event to event.

The tape is a feeder's own: its records are written again, as they are, when it is their time. What reads,
answers and tells state is the keeper's code, what receives, asks and folds is the consumer's; between them
lie links that lose, double, delay and change. The same seed on the same tape
gives the same run.
"""

import shutil
import tempfile
from pathlib import Path

from market_types.enums import SealAlg
from tapecast.chaos.impairment import NS_PER_S, Faults, Links
from tapecast.chaos.oracle import Oracle
from tapecast.chaos.twin_consumer import Consumer
from tapecast.chaos.twin_keeper import Keeper
from tapecast.chaos.twin_world import BEGIN_NS, World
from tapecast.chaos.twin_writer import Writer


class Twin:
    """One run: a writer that plays a tape, a keeper, and consumers that come and go.

    tape   the folder of the writer whose tape is played
    per_s  frames a second
    """

    def __init__(
        self, tape: Path, oracle: Oracle, *, per_s: float, n_frames: int = 0, memory: Path, disk: Path
    ) -> None:
        self.oracle = oracle
        self.world = World()
        self._base = Path(tempfile.mkdtemp(prefix="twin-", dir=memory))
        self._folder = Path(tempfile.mkdtemp(prefix="twin-", dir=disk))
        self.writer = Writer(self.world, tape, self._base, per_s, n_frames)
        self.keeper = Keeper(self.world, self._base, self._folder)
        self.channels = sorted(
            {channel for channel, session in oracle.logs if session == self.writer.session}
        )
        self.consumers: list[Consumer] = []

    def join(
        self, faults: Faults, seed: int | str, *, from_first: bool = True, by_instrument: bool = False,
        alg: SealAlg = SealAlg.NONE, n_lines: int = 2,
    ) -> Consumer:  # fmt: skip
        """Have a consumer come now."""
        made = Consumer(
            self.world, self.writer, self.keeper, Links(faults, seed, BEGIN_NS), self.oracle, seed,
            channels=self.channels, from_first=from_first, by_instrument=by_instrument, alg=alg,
            n_lines=n_lines,
        )  # fmt: skip
        self.consumers.append(made)
        return made

    def run(self, *, patience_s: float = 12.0) -> None:
        """Play to the end, and on until every consumer has everything, but not for ever."""
        world, writer = self.world, self.writer
        world.run(lambda: writer.ended, 2**62)
        deadline_ns = world.now_ns + int(patience_s * NS_PER_S)
        world.run(lambda: all(consumer.left or consumer.whole for consumer in self.consumers), deadline_ns)

    def close(self) -> None:
        """Give everything back."""
        self.writer.close()
        self.keeper.close()
        shutil.rmtree(self._base)
        shutil.rmtree(self._folder)
