"""The one decorator of every kernel, and the switches that the environment sets.

SPARSE_REF_PLAIN=1  plain Numba loops instead of the vector intrinsics of `simd` (also chosen by
                    NUMBA_DISABLE_JIT=1)
SPARSE_REF_CACHE=1  keep compiled kernels on disk, where Numba finds a directory it may write

No kernel is `parallel=True`: Numba's workqueue aborts when two Python threads call it and its omp
layer dies after a fork. Kernels release the GIL, and `threads` runs them on plain threads.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import numba

settings: Any = numba.config
PLAIN = bool(settings.DISABLE_JIT) or os.environ.get("SPARSE_REF_PLAIN", "0") != "0"
CACHE = os.environ.get("SPARSE_REF_CACHE", "0") != "0"

# All but nnan and ninf: scores of keys not seen are -inf, and a NaN has to reach its row.
FASTMATH = {"nsz", "arcp", "contract", "afn", "reassoc"}


def kernel(function: Callable[..., Any]) -> Any:
    """Compile on first call, without the GIL; from the cache on disk where that is asked for."""
    options: dict[str, Any] = {"nogil": True, "error_model": "numpy", "fastmath": FASTMATH}
    if CACHE:
        try:
            return numba.njit(cache=True, **options)(function)
        except RuntimeError:  # a read-only install without a home: no place for a cache
            pass
    return numba.njit(**options)(function)
