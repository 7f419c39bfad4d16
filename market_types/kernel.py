"""The one decorator for numba kernels, and the place of the compiled code.

`NUMBA_CACHE_DIR` must be set before numba is imported: numba fails at import in a read-only installation
without a home, as hardened systemd units are. Only this module and `market_types.atomics` import numba, so
importing `kernel` from here is enough.

numba looks only at the file of the kernel itself to tell whether its compiled code is stale, never at the
files of the kernels it calls. So the cache folder is named by a stamp over the source files that hold kernels
and all they import, since constants are compiled in: after a change of any of them every kernel is compiled
again.
"""

import hashlib
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar, cast

from market_types.places import cache_folder

F = TypeVar("F", bound=Callable[..., object])

_ROOMS = ("market_types", "udp_protocol", "matching_engine", "feeder", "keeper")


_HOLDS_KERNELS = re.compile(r"^from market_types\.(?:kernel|atomics) import ", re.MULTILINE)
_IMPORT = re.compile(r"^\s*from ([\w.]+) import (\([^)]*\)|[^\n]*)|^\s*import ([\w.]+)", re.MULTILINE)


def _imported(source: str) -> Iterator[str]:
    """Yield what may be the names of modules that a module imports."""
    for package, names, module in _IMPORT.findall(source):
        yield package or module
        yield from (f"{package}.{name}" for name in re.findall(r"\w+", names))


def _source_stamp(root: Path) -> str:
    """Return 16 hex digits that change with the name, time or size of any file that compiled code is of."""
    sources = {
        ".".join(path.relative_to(root).with_suffix("").parts): path
        for room in _ROOMS
        for path in (root / room).rglob("*.py")
    }
    texts = {module: path.read_text(encoding="utf-8") for module, path in sources.items()}
    wanted = [module for module, text in texts.items() if _HOLDS_KERNELS.search(text)]
    reached: set[str] = {"market_types.kernel", "market_types.atomics"}
    while wanted:
        module = wanted.pop()
        if module not in reached:
            reached.add(module)
            wanted += [name for name in _imported(texts[module]) if name in texts]
    digest = hashlib.blake2b(digest_size=8)
    for path in sorted(sources[module] for module in reached):
        stat = path.stat()
        digest.update(f"{path}:{stat.st_mtime_ns}:{stat.st_size}\n".encode())
    return digest.hexdigest()


if "NUMBA_CACHE_DIR" not in os.environ:
    _stamp = _source_stamp(Path(__file__).resolve().parents[1])
    os.environ["NUMBA_CACHE_DIR"] = str(cache_folder(os.environ) / _stamp)

from numba import njit  # noqa: E402  (the cache folder has to be known first)

_njit = cast("Callable[..., Callable[[object], object]]", njit)  # `_nrt` is not among its documented options


def kernel(function: F) -> F:
    """Compile `function` in nopython mode, with the GIL held and the machine code kept on disk.

    A kernel cannot allocate: without numba's runtime (`_nrt=False`) no array argument is counted by atomic
    increments, which took two thirds of `parse_decimal`'s time.
    """
    compiled = _njit(cache=True, error_model="numpy", _nrt=False)(function)
    return cast("F", compiled)
