import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numba import njit
from numba.core.dispatcher import Dispatcher

from market_types.atomics import (
    fence_acquire,
    fence_release,
    load_acquire_i64,
    load_acquire_u32,
    store_release_i64,
    store_release_u32,
)
from market_types.kernel import kernel


@given(st.integers(0, 2**32 - 1), st.integers(0, 15))
def test_u32_is_little_endian_and_touches_nothing_else(value: int, word: int) -> None:
    data = np.full(64, 0x5A, np.uint8)
    store_release_u32(data, 4 * word, value)
    assert load_acquire_u32(data, 4 * word) == value
    expected = bytearray(b"\x5a" * 64)
    expected[4 * word : 4 * word + 4] = value.to_bytes(4, "little")
    assert data.tobytes() == expected


@given(st.integers(-(2**63), 2**63 - 1), st.integers(0, 7))
def test_i64_is_little_endian_and_touches_nothing_else(value: int, word: int) -> None:
    data = np.full(64, 0x5A, np.uint8)
    store_release_i64(data, 8 * word, value)
    assert load_acquire_i64(data, 8 * word) == value
    expected = bytearray(b"\x5a" * 64)
    expected[8 * word : 8 * word + 8] = value.to_bytes(8, "little", signed=True)
    assert data.tobytes() == expected


def test_read_only_memory_can_be_loaded() -> None:
    data = np.frombuffer((7).to_bytes(4, "little") * 4, np.uint8)
    assert load_acquire_u32(data, 8) == 7
    assert load_acquire_i64(data, 8) == 7 << 32 | 7


@kernel
def _publish_and_look(data, at, value):
    store_release_u32(data, at, value)
    store_release_i64(data, at + 8, value)
    return load_acquire_u32(data, at) + load_acquire_i64(data, at + 8)


def test_kernels_can_use_them() -> None:
    assert _publish_and_look(np.zeros(32, np.uint8), 8, 21) == 42


@pytest.mark.parametrize(
    ("function", "arguments", "instruction"),
    [
        (store_release_u32, (1,), r"store atomic i32 .* release, align 4"),
        (store_release_i64, (1,), r"store atomic i64 .* release, align 8"),
        (load_acquire_u32, (), r"load atomic i32, .* acquire, align 4"),
        (load_acquire_i64, (), r"load atomic i64, .* acquire, align 8"),
    ],
)
def test_the_machine_is_told_to_keep_the_order(
    function: Dispatcher, arguments: tuple[int, ...], instruction: str
) -> None:
    fresh = njit(function.py_func)  # code from the cache cannot be inspected
    fresh(np.zeros(16, np.uint8), 0, *arguments)
    (code,) = fresh.inspect_llvm().values()
    assert re.search(instruction, code)


@pytest.mark.parametrize(
    ("function", "instruction"), [(fence_release, "fence release"), (fence_acquire, "fence acquire")]
)
def test_a_fence_is_told_to_the_machine(function: Dispatcher, instruction: str) -> None:
    fresh = njit(function.py_func)
    fresh()
    (code,) = fresh.inspect_llvm().values()
    assert instruction in code


def test_words_can_be_stored_and_loaded() -> None:
    words = np.zeros(4, np.int64)
    store_release_i64(words, 16, -7)
    assert words.tolist() == [0, 0, -7, 0]
    assert load_acquire_i64(words, 16) == -7
