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
from .peers import Task, needed
from .peers_onnx import loop_body, named, registered_kernel, run_form, session
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
    task = race.task(1, settings.threads)
    [form] = registered_kernel(task)
    calls = {"ours": form.call, "empty": _empty(task)}
    took = {k: 1e6 * statistics.median(t) for k, t in measure.in_turn(calls, settings.runs).items()}
    what = "ONNX registered kernel, one token: time over that of an operator that does nothing"
    yield row(what, took["ours"] - took["empty"], "us", 20, us=took)


def _empty(task: Task) -> measure.Call:
    """A session that is given the same tensors and answers one of them."""
    helper = needed("onnx").helper
    values = [helper.make_tensor_value_info(x, 1, task.q.shape) for x in ("q", "k", "v", "y")]
    graph = helper.make_graph([helper.make_node("Identity", ["q"], ["y"])], "empty", values[:3],
                              values[3:])  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    return run_form(session(model, task.threads), named(task), task).call


def graph_layout(settings: Settings) -> Iterator[Row]:
    """What computing the layout inside the graph costs: the nodes before the attention, alone."""
    pattern = sr.Causal() & (sr.SlidingWindow(511, 0) | sr.Strided(64))
    model = exporters.to_onnx(pattern, heads=8, head_dim=64)
    ready = session(_layout_alone(model), settings.threads)
    least = settings.tokens or 4096
    for n, limit in ((least, 5.0), (4 * least, 25.0)):
        task = Race("", "", lambda n: pattern, {}).task(n, settings.threads)
        took = measure.median_of(partial(ready.run, None, named(task)), settings.runs)
        what = f"layout in the graph, causal & (window 512 | strided 64), n = {n:,}"
        yield row(what, 1e3 * took, "ms", limit)


def _layout_alone(model: Any) -> Any:
    """The model without its attention: what that would have been given beside q, k and v."""
    helper = needed("onnx").helper
    [node] = [one for one in model.graph.node if one.op_type == "SparseAttention"]
    model.graph.node.remove(node)
    del model.graph.output[:]
    lists = [name for name in node.input[3:] if name]
    model.graph.output.extend(helper.make_empty_tensor_value_info(name) for name in lists)
    return model


GRAPH_LIMITS = (
    Limit("onnx-memory", "what the loop body allocates", graph_memory),
    Limit("onnx-growth", "graphs at 16,384 tokens, and at one", graph_growth),
    Limit("onnx-layout", "the layout inside the graph", graph_layout),
)
