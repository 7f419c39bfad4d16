"""Child processes that do not outlive their parent."""

import ctypes
import signal
from collections.abc import Callable

_PR_SET_PDEATHSIG = 1  # Linux, include/uapi/linux/prctl.h


def dies_with_parent(number: signal.Signals) -> Callable[[], None]:
    """Return what a child is to call before it runs (`preexec_fn`): the signal comes when the parent is gone.

    On systems without prctl it does nothing.
    """
    prctl = getattr(ctypes.CDLL(None), "prctl", None)

    def ask() -> None:
        if prctl is not None:
            prctl(_PR_SET_PDEATHSIG, number)

    return ask
