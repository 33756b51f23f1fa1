"""What the benchmark measures of our ONNX files without a rival: memory, growth, layouts."""

from __future__ import annotations

import statistics
from collections.abc import Iterator
from functools import partial
from typing import Any

import exporters
import sparse_ref as sr

from . import measure
from .bench_cases import RACES
from .limit import Limit, row
from .peers import MissingError
from .peers_onnx import loop_body, registered_kernel, session
from .race import Race, Row, Settings

MIB = 2**20


def graph_memory(settings: Settings) -> Iterator[Row]:
    """What a run of our ONNX loop body adds to the loaded session."""
    n = settings.tokens or 4096
    found = measure.fresh(f"from tools.bench_graphs import body_memory; body_memory({n})")
    yield row(f"ONNX loop body, window +-256, 64 globals, n = {n:,}: extra memory",
              found / MIB, "MiB", 40)  # fmt: skip


def body_memory(n: int) -> None:
    """Print the bytes that the first run needs, its output not counted."""
    task = RACES["onnx-body"].task(n, 2)
    [form] = loop_body(task)
    with measure.PeakMemory() as peak:
        form.call()
    print(max(0, peak.added - task.q.nbytes))


def graph_growth(settings: Settings) -> Iterator[Row]:
    """Time at 16,384 tokens over that at 4,096, and of a single token."""
    race, least = RACES["onnx-body"], settings.tokens or 4096
    for name, peer in (("loop body", loop_body), ("registered kernel", registered_kernel)):
        calls = {}
        for n in (least, 4 * least):
            [form] = peer(race.task(n, settings.threads))
            calls[str(n)] = form.call
        small, large = (
            statistics.median(t) for t in measure.in_turn(calls, settings.runs).values()
        )
        what = f"ONNX {name}, n = {4 * least:,}: time over that of {least:,}"
        yield row(what, large / small, "", 4.5, ms=[1e3 * small, 1e3 * large])
    [form] = registered_kernel(race.task(1, settings.threads))
    took = measure.median_of(form.call, settings.runs)
    yield row("ONNX registered kernel, one token", 1e6 * took, "us", 20)


def graph_layout(settings: Settings) -> Iterator[Row]:
    """What computing the layout inside the graph costs: a dynamic file less one with a constant."""
    pattern = sr.Causal() & (sr.SlidingWindow(511, 0) | sr.Strided(64))
    to_onnx: Any = exporters.to_onnx
    try:
        model = to_onnx(pattern, heads=8, head_dim=64)
    except TypeError as error:
        raise MissingError(f"exporters.to_onnx(pattern, ...): {error}") from error
    dynamic = session(model, settings.threads)
    names = [one.name for one in dynamic.get_inputs()]
    least = settings.tokens or 4096
    for n, limit in ((least, 5.0), (4 * least, 25.0)):
        task = Race("", "", lambda n: pattern, {}).task(n, settings.threads)
        feeds = dict(zip(names, (task.q, task.k, task.v), strict=True))
        [form] = loop_body(task)
        calls: dict[str, measure.Call] = {"dynamic": partial(dynamic.run, None, feeds)}
        calls["fixed"] = form.call
        took = {k: statistics.median(t) for k, t in measure.in_turn(calls, settings.runs).items()}
        what = f"layout in the graph, causal & (window 512 | strided 64), n = {n:,}"
        ms = {name: 1e3 * one for name, one in took.items()}
        yield row(what, ms["dynamic"] - ms["fixed"], "ms", limit, ms=ms)


GRAPH_LIMITS = (
    Limit("onnx-memory", "what the loop body allocates", graph_memory),
    Limit("onnx-growth", "graphs at 16,384 tokens, and at one", graph_growth),
    Limit("onnx-layout", "the layout inside the graph", graph_layout),
)
