"""Fit the constants of the kernels' cost model on this machine, to be committed in costs.py.

Every kernel and order is run on one thread, whether it is the best one or not, and the time of each
run is written as a sum of what it does; a non-negative least squares of the relative errors gives
the time of each piece.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import numpy as np
from scipy.optimize import nnls

import sparse_ref as sr
from sparse_ref.kernels import costs, forward, threads
from sparse_ref.kernels.choices import Choice
from sparse_ref.kernels.orders import deal
from sparse_ref.kernels.plans import Part
from sparse_ref.kernels.vectors import lanes_of
from sparse_ref.kernels.ways import Shape
from sparse_ref.problem import problem

HEADS = 4
REPEAT = 7


def patterns(n: int) -> dict[str, sr.Pattern]:
    """What is run in the order of the sequence, and row by row."""
    side = int(np.sqrt(n))
    return {
        "full": sr.Full(),
        "causal": sr.Causal(),
        "window": sr.SlidingWindow(128, 128),
        "narrow": sr.SlidingWindow(9, 0),
        "diagonal": sr.Causal() & sr.Chunked(64),
        "sinks": sr.Sink(5),
        "fixed": sr.Causal() & sr.KeyStride(64, range(60, 64)),
        "grid": sr.Grid((side, side), [sr.Neighborhood(side, 9)] * 2),
        "random": sr.RandomKeys(40, 0, n),
        "few": sr.RandomKeys(6, 0, n),
    }


def dealt(n: int) -> dict[str, tuple[sr.Pattern, int]]:
    """What is run in another order, and the period it is dealt by."""
    side = int(np.sqrt(n))
    return {
        "strided": (sr.Causal() & sr.Strided(side), side),
        "dilated": (sr.SlidingWindow(64, 64, dilation=4), 4),
        "all": (sr.Full(), 1),
        "blocks": (sr.Causal() & sr.Chunked(64), 1),
        "grid": (patterns(n)["grid"], side),
        "window": (sr.SlidingWindow(128, 128), 2),
    }


def runs() -> Iterator[tuple[str, dict[str, float], float]]:
    """Name, counts and nanoseconds a head of every run."""
    rng = np.random.default_rng(0)
    for n, d in ((1024, 64), (4096, 64), (1024, 128), (4096, 32)):
        x = [rng.standard_normal((1, HEADS, n, d)).astype(np.float32) for _ in range(3)]
        shape = Shape(n, n, 0, tuple(range(HEADS)), d, 4, lanes_of(32))
        for name, pattern in patterns(n).items():
            choice = Choice(pattern, shape)
            if name not in {"random", "few"}:
                layout, pairs = choice.blocks()
                counts = costs.work_of(layout).counts(d)
                yield f"{name} {n} {d}", counts, timed(x, "tiles", layout, pairs)
            if name not in {"full", "causal"}:
                rows, pairs = choice.listed()
                counts = costs.row_counts(pairs, n, d)
                yield f"{name} {n} {d} rows", counts, timed(x, "rows", rows, pairs)
        places = np.arange(n)
        for name, (pattern, period) in dealt(n).items():
            order = deal(places, places, period)
            way = Choice(pattern, shape).gathered(pattern, order, order, name, np.inf)
            assert way is not None
            layout, pairs = way.make()
            counts = costs.work_of(layout).counts(d)
            yield f"{name} {n} {d} dealt", counts, timed(x, "tiles", layout, pairs)


def timed(x: list[Any], kernel: str, layout: Any, pairs: int) -> float:
    """The least time of one head, in nanoseconds of this process."""
    given = problem(x[0], x[1], x[2], sr.Full())
    out, lse = np.empty_like(x[0]), np.empty(x[0].shape[:3], dtype=np.float32)
    part = Part(kernel, tuple(range(HEADS)), "", layout, pairs)
    (launch,) = forward.launches(given, out.dtype, None)
    least = np.inf
    for _ in range(REPEAT):
        start = time.process_time_ns()
        forward.into(out, lse, given, [launch._replace(part=part)])
        least = min(least, time.process_time_ns() - start)
    return least / HEADS


def fit(*, report: bool = False) -> dict[str, float]:
    """Nanoseconds of every piece of work, by the names in `costs.CONSTANTS`."""
    threads.available = lambda: 1
    names = list(costs.CONSTANTS)
    found = list(runs())
    counts = np.array([[of.get(name, 0.0) for name in names] for _, of, _ in found])
    times = np.array([spent for _, _, spent in found])
    constants, _ = nnls(counts / times[:, None], np.ones(len(times)))
    if report:
        for (name, _, spent), predicted in zip(found, counts @ constants, strict=True):
            print(f"{name:24s} {spent / 1e6:9.3f} ms, predicted {predicted / spent:5.2f} of it")
    return {name: float(f"{x:.3g}") for name, x in zip(names, constants, strict=True)}


if __name__ == "__main__":
    for key, value in fit(report=True).items():
        print(f'    "{key}": {value},')
