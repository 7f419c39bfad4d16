"""How much a run measures."""

from pathlib import Path

import msgspec

ROUNDS, QUICK_ROUNDS = 5, 1


class Scale(msgspec.Struct, frozen=True):
    """What every benchmark is told.

    recordings  folder of them
    quick       one round on little data: shows that everything runs, and gives no figure worth quoting
    make_peers  install other projects to compare with
    """

    recordings: Path
    quick: bool = False
    make_peers: bool = False

    @property
    def rounds(self) -> int:
        """Return how often each figure is measured."""
        return QUICK_ROUNDS if self.quick else ROUNDS
