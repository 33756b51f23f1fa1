"""The kernels' decorator, its compiled code kept apart: it depends on the sources here as well."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from sparse_ref.kernels import _cache, _jit


def _directory() -> Path | None:
    if _jit.CACHE is None:
        return None
    here = hashlib.sha256()
    for source in sorted(Path(__file__).parent.glob("*.py")):
        here.update(source.read_bytes())
    return _cache.directory(str(_jit.CACHE.parent), _jit.PLAIN, here.hexdigest())


CACHE = _directory()


def kernel(function: Callable[..., Any]) -> Any:
    """Compile on first call, without the GIL; from the cache on disk where there is one."""
    compiled = _jit.kernel(function)
    if CACHE is not None:
        compiled._cache = _cache.cache(CACHE, function)
    return compiled
