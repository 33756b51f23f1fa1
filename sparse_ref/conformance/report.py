"""What a check found, for people and for machines, from one record."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any
from xml.etree import ElementTree

import numpy as np

from sparse_ref.patterns import compare

from .calling import Implementation
from .diagnosis import Diagnosis, diagnoses_of
from .judging import AXES, Result, Wrong
from .masks import read_mask
from .telling import told

WATCHERS: list[Callable[[Report], None]] = []  # told of each report that is asked to raise
RIGHT = ("PASS", "APPROXIMATE")
BAD = ("FAIL", "ERROR", "TIMEOUT", "XPASS")
PICTURE = 24  # the most queries and keys that are drawn
LEAK = "a NaN in a masked {} leaks into {} rows, as in SDPA and ONNX Runtime's Attention"


class CheckError(AssertionError):
    """That something is wrong; its text is the report, or the first line of it where `brief`."""

    def __init__(self, report: Report) -> None:
        super().__init__(report)
        self.report, self.brief = report, False

    def __str__(self) -> str:
        text = str(self.report)
        return text.partition("\n")[0] if self.brief else text


@dataclass(frozen=True, eq=False)
class Report:
    """The results of a check; `str()` of it is what to read."""

    results: list[Result]
    fn: Implementation
    seed: int

    @cached_property
    def accepted(self) -> bool:
        """Whether a NaN that leaks from where nobody may look is all that is wrong."""
        bad = [r for r in self.results if r.verdict in BAD]
        return bool(bad) and all("MaskedNaN" in r.case.hunts for r in bad)

    def verdict(self, result: Result) -> str:
        """A result's verdict, in the light of all others."""
        leaks = self.accepted and result.verdict == "FAIL"
        return "ACCEPTABLE" if leaks else result.verdict

    @cached_property
    def failures(self) -> list[Result]:
        """What is wrong."""
        return [r for r in self.results if self.verdict(r) in BAD]

    @property
    def ok(self) -> bool:
        """Whether nothing is wrong, and something was right."""
        return not self.failures and any(r.verdict in RIGHT for r in self.results)

    @cached_property
    def counts(self) -> dict[str, int]:
        """How many cases have each verdict."""
        return dict(Counter(self.verdict(r) for r in self.results))

    @cached_property
    def diagnoses(self) -> list[Diagnosis]:
        """Known mistakes that give the same wrong answers, the likeliest first."""
        right = [r for r in self.results if r.verdict == "PASS"]
        kinds = {r.case.dtype for r in self.failures}
        return told(diagnoses_of(self.failures, right), self.fn, kinds)

    def raise_for_failures(self) -> None:
        """AssertionError with the report if anything is wrong, or nothing was right."""
        for watch in [*WATCHERS]:
            watch(self)
        if not self.ok:
            raise CheckError(self)

    def __str__(self) -> str:
        total = ", ".join(f"{count} {name}" for name, count in sorted(self.counts.items()))
        lines = [f"sparse-ref check: {total or 'no cases'}; seed {self.seed}"]
        if self.accepted:
            rows = sum(int(w.rows.sum()) for r in self.results for w in r.wrong)
            lines.append(LEAK.format("key or value", rows))
        lines += self._losses()
        unsupported = Counter(r.reason for r in self.results if r.verdict == "UNSUPPORTED")
        lines += [f"unsupported, {n} cases: {why}" for why, n in unsupported.most_common(8)]
        if self.failures:
            lines += ["", *self._failures(), "", *self._diagnosis()]
        return "\n".join(lines)

    def _losses(self) -> list[str]:
        """How much approximate answers have lost at worst."""
        losses = [r.loss for r in self.results if r.loss is not None]
        if not losses:
            return []
        error = max(loss.error for loss in losses)
        kept = min((loss.recall for loss in losses if loss.recall is not None), default=1.0)
        worst = f"relative error up to {error:.3g}, recall down to {kept:.4g}"
        return [f"approximate, {len(losses)} cases: {worst}"]

    def _failures(self) -> list[str]:
        first = self.failures[0]
        lines = [f"first wrong case: {first.case.id}", f"  pattern {first.case.pattern!r}"]
        if first.reason:
            lines.append(f"  {first.reason}")
        for wrong in first.wrong:
            lines += [f"  {line}" for line in sentences(wrong)]
        lines += [f"  {line}" for line in self._picture(first)]
        lines += [f"also wrong: {r.case.id}" for r in self.failures[1:6]]
        if len(self.failures) > 6:
            lines.append(f"and {len(self.failures) - 6} more")
        return lines

    def _picture(self, result: Result) -> list[str]:
        """The mask that was asked for against the one that is applied, if they differ."""
        s = result.case.sizes
        options = set(result.case.options) - {"scale", "softcap", "sink_logits"}
        if (
            result.verdict != "FAIL"
            or result.case.gradients
            or max(s.m, s.n) > PICTURE
            or options
            or not s.m * s.n
        ):
            return []
        row = result.wrong[0].first[0] if result.wrong else 0
        asked_for = result.case.pattern.for_batch(row)
        try:
            applied = read_mask(
                self.fn, s.m, s.n, pattern=asked_for, heads=s.h, kv_heads=s.g, head_dim=s.d,
            )  # fmt: skip
        except Exception:  # the report must not fail where the implementation does
            return []
        asked = asked_for.mask(s.m, s.n, heads=s.h)
        wrong = np.flatnonzero((asked != applied).any(axis=(1, 2)))
        if not len(wrong):
            return ["the mask is right: read from outside, it is the one asked for"]
        head = int(wrong[0])
        found = compare(asked[head], applied[head], s.m, s.n)
        where = f"the mask applied by head {head} (- is missing, + is too much):"
        return [
            where,
            *str(found.picture).splitlines(),
            found.sentence.replace("b ", "it ").replace("a ", "what was asked "),
        ]

    def _diagnosis(self) -> list[str]:
        if not self.diagnoses:
            return ["no known mistake gives these answers"]
        return [line for found in self.diagnoses[:3] for line in str(found).splitlines()]

    def to_dict(self) -> dict[str, Any]:
        """All of it as plain data."""
        return {
            "seed": self.seed,
            "ok": self.ok,
            "counts": self.counts,
            "results": [_record(r, self.verdict(r)) for r in self.results],
            "diagnoses": [found.to_dict() for found in self.diagnoses],
        }

    def to_json(self, indent: int | None = 1) -> str:
        """All of it as JSON."""
        return json.dumps(self.to_dict(), indent=indent, allow_nan=False)

    def to_junit(self) -> str:
        """JUnit's XML, which continuous integration shows."""
        root = ElementTree.Element(
            "testsuite", name="sparse-ref", tests=str(len(self.results)),
            failures=str(len(self.failures)),
        )  # fmt: skip
        for result in self.results:
            verdict = self.verdict(result)
            one = ElementTree.SubElement(
                root, "testcase", name=result.case.id, time=f"{result.seconds:.4f}"
            )
            text = "\n".join([result.reason, *(x for w in result.wrong for x in sentences(w))])
            if verdict in BAD:
                ElementTree.SubElement(one, "failure", message=verdict).text = text.strip()
            elif verdict in ("UNSUPPORTED", "XFAIL"):
                ElementTree.SubElement(one, "skipped", message=result.reason)
        return ElementTree.tostring(root, encoding="unicode")


def sentences(wrong: Wrong) -> list[str]:
    """Where it starts, how far off it is, and where the wrong rows cluster."""
    axes = AXES[wrong.name]
    where = ", ".join(f"{axis} {i}" for axis, i in zip(axes, wrong.first, strict=False))
    times = f"{wrong.worst:.3g} times the bound at worst"
    lines = [
        f"{wrong.name} is wrong in {wrong.wrong} of {wrong.total} entries, first at {where}:",
        f"got {wrong.got:.9g}, want {wrong.want:.9g} +- {wrong.bound:.2g} ({times})",
    ]
    rows = wrong.rows
    for i, axis in enumerate(axes[: rows.ndim]):
        bad = np.flatnonzero(rows.any(axis=tuple(j for j in range(rows.ndim) if j != i)))
        if len(bad) < rows.shape[i] and axis != "batch":
            plural = "queries" if axis == "query" else f"{axis}s"
            lines.append(f"only {plural} {_ranges(bad)} of {rows.shape[i]}")
    return lines


def _ranges(numbers: Any) -> str:
    """0, 1, 2, 5 as 0-2, 5."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and runs[-1][-1] == number - 1:
            runs[-1][1:] = [int(number)]
        else:
            runs.append([int(number)])
    return ", ".join("-".join(map(str, run)) for run in runs)


def _finite(number: float) -> float | None:
    """What JSON can hold."""
    return number if np.isfinite(number) else None


def _record(result: Result, verdict: str) -> dict[str, Any]:
    lost = result.loss
    loss = {} if lost is None else {"error": _finite(lost.error), "recall": lost.recall}
    return {
        "id": result.case.id,
        "verdict": verdict,
        "reason": result.reason,
        "hunts": list(result.case.hunts),
        "ratio": _finite(result.ratio),
        **loss,
        "wrong": [line for wrong in result.wrong for line in sentences(wrong)],
    }
