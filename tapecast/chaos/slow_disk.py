"""A command on a disk whose fsync takes long: python -m tapecast.chaos.slow_disk SECONDS WORDS."""

import os
import sys
import time


def main() -> None:
    """Run the command."""
    seconds = float(sys.argv[1])
    real = os.fsync

    def slow(descriptor: int) -> None:
        time.sleep(seconds)
        real(descriptor)

    os.fsync = slow  # type: ignore[assignment]
    sys.argv[1:] = sys.argv[2:]
    from tapecast.cli import main as tapecast

    tapecast()


if __name__ == "__main__":
    main()
