"""What the benchmark measures without a rival: growth, memory, first calls, layouts."""

from __future__ import annotations

import json
import os
import statistics
import tempfile
import time
from collections.abc import Iterator
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

import sparse_ref as sr

from . import measure
from .bench_cases import RACES, causal_window
from .bench_flex import FLEX_LIMITS
from .bench_graphs import GRAPH_LIMITS
from .bench_selection import SELECTION_LIMITS
from .limit import Limit, row
from .peers import MissingError, Task, needed
from .race import Race, Row, Settings, Truth, judged


def growth(settings: Settings) -> Iterator[Row]:
    """Exponent e of time ~ n**e for the Sparse Transformer's patterns with stride sqrt(n)."""
    strided, fixed = sr.recipes.sparse_transformer_strided, sr.recipes.sparse_transformer_fixed
    for name, make in (
        ("strided", strided),
        ("fixed", lambda size: fixed(size, max(1, size // 8))),
    ):
        points = []
        _kernel_time(make(16), 256, Settings(runs=1))  # what is compiled once is no part of a plan
        for n in _lengths(1024, 16_384 if settings.quick else 262_144, settings):
            pattern = make(round(n**0.5))
            start = time.perf_counter()
            plan = sr.kernels.plan(pattern, n, n, heads=1, kv_heads=1, head_dim=64, dtype="float32")
            planning = time.perf_counter() - start
            took = _kernel_time(pattern, n, settings, plan=plan)
            points.append({"n": n, "ms": 1e3 * took, "plan_ms": 1e3 * planning})
        first, last = points[0]["n"], points[-1]["n"]
        what = f"{name}, stride sqrt(n), n = {first:,} to {last:,}: exponent of time in n"
        yield row(what, _exponent(points, "ms"), "", 1.55, points=points)
        yield row(f"{what}, planning", _exponent(points, "plan_ms"), "")


def million(settings: Settings) -> Iterator[Row]:
    """One head, causal window 512, up to 1,048,576 tokens: time per token, and memory."""
    last = 65_536 if settings.quick else 2**20
    lengths = _lengths(4096, last, settings)
    points = [{"n": n, "ms": 1e3 * _kernel_time(causal_window(n), n, settings)} for n in lengths]
    each = [p["ms"] / p["n"] for p in points]
    what = f"causal window 512, one head, n = {lengths[0]:,} to {lengths[-1]:,}"
    yield row(
        f"{what}: most over least time per token", max(each) / min(each), "", 1.15, points=points
    )
    code = f"from tools.bench_limits import memory; memory({lengths[-1]})"
    found = measure.fresh(code)
    share = found["first"] / found["arrays"]
    what = f"causal window 512, one head, n = {lengths[-1]:,}: extra memory / (q + k + v + out)"
    yield row(what, share, "", 0.12, **found)


def memory(n: int) -> None:
    """Print what a first call, plan and all, and a second one add to q, k, v and out."""
    q, k, v = _arrays(256)
    sr.kernels.attention(q, k, v, causal_window(256))  # compiled
    q, k, v = _arrays(n)
    found = {"arrays": 4 * q.nbytes}
    for call in ("first", "second"):
        with measure.PeakMemory() as peak:
            sr.kernels.attention(q, k, v, causal_window(n))
        found[call] = peak.added - q.nbytes
    print(json.dumps(found))


def first_call(settings: Settings) -> Iterator[Row]:
    """A fresh process: importing the kernels, and the first call (window +-256, 8 heads, 4096)."""
    runs = 1 if settings.quick else 3
    code = f"from tools.bench_limits import first; first({settings.tokens or 4096})"
    with tempfile.TemporaryDirectory() as folder:
        kept = {"SPARSE_REF_CACHE": folder}
        for name, limit, environment in (
            ("no compile cache", 8.0, {"SPARSE_REF_CACHE": "0"}),
            ("compile cache", 0.6, kept),
        ):
            if environment is kept:
                measure.fresh(code, **kept)  # fills it
            times = [measure.fresh(code, **environment) for _ in range(runs)]
            call, load = (statistics.median(t[key] for t in times) for key in ("call", "import"))
            yield row(f"first call in a fresh process, {name}", call, "s", limit)
            yield row(f"import sparse_ref.kernels and that call, {name}", load + call, "s")


def first(n: int) -> None:
    """Print how long the import and the first call of a process take."""
    start = time.perf_counter()
    ours = needed("sparse_ref.kernels", "numba")
    loaded = time.perf_counter()
    x = np.ones((1, 8, n, 64), dtype=np.float32)
    begun = time.perf_counter()
    ours.attention(x, x, x, sr.SlidingWindow(256, 256))
    print(json.dumps({"import": loaded - start, "call": time.perf_counter() - begun}))


def halves(settings: Settings) -> Iterator[Row]:
    """What the narrow types cost where no AMX tiles help: window +-256, against float32."""
    if measure.has("amx_tile") and os.environ.get("SPARSE_REF_AMX") != "0":
        raise MissingError("this CPU has AMX tiles: ask again with SPARSE_REF_AMX=0")
    wide = RACES["window"]
    calls = {}
    for dtype in ("float32", "bfloat16", "float16"):
        race = Race("", "", wide.pattern, {}, dtype=dtype)
        [form] = race.ours(race.task(settings.tokens or wide.tokens, settings.threads))
        calls[dtype] = form.call
    times = {k: statistics.median(t) for k, t in measure.in_turn(calls, settings.runs).items()}
    for dtype in ("bfloat16", "float16"):
        value = times[dtype] / times["float32"]
        yield row(f"window +-256, time in {dtype} over float32", value, "", 1.3)


def imports(settings: Settings) -> Iterator[Row]:
    """Importing sparse_ref against importing what it needs, each in fresh processes."""
    times = {}
    for code in ("import numpy, scipy.sparse", "import sparse_ref"):
        timed = f"import time; t = time.perf_counter(); {code}; print(time.perf_counter() - t)"
        measure.fresh(timed)  # compiled and in the file cache
        times[code] = statistics.median(measure.fresh(timed) for _ in range(settings.runs))
    base, ours = times.values()
    yield row("import sparse_ref over import numpy, scipy.sparse", ours / base, "", seconds=times)


def layouts(settings: Settings) -> Iterator[Row]:
    """Block layouts of a causal window with four sinks, and torch's scan of the same mask."""
    pattern = causal_window(0) | (sr.Causal() & sr.Sink(4))
    for n in _lengths(4096, 65_536 if settings.quick else 2**20, settings):
        took = measure.median_of(partial(sr.to_blocks, pattern, n, n), min(3, settings.runs))
        yield row(f"to_blocks, causal & (window 512 | 4 sinks), n = {n:,}", 1e3 * took, "ms")
    n = settings.tokens or 16_384
    flex = needed("torch.nn.attention.flex_attention")

    def allowed(b: Any, h: Any, q: Any, k: Any) -> Any:
        return (k <= q) & ((q - k <= 511) | (k < 4))

    took = measure.seconds(lambda: flex.create_block_mask(allowed, None, None, n, n, "cpu", 64))
    yield row(f"torch create_block_mask, eager, of the same, n = {n:,}", 1e3 * took, "ms")


def _lengths(least: int, most: int, settings: Settings) -> list[int]:
    """Powers of 4 from least to most; with --tokens from it to 16 times that."""
    if settings.tokens:
        least, most = settings.tokens, 16 * settings.tokens
    return [n for n in (least * 4**i for i in range(10)) if n <= most]


def _arrays(n: int) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.float32]]:
    """q, k and v of one head."""
    q, k, v = np.random.default_rng(0).standard_normal((3, 1, 1, n, 64), np.float32)
    return q, k, v


def _kernel_time(pattern: sr.Pattern, n: int, settings: Settings, plan: Any = None) -> float:
    """Median seconds of our kernels on one head; a few rows are asked of the oracle."""
    ours, arrays = needed("sparse_ref.kernels", "numba"), _arrays(n)
    truth = Truth(Task(pattern, *arrays), "float32", spans=3)
    judged("ours", ours.attention(*arrays, pattern, plan=plan).out, truth)
    return measure.median_of(lambda: ours.attention(*arrays, pattern, plan=plan), settings.runs)


def _exponent(points: list[dict[str, Any]], of: str) -> float:
    """The slope of a straight line through the points in logarithms."""
    x, y = (np.log([point[key] for point in points]) for key in ("n", of))
    return float(np.polyfit(x, y, 1)[0])


LIMITS = {
    limit.name: limit
    for limit in (
        Limit("growth", "strided and fixed with stride sqrt(n)", growth),
        Limit("million", "1,048,576 tokens: linear time, memory", million),
        Limit("first-call", "a fresh process, without and with compile cache", first_call),
        Limit("halves", "bfloat16 and float16 without AMX", halves),
        *SELECTION_LIMITS,
        *GRAPH_LIMITS,
        Limit("imports", "importing sparse_ref", imports),
        Limit("layouts", "block layouts, ours and torch's", layouts),
        *FLEX_LIMITS,
    )
}
