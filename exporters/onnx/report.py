"""What `validate_onnx` answers: for people, for scripts, and as one truth value."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import asdict, dataclass, field
from typing import Any

from .cuda import Gap
from .cuda_ops import SOURCE
from .judged import Verdict
from .running import Cost, Placed

Rows = dict[tuple[str, str], list[Verdict]]


@dataclass(frozen=True)
class ProviderRun:
    """One execution provider of ONNX Runtime; `skipped` says why it did not run, if it did not.

    `kernel` says that ours was registered, so that it runs the operator and not the body.
    `placed` are the nodes as they ran, by whichever provider; `ways` says of each attention whether
    a kernel of a provider ran it or its body in standard operators; `largest` is the case that
    `cost` is of.
    """

    provider: str
    skipped: str | None = None
    verdicts: list[Verdict] = field(default_factory=list)
    placed: list[Placed] = field(default_factory=list)
    ways: dict[str, str] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    cost: Cost | None = None
    largest: str = ""
    kernel: bool = False

    @property
    def title(self) -> str:
        """The provider, and our kernel where it is."""
        return f"{self.provider}, the registered kernel" if self.kernel else self.provider

    @property
    def elsewhere(self) -> list[Placed]:
        """The nodes that another provider ran."""
        return [one for one in self.placed if one.provider != self.provider]


@dataclass(frozen=True)
class Report:
    """The validation of one model.

    `ok` is True if something was compared, nothing was wrong, and no provider was skipped that was
    asked for by name.
    """

    model: str
    sha256: str
    versions: dict[str, str]
    attentions: dict[str, str]  # name: pattern in words
    runs: list[ProviderRun]
    evaluated: list[Verdict]
    unevaluated: str | None  # why the evaluator did not run
    gaps: list[Gap]
    asked: tuple[str, ...]  # providers asked for by name

    @property
    def verdicts(self) -> list[Verdict]:
        """Everything that was compared."""
        return [one for run in self.runs for one in run.verdicts] + self.evaluated

    @property
    def problems(self) -> list[str]:
        """What is wrong beside numbers, with the provider it is wrong on."""
        return [f"{run.title}: {one}" for run in self.runs for one in run.problems]

    @property
    def wrong(self) -> list[str]:
        """A sentence for everything that is wrong."""
        said = [f"{one.node}, {one.case}: {one.wrong}" for one in self.verdicts if not one.ok]
        return said + self.problems

    @property
    def unsupported(self) -> list[str]:
        """The providers that were asked for and did not run, with the reason."""
        return [
            f"{run.provider}: {run.skipped}"
            for run in self.runs
            if run.skipped and run.provider in self.asked and not run.kernel
        ]

    @property
    def ok(self) -> bool:
        """Whether the model may be trusted as far as it was run."""
        compared = any(run.verdicts for run in self.runs)
        return compared and not self.wrong and not self.unsupported

    def to_json(self) -> str:
        """All of it, with `ok`, as JSON text."""
        content: dict[str, Any] = {"ok": self.ok} | asdict(self)
        for run, said in zip(self.runs, content["runs"], strict=True):
            said["cost"] = run.cost and run.cost._asdict()
            said["placed"] = [one._asdict() for one in run.placed]
        content["gaps"] = {"source": SOURCE, "operators": [one._asdict() for one in self.gaps]}
        return json.dumps(_plain(content), indent=1)

    def __str__(self) -> str:
        lines = [f"{self.model}  sha256 {self.sha256[:16]}", self._with_versions(), ""]
        lines += [f"{name}: {words}" for name, words in self.attentions.items()]
        for run in self.runs:
            lines += ["", *_of_run(run)]
        lines += ["", "onnx ReferenceEvaluator, the oracle as operator"]
        if self.unevaluated:
            lines.append(f"  not run: {self.unevaluated}")
        lines += [*_table(self.evaluated), "", *self._without_gpu()]
        return "\n".join([*lines, "", *self._end()])

    def _end(self) -> list[str]:
        count = len(self.verdicts)
        if self.wrong:
            return [f"MISMATCH: {len(self.wrong)} of {count} comparisons", *self.wrong[:12]]
        if self.unsupported or not count:
            return ["NOT RUN", *self.unsupported]
        return [f"ok: {count} comparisons"]

    def _with_versions(self) -> str:
        return ", ".join(f"{name} {version}" for name, version in self.versions.items())

    def _without_gpu(self) -> list[str]:
        """What the kernel list says of CUDA."""
        floating = [str(gap) for gap in self.gaps if gap.floating]
        others = [str(gap) for gap in self.gaps if not gap.floating]
        first = f"by ONNX Runtime's CUDA kernel list ({SOURCE}), which is not a run:"
        lines = [first, "  every floating-point operator has a kernel"]
        if floating:
            lines[1] = "  floating-point operators without a kernel: " + "; ".join(floating)
        return lines + ([f"  on the CPU: {'; '.join(others)}"] if others else [])


def _of_run(run: ProviderRun) -> list[str]:
    if run.skipped:
        return [f"{run.title}: skipped, {run.skipped}"]
    here = len(run.placed) - len(run.elsewhere)
    lines = [run.title, *_table(run.verdicts)]
    if run.placed:
        lines.append(f"  ran {here} of {len(run.placed)} nodes")
    lines += [f"  {name} ran as {way}" for name, way in run.ways.items()]
    astray = Counter((one.provider, one.operator, one.floating) for one in run.elsewhere)
    lines += [
        f"  {provider} ran {count} {operator}{', floating-point' if floating else ''}"
        for (provider, operator, floating), count in sorted(astray.items())
    ]
    if run.cost:
        memory = run.cost.peak_bytes / 2**20
        lines.append(
            f"  {run.largest}: {run.cost.seconds * 1e3:.1f} ms, peak {memory:.1f} MiB allocated"
        )
    return lines


def _table(verdicts: list[Verdict]) -> list[str]:
    """One line for each value that was compared: cases, the worst error and its share."""
    rows: Rows = {}
    for one in verdicts:
        rows.setdefault((one.node, one.what), []).append(one)
    if not rows:
        return []
    width = max(len(f"{node} {what}") for node, what in rows)
    lines = [f"  {'':{width}}  cases  max error  of bound  verdict"]
    for (node, what), several in rows.items():
        worst = max(several, key=lambda one: one.share)
        verdict = "ok" if all(one.ok for one in several) else f"WRONG at {worst.case}"
        lines.append(
            f"  {f'{node} {what}':{width}}  {len(several):5}  {worst.error:9.1e}  "
            f"{worst.share:8.3f}  {verdict}"
        )
    return lines


def _plain(value: Any) -> Any:
    """JSON has no infinities."""
    if isinstance(value, dict):
        return {key: _plain(one) for key, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(one) for one in value]
    if isinstance(value, float) and not -1e308 < value < 1e308:
        return str(value)
    return value
