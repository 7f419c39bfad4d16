"""Loads, stores and fences that order memory between processes: what tapes and rings rest on.

numba has none, and its plain stores may be reordered. These compile to LLVM's atomic instructions, which are
plain moves on x86-64, and for a fence nothing at all. `data` may have any dtype but must begin at a multiple
of 8 in memory, as mappings and numpy's own arrays do; `at` is a byte offset, a multiple of the width, and
lies within `data`: nothing is checked.
"""
# ruff: noqa: ANN401, ARG001  (an @intrinsic is code for the compiler, whose parts have no types)

from typing import Any

from numpy.typing import NDArray

from market_types.kernel import kernel  # before numba: it names the cache folder

from llvmlite import ir  # isort: skip
from numba import types  # isort: skip
from numba.core import cgutils  # isort: skip
from numba.extending import intrinsic  # isort: skip


def _pointer(context: Any, builder: Any, array_type: Any, array: Any, at: Any, width: int) -> Any:
    base = context.make_array(array_type)(context, builder, array).data
    return builder.bitcast(cgutils.pointer_add(builder, base, at), ir.IntType(width).as_pointer())


def _store(width: int) -> Any:
    @intrinsic
    def store(typing_context: Any, data: Any, at: Any, value: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            array, offset, wide = arguments
            pointer = _pointer(context, builder, signature.args[0], array, offset, width)
            narrow = builder.trunc(wide, ir.IntType(width)) if width < 64 else wide
            builder.store_atomic(narrow, pointer, "release", width // 8)
            return context.get_dummy_value()

        return types.void(data, types.int64, types.int64), generate

    return store


def _load(width: int) -> Any:
    @intrinsic
    def load(typing_context: Any, data: Any, at: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            array, offset = arguments
            pointer = _pointer(context, builder, signature.args[0], array, offset, width)
            narrow = builder.load_atomic(pointer, "acquire", width // 8)
            return builder.zext(narrow, ir.IntType(64)) if width < 64 else narrow

        return types.int64(data, types.int64), generate

    return load


def _fence(ordering: str) -> Any:
    @intrinsic
    def fence(typing_context: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            builder.fence(ordering)
            return context.get_dummy_value()

        return types.void(), generate

    return fence


_store_u32, _store_i64 = _store(32), _store(64)
_load_u32, _load_i64 = _load(32), _load(64)
_fence_release, _fence_acquire = _fence("release"), _fence("acquire")


@kernel
def store_release_u32(data: NDArray[Any], at: int, value: int) -> None:
    """Store the low 32 bits of `value` at byte `at`, after all that was written before."""
    _store_u32(data, at, value)


@kernel
def load_acquire_u32(data: NDArray[Any], at: int) -> int:
    """Return the u32 at byte `at`; what was written before it was stored is then seen."""
    value: int = _load_u32(data, at)
    return value


@kernel
def store_release_i64(data: NDArray[Any], at: int, value: int) -> None:
    """Store the i64 `value` at byte `at`, after all that was written before."""
    _store_i64(data, at, value)


@kernel
def load_acquire_i64(data: NDArray[Any], at: int) -> int:
    """Return the i64 at byte `at`; what was written before it was stored is then seen."""
    value: int = _load_i64(data, at)
    return value


@kernel
def fence_release() -> None:
    """Let every store that follows be seen after all that was read and written before."""
    _fence_release()


@kernel
def fence_acquire() -> None:
    """Let every load before come before all that is read and written after."""
    _fence_acquire()
