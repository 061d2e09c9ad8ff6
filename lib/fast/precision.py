"""Measures whether bfloat16 pays on this processor; on some it is 45 times slower than float32."""

from __future__ import annotations

import statistics
import time
from functools import cache

import torch
from torch import Tensor

_SIDE = 256
_ROUNDS = 9


@cache
def bfloat16_speedup() -> float:
    """Speed of a bfloat16 matrix product on the CPU over that of a float32 one, measured once.

    Takes a hundredth of a second to half a second. Above 1 the processor has instructions for
    bfloat16 products (`avx512_bf16`, `amx_bf16`).
    """
    exact = torch.ones(_SIDE, _SIDE)
    half = exact.bfloat16()
    for factor in (exact, half):
        _seconds(factor)  # the first product sets up the library
    return statistics.median(_seconds(exact) / _seconds(half) for _ in range(_ROUNDS))


def _seconds(factor: Tensor) -> float:
    start = time.perf_counter()
    factor @ factor
    return time.perf_counter() - start
