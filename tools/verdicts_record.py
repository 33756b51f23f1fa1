"""What a check found of a peer, as data: its wrong answers by the mistake that gives them.

A peer may make several mistakes at once, which no single one explains. So wrong answers are
diagnosed question by question, and questions that the same mistake explains are put together.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

import sparse_ref as sr
from sparse_ref.conformance import Report
from sparse_ref.conformance.calling import Answer
from sparse_ref.conformance.catalogue import CATALOGUE, ROUNDING
from sparse_ref.conformance.diagnosis import diagnoses_of, spread
from sparse_ref.conformance.judging import Result, ratios, within
from sparse_ref.conformance.masks import read_weights
from sparse_ref.conformance.mistakes import Mistake
from sparse_ref.conformance.report import sentences
from sparse_ref.conformance.telling import fitting, read_in

from .verdicts_peers import Peer

WRONG = ("FAIL", "ACCEPTABLE", "ERROR", "TIMEOUT", "XPASS")
DRAWN = 40  # the most queries and keys of a picture
FIRST = 2  # answers of a question that every mistake is held against,
HELD = 6  # and those that the likely ones are


@dataclass
class Fault:
    """Wrong answers of one kind, and the mistakes that give all of them; none if none is known."""

    mistakes: list[Mistake]
    results: list[Result] = field(default_factory=list)


def record(peer: Peer, fn: Callable[..., Any], report: Report) -> dict[str, Any]:
    """Everything a page needs, and the report itself."""
    found = faults(report, peer.known)
    refused = Counter(r.reason for r in report.results if r.verdict == "UNSUPPORTED")
    return {
        "name": peer.name,
        "package": peer.package,
        "version": peer.version,
        "asked": peer.asked,
        "verdict": verdict(report),
        "unsupported": [list(pair) for pair in refused.most_common(6)],
        "faults": [_fault(one, fn) for one in found],
        "picture": None if found else _first_picture(fn, report),
        "report": report.to_dict(),
    }


def verdict(report: Report) -> str:
    """One word for all cases; a NaN that leaks from a masked key makes none FAIL."""
    wrong = {r.verdict for r in report.results if r.verdict in WRONG and not _masked(r)}
    if wrong:
        return "FAIL" if wrong & {"FAIL", "XPASS"} else min(wrong)
    if any(r.verdict in WRONG for r in report.results):
        return "ACCEPTABLE"
    return "PASS" if report.ok else "UNSUPPORTED"


def _masked(result: Result) -> bool:
    return result.answer is not None and "MaskedNaN" in result.case.hunts


def faults(report: Report, known: Sequence[Mistake] = ()) -> list[Fault]:
    """The wrong answers, apart by mistake, the most frequent first."""
    right = [r for r in report.results if r.verdict == "PASS"]
    questions: dict[tuple[Any, ...], list[Result]] = {}
    for result in report.results:
        if report.verdict(result) in WRONG:
            questions.setdefault(_question(result), []).append(result)
    found: list[Fault] = []
    for alike in questions.values():
        fault = _explained(alike, found) or _named(alike, right, known)
        if fault not in found:
            found.append(fault)
        fault.results += alike
    return sorted(found, key=lambda one: -len(one.results))


def _question(result: Result) -> tuple[Any, ...]:
    """What was asked; what gave no answer belongs to what was said instead."""
    if result.answer is None:
        return (result.reason,)
    case = result.case
    return _masked(result), case.dtype, case.name, *case.options


def _explained(alike: list[Result], found: list[Fault]) -> Fault | None:
    """The fault that explains these answers too, with the mistakes that still do."""
    if alike[0].answer is None:
        return None
    for fault in found:
        if still := [one for one in fault.mistakes if _gives(one, alike)]:
            fault.mistakes = still
            return fault
    return None


def _named(alike: list[Result], right: list[Result], known: Sequence[Mistake]) -> Fault:
    if alike[0].answer is None:
        return Fault([])
    if own := [one for one in known if _gives(one, alike)]:
        return Fault(own)
    for diagnosis in diagnoses_of(spread(alike, FIRST), right):
        mistakes = [one for one in CATALOGUE if one.id in diagnosis.ids]
        if held := [one for one in mistakes if _gives(one, alike)]:
            return Fault(held)
    return Fault([])


def _gives(mistake: Mistake, results: list[Result]) -> bool:
    """Whether a mistake gives all of these answers."""
    for result in spread(results, HELD):
        with np.errstate(all="ignore"):
            outcome = mistake.outcome(result.call())
        if outcome is None or result.answer is None or not within(result.answer, *outcome):
            return False
    return True


def _share(mistake: Mistake, results: list[Result]) -> float:
    """Of one of precision: how much of its bound is used, as the tightest says most."""
    if mistake not in ROUNDING:
        return np.inf
    shares = []
    for result in spread(results, HELD):
        outcome = mistake.outcome(result.call())
        if outcome is not None and isinstance(result.answer, Answer):
            shares.append(ratios(result.answer.out, outcome[0].out, outcome[1].out).max(initial=0))
    return float(max(shares, default=0))


def _fault(fault: Fault, fn: Callable[..., Any]) -> dict[str, Any]:
    first = min(fault.results, key=lambda r: r.case.sizes.m * r.case.sizes.n)
    read = _told(fault, fn, first.case.dtype)
    masked = _masked(first)  # there a finite mask value is told from 0 * NaN by nothing
    mistakes = sorted(
        fault.mistakes,
        key=lambda one: (masked and one.id != "masked-nan", -_share(one, fault.results)),
    )
    return {
        "verdict": "ACCEPTABLE" if masked else first.verdict,
        "ids": [one.id for one in mistakes],
        "story": mistakes[0].story if mistakes else "no known mistake gives these answers",
        "links": [one.link for one in mistakes if one.link],
        "cases": len(fault.results),
        "first": first.case.id,
        "said": [line for line in (first.reason, read) if line]
        + [line for wrong in first.wrong for line in sentences(wrong)],
        "picture": _picture(fn, fault.results, changed=True),
    }


def _told(fault: Fault, fn: Callable[..., Any], dtype: str) -> str:
    """What was read of its bits, which leaves of mistakes of precision those that show it."""
    if len(fault.mistakes) < 2 or not all(one in ROUNDING for one in fault.mistakes):
        return ""
    read = read_in(fn, dtype)
    if read is None:
        return "its bits cannot be read from outside, and tell these apart by nothing"
    kept = fitting([one.id for one in fault.mistakes], read, dtype)
    fault.mistakes = [one for one in fault.mistakes if one.id in kept]
    return f"read from outside in {dtype}: {read}"


def _first_picture(fn: Callable[..., Any], report: Report) -> dict[str, Any] | None:
    """A mask that was read and is right: a window if there is one."""
    right = [r for r in report.results if r.verdict == "PASS"]
    right.sort(key=lambda r: not r.case.name.startswith(("window", "natten", "buckets", "causal")))
    return _picture(fn, right[:1], changed=False)


def _picture(
    fn: Callable[..., Any], results: Sequence[Result], *, changed: bool
) -> dict[str, Any] | None:
    """The mask asked for and the one applied, of the first head where they differ."""
    for result in results:
        case, s = result.case, result.case.sizes
        if max(s.m, s.n) > DRAWN or not s.b * s.m * s.n or set(case.options) - {"q_start"}:
            continue
        try:
            asked = case.pattern.mask(s.m, s.n, heads=s.h)
            weights = _weights(fn, result)
        except Exception:  # a picture is more than was promised
            continue
        applied = np.where(np.isnan(weights), "?", np.where(weights > 0, "#", "."))
        wanted = np.where(asked, "#", ".")
        heads = np.flatnonzero((applied != wanted).any(axis=(1, 2)))
        if not changed or len(heads):
            head = int(heads[0]) if len(heads) else 0
            return {
                "pattern": repr(case.pattern), "case": case.id, "head": head,
                "asked": ["".join(row) for row in wanted[head]],
                "applied": ["".join(row) for row in applied[head]],
            }  # fmt: skip
    return None


def _weights(fn: Callable[..., Any], result: Result) -> Any:
    s, options = result.case.sizes, result.case.options

    def asked(q: Any, k: Any, v: Any, pattern: sr.Pattern) -> Any:
        return fn(q, k, v, pattern, **options)

    return read_weights(
        asked, s.m, s.n, pattern=result.case.pattern, heads=s.h, kv_heads=s.g, head_dim=s.d
    )
