"""Workers on plain Python threads.

Kernels release the GIL and claim their tasks from a shared counter, so no Numba threading layer is
needed: any number of Python threads may call, a forked child too, and Ctrl-C stops every worker at
its next task.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numba
import numpy as np

from ._jit import settings

SMALL = 2e6  # multiply-adds that are done before another thread has started
STOP = 2**62  # no task has this number


def available() -> int:
    """NUMBA_NUM_THREADS, or what numba.set_num_threads has left of it."""
    try:
        numba.threading_layer()  # type: ignore[attr-defined]
    except ValueError:  # nobody has started Numba's threads, and neither do we
        return int(settings.NUMBA_NUM_THREADS)
    return int(numba.get_num_threads())


def run(kernel: Callable[..., Any], *args: Any, work: float) -> None:
    """Call kernel(worker, counters, *args) on every worker; `work` is in multiply-adds."""
    count = available() if work > SMALL else 1
    counters = np.arange(count)
    if count == 1:
        kernel(0, counters, *args)
        return
    with ThreadPoolExecutor(count, "sparse_ref") as pool:
        running = [pool.submit(kernel, worker, counters, *args) for worker in range(count)]
        try:
            for one in running:
                one.result()
        finally:
            counters[:] = STOP  # nothing is left, or somebody gave up
