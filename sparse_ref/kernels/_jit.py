"""The one decorator of every kernel, and the switches that the environment sets.

SPARSE_REF_PLAIN=1    plain Numba loops instead of the vector intrinsics of `simd` (also chosen by
                      NUMBA_DISABLE_JIT=1)
SPARSE_REF_CACHE=DIR  keep compiled kernels there; =0 nowhere. Without it, or with 1, they are kept
                      in ~/.cache/sparse_ref (XDG_CACHE_HOME is heeded); see `_cache` for when not

No kernel is `parallel=True`: Numba's workqueue aborts when two Python threads call it and its omp
layer dies after a fork. Kernels release the GIL, and `threads` runs them on plain threads.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable
from typing import Any

import numba

from . import _cache
from ._linked import Inner

settings: Any = numba.config
_njit: Any = numba.njit
PLAIN = bool(settings.DISABLE_JIT) or os.environ.get("SPARSE_REF_PLAIN", "0") != "0"

# All but nnan and ninf: scores of keys not seen are -inf, and a NaN has to reach its row.
FASTMATH = {"nsz", "arcp", "contract", "afn", "reassoc"}
OPTIONS = {"nogil": True, "error_model": "numpy", "fastmath": FASTMATH}


def _directory() -> Any:
    asked = os.environ.get("SPARSE_REF_CACHE", "")
    asked = "" if asked == "1" else asked
    if settings.DISABLE_JIT:
        return None
    found = _cache.directory(asked, PLAIN, sorted(FASTMATH))
    if found is None and asked not in ("", "0"):
        warnings.warn(
            f"SPARSE_REF_CACHE must name a directory that only you can write, got {asked!r}: "
            "compiled kernels are not kept",
            RuntimeWarning,
            stacklevel=2,
        )
    return found


CACHE = _directory()


def kernel(function: Callable[..., Any]) -> Any:
    """Compile on first call, without the GIL; from the cache on disk where there is one."""
    compiled = _njit(no_cfunc_wrapper=True, **OPTIONS)(function)
    if CACHE is not None:
        compiled._cache = _cache.cache(CACHE, function)
    return compiled


def inner(function: Callable[..., Any]) -> Any:
    """A function that only kernels call, and that neither makes arrays nor returns any.

    References to arrays are not counted there: it takes as long to compile as all the rest, and
    where a loop does it, longer to run.
    """
    return owner(function, _nrt=False)


def owner(function: Callable[..., Any], **options: Any) -> Any:
    """A function that only kernels call, and that makes arrays or returns them."""
    options = {**OPTIONS, "no_cpython_wrapper": True, "no_cfunc_wrapper": True, **options}
    return _njit(pipeline_class=Inner, **options)(function)


def exact(function: Callable[..., Any]) -> Any:
    """An inner function whose results are those of IEEE arithmetic: a quotient is rounded once."""
    return owner(function, _nrt=False, fastmath=False)


def inlined(function: Callable[..., Any]) -> Any:
    """A part of several kernels that is copied into each, for where a call costs too much."""
    return _njit(inline="always", **OPTIONS)(function)
