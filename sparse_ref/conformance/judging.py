"""One case, one verdict."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from sparse_ref._arrays import Floats
from sparse_ref.arithmetic import FORMATS, PRESETS
from sparse_ref.results import Gradients

from .budget import Budget, Loss, measure
from .calling import Answer, AnswerError, Implementation, ask, ask_gradients
from .case import Call, Case
from .isolation import CrashError, Isolated

VERDICTS = (
    "PASS", "FAIL", "ACCEPTABLE", "APPROXIMATE", "UNSUPPORTED", "ERROR", "TIMEOUT", "XFAIL",
    "XPASS",
)  # fmt: skip


ROWS = ("batch", "head", "query")
KEYS = ("batch", "key/value head", "key")
AXES = {
    "out": (*ROWS, "column"), "lse": ROWS, "dq": (*ROWS, "column"), "dk": (*KEYS, "column"),
    "dv": (*KEYS, "column"), "dbias": ("head", "query", "key"), "dsink_logits": ("head",),
}  # fmt: skip


class Wrong(NamedTuple):
    """Where an array is wrong: counts, and its first wrong entry in row-major order."""

    name: str  # "out", "lse", "dq", ...
    wrong: int
    total: int
    first: tuple[int, ...]
    got: float
    want: float
    bound: float
    rows: NDArray[np.bool_]  # which entries are wrong, or rows of them: as AXES, without columns
    worst: float  # the largest error over its bound


@dataclass(frozen=True, eq=False)
class Result:
    """What came of one case."""

    case: Case
    verdict: str
    reason: str = ""
    wrong: tuple[Wrong, ...] = ()
    ratio: float = 0.0  # the largest error over its bound, where there was nothing wrong too
    seed: int = 0
    seconds: float = 0.0
    answer: Answer | Gradients | None = None
    loss: Loss | None = None  # of one that is approximate

    def call(self) -> Call:
        """The call again: always the same object."""
        return self._call

    @cached_property
    def _call(self) -> Call:
        return self.case.call(self.seed).lowered()


def judge(
    fn: Implementation,
    case: Case,
    seed: int,
    timeout: float | None = None,
    budget: Budget | None = None,
) -> Result:
    """Run an implementation on a case, and hold its answer against the oracle.

    The implementation goes first, on copies, so that it cannot have seen the answer.
    """
    start = time.perf_counter()
    try:
        call = case.call(seed)
    except ImportError as missing:
        return Result(case, "UNSUPPORTED", f"{missing.name} is not installed", seed=seed)
    try:
        answer = _within(None if isinstance(fn, Isolated) else timeout, lambda: _asked(fn, call))
    except NotImplementedError as refusal:
        return Result(case, "UNSUPPORTED", str(refusal), seed=seed)
    except AnswerError as sentence:
        return Result(case, "FAIL", str(sentence), seed=seed)
    except TimeoutError:
        return Result(case, "TIMEOUT", f"no answer within {timeout} s", seed=seed)
    except CrashError as epitaph:
        return Result(case, "ERROR", str(epitaph), seed=seed)
    except (Exception, SystemExit) as error:  # whatever it is, it is a finding
        return Result(case, "ERROR", f"{type(error).__name__}: {error}", seed=seed)
    seconds = time.perf_counter() - start
    wrong, ratio, reason = compare_answer(call, answer)
    verdict = "FAIL" if wrong or reason else "PASS"
    result = Result(case, verdict, reason, wrong, ratio, seed, seconds, answer)
    return result if not wrong or budget is None else _approximate(fn, call, result, budget)


def _approximate(fn: Implementation, call: Call, wrong: Result, budget: Budget) -> Result:
    """The verdict on one that may lose something: never PASS."""
    try:
        loss = measure(fn, call, wrong.answer)
    except Exception as error:  # whatever it is that it does not do a second time
        return replace(wrong, reason=f"its weights cannot be read: {type(error).__name__}: {error}")
    if loss.within(budget):
        return replace(wrong, verdict="APPROXIMATE", reason=str(loss), loss=loss)
    allowed = f"error {budget.error:g}, recall {budget.recall:g}"
    return replace(wrong, reason=f"{loss}; the budget is {allowed}")


def _asked(fn: Implementation, call: Call) -> Answer | Gradients:
    given = (call.q, call.k, call.v, call.pattern, call.attributes)
    return ask(fn, *given) if call.dout is None else ask_gradients(fn, *given, call.dout)


def compare_answer(call: Call, answer: Answer | Gradients) -> tuple[tuple[Wrong, ...], float, str]:
    """What is wrong with an answer, the largest error over its bound, and a type too narrow."""
    given = call.q.dtype.name
    for name, theirs in zip(answer._fields, answer, strict=True):
        if theirs is None or name == "lse":
            continue
        got = theirs.dtype.name
        if FORMATS[got].bits < FORMATS[given].bits or (got != given and FORMATS[got].bits < 24):
            return (), np.inf, f"{name} must have the type of q, {given}, got {got}"
    want, bound = call.oracle(), call.bound(given if given in PRESETS else "float32", given)
    found, ratio = [], 0.0
    for name, theirs, exact, limit in zip(answer._fields, answer, want, bound, strict=True):
        if theirs is None or exact is None:
            continue
        if theirs.shape != exact.shape:
            return (), np.inf, f"{name} must have shape {exact.shape}, got {theirs.shape}"
        wrong = differences(name, theirs, exact, limit)
        ratio = max(ratio, ratios(theirs, exact, limit).max(initial=0))
        if wrong is not None:
            found.append(wrong)
    return tuple(found), ratio, ""


def ratios(got: Any, want: Floats, bound: Floats) -> Floats:
    """Error over bound; 0 where it is exact, inf where a NaN or an infinity is not the oracle's."""
    got = np.asarray(got, np.float64)
    exact = (got == want) | (np.isnan(got) & np.isnan(want))
    with np.errstate(invalid="ignore", divide="ignore"):
        ratio = np.abs(got - want) / bound
    ratio = np.where(np.isnan(ratio), np.inf, ratio)
    return np.asarray(np.where(exact | np.isinf(bound), 0, ratio))


def differences(name: str, got: Any, want: Floats, bound: Floats) -> Wrong | None:
    """Where an array is wrong; None if it is nowhere."""
    ratio = ratios(got, want, bound)
    bad = ratio > 1
    if not bad.any():
        return None
    first = tuple(int(i) for i in np.argwhere(bad)[0])
    rows = np.asarray(bad.any(axis=-1) if AXES[name][-1] == "column" else bad)
    return Wrong(
        name, int(bad.sum()), bad.size, first, float(got[first]), float(want[first]),
        float(bound[first]), rows, float(ratio.max()),
    )  # fmt: skip


def within(answer: Answer | Gradients, target: Any, limit: Any) -> bool:
    """Whether an answer is a target within its bound, as far as it goes."""
    return all(
        theirs is None or exact is None or not (ratios(theirs, exact, most) > 1).any()
        for theirs, exact, most in zip(answer, target, limit, strict=True)
    )


def _within(timeout: float | None, work: Any) -> Answer | Gradients:
    """The result of work(), or TimeoutError; what does not end is left to itself."""
    if timeout is None:
        return work()  # type: ignore[no-any-return]
    done: list[Any] = []

    def run() -> None:
        try:
            done.append((True, work()))
        except BaseException as error:  # raised again below
            done.append((False, error))

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(timeout)
    if not done:
        raise TimeoutError
    fine, value = done[0]
    if not fine:
        raise value
    return value  # type: ignore[no-any-return]
