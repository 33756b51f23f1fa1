"""`validate_onnx`: a file judged by the oracle, on the values that really reach its attentions."""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime

import sparse_ref as sr

from . import cases as drawing
from .cases import Case
from .cuda import cuda_gaps
from .judged import Verdict, judge
from .loading import load
from .observed import Observed, observed
from .report import ProviderRun, Report
from .running import CPU, CUDA, Placed, UnavailableError, measured, run, session, shared_buffers
from .schema import DOMAIN, OP, register
from .tapping import constants, element_types, in_numpy_types, tapped
from .whole import NotRunError, end_to_end

KERNEL = "a kernel of"


def validate_onnx(
    model: Any,
    *,
    providers: Sequence[str] | None = None,
    cases: Sequence[Mapping[str, Any]] | None = None,
) -> Report:
    """Run a model in ONNX Runtime and hold every attention of it against the oracle.

    Parameters
    ----------
    model : str, path or onnx.ModelProto
        Its attentions are found by their `sparse_ref.pattern` metadata, and those of
        `selection_to_onnx` by their `sparse_ref.selection`.
    providers : list of str, optional
        Execution providers of ONNX Runtime. Default: the CPU and, where it is present, CUDA.
    cases : list of dict, optional
        Inputs by name. Default: drawn, with 1 to 257 queries and keys, and unequal numbers of them
        where the inputs allow.

    Returns
    -------
    Report
        `str` of it is a table, `ok` the verdict. Each attention's output is within `error_bound`
        of `attention` on the very tensors that reached it, its block lists say its pattern (or
        what its selector chooses of these tensors: others only where float32 cannot tell which
        scores more, and attention is then over what was chosen), and
        the whole agrees with onnx's ReferenceEvaluator that has the oracle as operator. On the CPU
        our operator runs twice, by its body and by the registered kernel; where there can be no
        kernel the report says why.

    Raises
    ------
    FileNotFoundError, ValueError
        If there is no such file, it is no model, it refers to data outside its folder, or no node
        says its pattern.

    Examples
    --------
    >>> from exporters import to_onnx
    >>> model = to_onnx(sr.Causal() & sr.SlidingWindow(20, 0), heads=2, head_dim=8)
    >>> validate_onnx(model, providers=["CPUExecutionProvider"]).ok
    True
    """
    register()
    loaded = load(model)
    attentions = observed(loaded)
    chosen = [Case(f"case {i}", _fed(one)) for i, one in enumerate(cases or ())]
    judge_of = _Judge(loaded, attentions, chosen or drawing.draw(loaded, attentions))
    runs = []
    for provider in providers or (CPU, CUDA):
        runs.append(judge_of.on(provider))
        if provider == CPU and judge_of.operators:
            runs.append(judge_of.on(provider, kernel=True))
    evaluated, unevaluated = judge_of.evaluated()
    return Report(
        model=Path(model).name if isinstance(model, (str, Path)) else "model in memory",
        sha256=hashlib.sha256(loaded.SerializeToString(deterministic=True)).hexdigest(),
        versions={
            "sparse_ref": sr.__version__,
            "onnx": onnx.__version__,
            "onnxruntime": onnxruntime.__version__,
        },
        attentions={
            one.name: f"{one.operator} of {one.choice or repr(one.pattern)}" for one in attentions
        },
        runs=runs,
        evaluated=evaluated,
        unevaluated=unevaluated,
        gaps=cuda_gaps(loaded),
        asked=tuple(providers or ()),
    )


class _Judge:
    """One model ready to be judged: as it is, and a copy that shows what reaches its attentions."""

    def __init__(self, model: Any, attentions: list[Observed], cases: list[Case]):
        names = list(dict.fromkeys(name for one in attentions for name in one.tensors))
        self.attentions, self.cases, self.kinds = attentions, cases, element_types(model)
        self.loops = any(
            (one.domain, one.name) == (DOMAIN, OP) and any(n.op_type == "Loop" for n in one.node)
            for one in model.functions
        )
        self.operators = {
            node.name for node in model.graph.node if (node.domain, node.op_type) == (DOMAIN, OP)
        }
        self.shown = in_numpy_types(tapped(model, names))
        self.plain = in_numpy_types(model)
        self.fixed = constants(self.shown)
        self.got: dict[str, dict[str, Any]] = {}  # of the first provider that ran, by case

    def on(self, provider: str, *, kernel: bool = False) -> ProviderRun:
        """Every case on one provider, our operator by its body or by our kernel."""
        names = [one.name for one in self.shown.graph.output]
        shared = shared_buffers(self.plain)
        try:
            ready = session(self.shown, provider, kernel=kernel)
        except UnavailableError as reason:
            return ProviderRun(provider, skipped=str(reason), kernel=kernel)
        except Exception as error:  # ONNX Runtime has a type for every status
            failed = _failed("load", "any case", error)
            return ProviderRun(provider, None, [failed], kernel=kernel)
        verdicts, ran = [], []
        for case in self.cases:
            try:
                got = run(ready, case.feed, names, shared)
            except Exception as error:
                verdicts.append(_failed("run", case.label, error))
                continue
            ran.append(case)
            self.got.setdefault(case.label, got)
            for one in self.attentions:
                values = {**self.fixed, **case.feed, **got}
                verdicts += judge(one, values, self.kinds, case.label)
        if not ran:
            return ProviderRun(provider, None, verdicts, kernel=kernel)
        largest = max(ran, key=lambda case: sum(x.size for x in case.feed.values()))
        cost, placed = measured(self.plain, provider, largest.feed, kernel=kernel)
        ways = self._ways(placed)
        problems = self.cuda_problems(placed) if provider == CUDA else []
        problems += [
            f"{name} ran as {way} although the kernel is registered"
            for name, way in ways.items()
            if kernel and name in self.operators and not way.startswith(KERNEL)
        ]
        return ProviderRun(
            provider, None, verdicts, placed, ways, problems, cost, largest.label, kernel
        )

    def _ways(self, placed: list[Placed]) -> dict[str, str]:
        """Whether a kernel ran each attention, or what its function expands to."""
        kernels = {(one.name, one.operator): one.provider for one in placed}
        return {
            one.name: f"{KERNEL} {kernels[at]}" if at in kernels else "standard operators"
            for one in self.attentions
            for at in [(one.name, one.operator.rpartition(".")[2])]
        }

    def cuda_problems(self, placed: list[Placed]) -> list[str]:
        """What keeps a file from being one for CUDA."""
        astray = [one for one in placed if one.floating and one.provider != CUDA]
        problems = [f"{one.provider} ran the floating-point {one.operator} {one.name}"
                    for one in astray]  # fmt: skip
        if self.loops:
            problems.append("the loop body launches every block by itself: export body='gather'")
        return problems

    def evaluated(self) -> tuple[list[Verdict], str | None]:
        """The same cases by onnx's ReferenceEvaluator, or why not."""
        verdicts: list[Verdict] = []
        try:
            for label, feed in self.cases:
                if (got := self.got.get(label)) is None:
                    continue
                verdicts += end_to_end(self.shown, self.attentions, self.kinds, label, feed, got)
        except NotRunError as reason:
            return [], str(reason)
        return verdicts, None


def _fed(case: Mapping[str, Any]) -> dict[str, Any]:
    """Inputs as arrays, bfloat16 in float32."""
    arrays = {name: np.asarray(x) for name, x in case.items()}
    return {n: x.astype(np.float32) if x.dtype.kind == "V" else x for n, x in arrays.items()}


def _failed(what: str, case: str, error: Exception) -> Verdict:
    text = str(error)
    said = text.rpartition("Status Message: ")[2].partition("\n")[0]
    named = re.findall(r"Name:'([^']*)'", text)  # innermost last
    where = f" at the node {named[-1]!r}" if named else ""
    wrong = f"ONNX Runtime failed{where}: {said[:300]}"
    return Verdict("model", what, case, math.inf, math.inf, wrong)
