"""One case of the benchmark: ours against its peers, on the same arrays, checked by the oracle."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

import sparse_ref as sr

from . import measure
from .peers import Arrays, FellBackError, Form, MissingError, Peer, Task, needed, said

Row = dict[str, Any]
SPANS, SPAN = 8, 5  # rows asked of the oracle: so many runs of so many neighbours, in every head
SAME = 8.0  # a peer this many bounds away computes something else
GRADIENT = 1e-5  # float32's share of the largest entry that a gradient may be off
FAR = 3.0  # times the least time: such a form of a side is not timed again
SMALL = 256  # tokens at which every gradient is asked of the oracle


class WrongError(Exception):
    """An output is not what the oracle says."""


@dataclass(frozen=True)
class Settings:
    """How a run of the benchmark differs from the full one."""

    runs: int = 15
    tokens: int | None = None  # in place of every case's own; then no target is asked
    threads: int = 2
    quick: bool = False


def kernels(task: Task) -> Iterator[Form]:
    """Ours. The plan is made by the first call and found again by the others."""
    ours = needed("sparse_ref.kernels", "numba")
    arrays = task.q, task.k, task.v, task.pattern
    if task.dout is None:
        yield Form("", lambda: (ours.attention(*arrays).out,), tuple)
        return
    if not hasattr(ours, "attention_vjp"):
        raise MissingError("sr.kernels.attention_vjp does not exist yet")
    dout = task.dout

    def both_ways() -> Arrays:
        forward = ours.attention(*arrays)
        return (forward.out, *ours.attention_vjp(*arrays, dout, forward=forward)[:3])

    yield Form("", both_ways, tuple)


@dataclass(frozen=True)
class Race:
    """A case; the target is about the first peer: its time over ours."""

    name: str
    what: str
    pattern: Callable[[int], sr.Pattern]  # of the number of keys
    peers: Mapping[str, Peer]
    target: float | None = None
    ours: Peer = field(default=kernels)
    tokens: int = 4096
    queries: int | None = None  # None: as many as keys
    kv_heads: int = 8
    dtype: str = "float32"
    gradients: bool = False
    share: float | None = None  # of the machine's sgemm that is asked for
    needs: str | None = None  # a feature of the CPU without which the target says nothing

    def task(self, tokens: int, threads: int) -> Task:
        """Arrays from a fixed seed: 8 heads of size 64."""
        kind = needed("ml_dtypes").bfloat16 if self.dtype == "bfloat16" else np.dtype(self.dtype)
        m, rng = self.queries or tokens, np.random.default_rng(0)

        def draw(heads: int, length: int) -> NDArray[Any]:
            return rng.standard_normal((1, heads, length, 64), np.float32).astype(kind)

        q, k, v = draw(8, m), draw(self.kv_heads, tokens), draw(self.kv_heads, tokens)
        return Task(self.pattern(tokens), q, k, v, draw(8, m) if self.gradients else None, threads)

    def run(self, settings: Settings, machine: Mapping[str, Any]) -> Iterator[Row]:
        """The row of this case.

        A peer that is not installed is named in `left_out`; one that fails, falls back or is wrong
        gets no ratio and makes the row's `error`.
        """
        own = settings.tokens is None and (self.needs is None or measure.has(self.needs))
        task = self.task(settings.tokens or self.tokens, settings.threads)
        row: Row = {"what": self.what, "dtype": self.dtype}
        row |= {"q": task.q.shape, "k": task.k.shape, "left_out": {}}
        truth, failed = Truth(task, self.dtype), []
        row["checked"], errors = truth.says, {}
        forms: dict[str, Form] = {}
        for name, side in {"ours": self.ours, **self.peers}.items():
            try:
                form = _fastest(side, task)
                errors[name], forms[name] = judged(name, _results(form)[0], truth), form
            except Exception as error:
                if name == "ours":
                    raise
                if isinstance(error, MissingError):
                    row["left_out"][name] = str(error)
                else:
                    failed.append(f"{name}: {said(error)}")
        if self.gradients:
            row["checked"] += self._gradients(task, forms)
        row |= {"error": "; ".join(failed)} if failed else {}
        times = measure.in_turn({name: form.call for name, form in forms.items()}, settings.runs)
        sides = {name: _side(times[name], forms[name].how, errors[name]) for name in forms}
        row |= {"ours": sides.pop("ours"), "peers": sides}
        row |= _ratios(row, next(iter(self.peers)), self.target if own else None)
        row["plan_ms"] = self._planning(task)
        row |= self._speed(task, row["ours"]["ms"], machine, own)
        if "against" in row:
            row["limit_ratio"] = round(row["peers"][row["against"]]["ms"] / row["limit_ms"], 2)
        yield row

    def _planning(self, task: Task) -> float | None:
        """Milliseconds of a plan for a pattern never seen before, where ours is the kernels."""
        if self.ours is not kernels:
            return None
        (_, h, m, d), (_, g, n, _) = task.q.shape, task.k.shape
        start = time.perf_counter()
        sr.kernels.plan(self.pattern(n), m, n, heads=h, kv_heads=g, head_dim=d, dtype=task.q.dtype)
        return round(1e3 * (time.perf_counter() - start), 2)

    def _speed(self, task: Task, ms: float, machine: Mapping[str, Any], own: bool) -> Row:
        """Useful operations of allowed pairs, or the bytes that a single query has to read."""
        (_, h, m, d), (_, _, n, e) = task.q.shape, task.v.shape
        pairs = sr.to_blocks(task.pattern, m, n, heads=h).nnz
        products = 4 * d + 3 * e if self.gradients else d + e  # five more in the backward pass
        gflops = 2e-6 * pairs * products / ms
        speed: Row = {"pairs": pairs, "gflops": round(gflops, 1)}
        speed["sgemm_share"] = round(gflops / machine["sgemm_gflops"], 3)
        speed["limit_ms"] = float(f"{ms * gflops / machine['sgemm_gflops']:.4g}")
        if own and self.share:
            speed |= {"share_target": self.share, "share_met": speed["sgemm_share"] >= self.share}
        if m == 1:
            gbs = 1e-6 * (task.k.nbytes + task.v.nbytes) / ms
            speed |= {"gbs": round(gbs, 2), "copy_share": round(gbs / machine["copy_gbs"], 3)}
            speed["limit_ms"] = float(f"{ms * gbs / machine['copy_gbs']:.4g}")
        return speed

    def _gradients(self, task: Task, forms: Mapping[str, Form]) -> str:
        """All gradients of ours at a small size, and of the peers' against ours at full size."""
        small = self.task(min(SMALL, task.k.shape[2]), task.threads)
        _, *got = _results(_fastest(self.ours, small))
        assert small.dout is not None
        want = sr.attention_vjp(small.q, small.k, small.v, small.pattern, small.dout)[:3]
        _close("ours", got, want)
        _, *ours = _results(forms["ours"])
        for name, form in forms.items():
            _close(name, _results(form)[1:], ours)
        return (
            f"; dq, dk, dv to {GRADIENT:g} of the largest entry: against the oracle at "
            f"{small.k.shape[2]} tokens, against every peer at full size"
        )


class Truth:
    """What the oracle says of some rows, and how far float arithmetic may be from it."""

    def __init__(self, task: Task, dtype: str, spans: int = SPANS):
        h, m = task.q.shape[1:3]
        start = m - task.k.shape[2]  # queries are the last positions
        rng, last = np.random.default_rng(1), max(0, m - SPAN)
        firsts = {0, last, *rng.integers(0, last + 1, spans - 2).tolist()}
        self.parts = []
        for first in sorted(firsts):
            rows = slice(first, min(m, first + SPAN))
            asked = task.q[:, :, rows], task.k, task.v, task.pattern
            want = sr.attention(*asked, q_start=first - start).out
            bound = sr.error_bound(
                *asked, q_start=first - start, arithmetic=dtype, output=dtype
            ).out
            self.parts.append((rows, want, bound))
        count = len({row for rows, *_ in self.parts for row in range(rows.start, rows.stop)})
        self.says = f"{count} of {m:,} rows in each of {h} heads against sr.error_bound"

    def share(self, out: NDArray[Any]) -> float:
        """The largest error, as a share of its bound; at most 1 is right."""
        worst = 0.0
        for rows, want, bound in self.parts:
            error = np.abs(out[:, :, rows].astype(np.float64) - want)
            with np.errstate(divide="ignore", invalid="ignore"):
                share = np.where(error == 0, 0.0, error / bound)
            worst = max(worst, float(np.max(share)) if not np.isnan(share).any() else np.inf)
        return worst


def _results(form: Form) -> Arrays:
    return form.arrays(form.call())


def _fastest(peer: Peer, task: Task) -> Form:
    """The best form of a side, by three calls each of those that are not far behind in one."""
    forms = list(peer(task))
    once = [measure.seconds(form.call) for form in forms] if len(forms) > 1 else [0.0]
    forms = [form for form, took in zip(forms, once, strict=True) if took <= FAR * min(once)]
    if len(forms) == 1:
        return forms[0]
    times = measure.in_turn({str(i): form.call for i, form in enumerate(forms)}, 3)
    return forms[int(min(times, key=lambda i: statistics.median(times[i])))]


def judged(name: str, out: NDArray[Any], truth: Truth) -> float:
    """How much of the bound a side uses; ours must stay within it, a peer be the same function."""
    share = truth.share(out)
    if name == "ours" and not share <= 1:
        raise WrongError(f"ours is wrong: its error is {share:.3g} of sr.error_bound")
    if not share <= SAME:
        raise FellBackError(f"{name} computes something else: {share:.3g} of sr.error_bound")
    return float(f"{share:.3g}")


def _close(name: str, got: Any, want: Any) -> None:
    for which, one, other in zip(("dq", "dk", "dv"), got, want, strict=True):
        error = float(np.abs(one - other).max() / np.abs(other).max())
        if not error <= GRADIENT:
            raise WrongError(f"{which} of {name} is off by {error:.3g} of its largest entry")


def _side(times: list[float], how: str, share: float) -> Row:
    ms = [1e3 * t for t in times]
    numbers = {"ms": statistics.median(ms), "least": min(ms), "most": max(ms)}
    return {"how": how, **{k: float(f"{x:.4g}") for k, x in numbers.items()}, "error_share": share}


def _ratios(row: Row, judge: str, target: float | None) -> Row:
    """Against the peer of the target, and against the fastest."""
    peers, ours = row["peers"], row["ours"]["ms"]
    if not peers:
        return {"target": target}
    best = min(peers, key=lambda name: peers[name]["ms"])
    found: Row = {"target": target, "best": best, "best_ratio": round(peers[best]["ms"] / ours, 2)}
    if judge in peers:
        ratio = peers[judge]["ms"] / ours
        found |= {"against": judge, "ratio": round(ratio, 2)}
        found |= {"met": ratio >= target} if target else {}
    return found
