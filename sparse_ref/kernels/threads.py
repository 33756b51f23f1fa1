"""Workers on plain Python threads.

Kernels release the GIL and claim their tasks from a shared counter, so no Numba threading layer is
needed: any number of Python threads may call, and a forked child too, which starts threads of its
own. The caller only waits, so that Ctrl-C reaches it, and stops every worker at its next task.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from functools import lru_cache
from typing import Any

import numba
import numpy as np

from ._jit import settings

SMALL = 2e6  # multiply-adds that are done before another thread has started
STOP = 2**62  # no task has this number

_compiled: set[Any] = set()


def available() -> int:
    """NUMBA_NUM_THREADS, or what numba.set_num_threads has left of it."""
    try:
        numba.threading_layer()  # type: ignore[attr-defined]
    except ValueError:  # nobody has started Numba's threads, and neither do we
        return int(settings.NUMBA_NUM_THREADS)
    return int(numba.get_num_threads())


def run(kernel: Callable[..., Any], *args: Any, work: float) -> None:
    """Call kernel(worker, counters, *args) on every worker; `work` is in multiply-adds."""
    if work <= SMALL:
        kernel(0, np.zeros(1, dtype=np.int64), *args)
        return
    count = available()
    if (key := (kernel, *_types(args))) not in _compiled:  # here, where Ctrl-C interrupts it
        kernel(0, np.full(1, STOP), *args)
        _compiled.add(key)
    counters = np.arange(count)
    pool, running = _pool(), list[Future[Any]]()
    try:
        for worker in range(count):  # one by one: the first may be at work when Ctrl-C comes
            running += [pool.submit(kernel, worker, counters, *args)]
        for one in running:
            one.result()
    except KeyboardInterrupt:
        _pool.cache_clear()  # a thread whose start was interrupted ends with its pool
        raise
    finally:  # nothing is left, or somebody gave up
        begun = [one for one in running if not one.cancel()]
        counters[:] = STOP
        while wait(begun, timeout=0.05).not_done:
            counters[:] = STOP


@lru_cache(maxsize=1)
def _pool() -> ThreadPoolExecutor:
    """The threads, kept: one that wakes is put on an idle core, a new one often beside another."""
    return ThreadPoolExecutor(settings.NUMBA_NUM_THREADS, "sparse_ref")


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_pool.cache_clear)


def _types(args: Any) -> Iterator[Any]:
    """What a kernel is compiled for, roughly."""
    for x in args:
        if isinstance(x, tuple):
            yield from _types(x)
        elif isinstance(x, np.ndarray):
            yield x.dtype.char
