"""The cases: patterns x sizes x probes x options x types, each for the mistakes it can show."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from sparse_ref._arrays import integer
from sparse_ref.patterns import (
    Blocked,
    Causal,
    Chunked,
    Document,
    Full,
    Global,
    Grid,
    Keys,
    KeyStride,
    Multi,
    Neighborhood,
    Offsets,
    Pattern,
    PerHead,
    PrefixLM,
    RandomKeys,
    RowStride,
    Sink,
    SlidingWindow,
    Strided,
    Xor,
)
from sparse_ref.patterns.pattern import checked

from .case import Case
from .probes import PROBES, Sizes

# Extents differ pairwise, and are odd or prime where they can be: squares hide transpositions.
SELF = Sizes(1, 6, 2, 13, 13, 5, 7)
CROSS = Sizes(2, 6, 2, 7, 19, 5, 3)  # fewer queries than keys: they are the last positions
WIDE = Sizes(1, 6, 3, 19, 11, 7, 5)  # more queries than keys: the first ones see nothing
RAGGED = Sizes(1, 4, 2, 67, 131, 9, 11)  # past one block of 64, and past two of them
ONE = Sizes(1, 6, 2, 1, 23, 5, 7)  # a decode step
TINY = Sizes(1, 2, 1, 1, 1, 3, 2)
LONG = Sizes(1, 4, 2, 61, 2053, 16, 17)
LONGER = Sizes(1, 2, 1, 31, 8209, 16, 17)
EMPTY = (Sizes(1, 2, 1, 0, 5, 3, 4), Sizes(1, 2, 1, 5, 0, 3, 4), Sizes(0, 2, 1, 3, 5, 3, 4))

OUTER = ("causal", "alignment", "window", "leak")


Named = dict[str, tuple[Callable[[int], Pattern], tuple[str, ...]]]
CAUSAL = Causal()
PATTERNS: Named = {  # of n keys, and what their cases are for
    "full": (lambda n: Full(), ("scale", "heads")),
    "causal": (lambda n: CAUSAL, ("causal", "alignment", "leak")),
    "strictly-causal": (lambda n: CAUSAL - Offsets([0]), ("causal", "empty")),
    "window": (lambda n: CAUSAL & SlidingWindow(n // 3, 0), ("window", "causal")),
    "window-0": (lambda n: CAUSAL & SlidingWindow(0, 0), ("window",)),
    "window-1": (lambda n: CAUSAL & SlidingWindow(1, 0), ("window",)),
    "window-n": (lambda n: CAUSAL & SlidingWindow(max(n - 1, 0), 0), ("window",)),
    "band": (lambda n: SlidingWindow(n // 3, 2), ("window",)),
    "lookahead": (lambda n: SlidingWindow(0, 3), ("window", "empty")),
    "dilated": (lambda n: SlidingWindow(2, 2, dilation=3), ("window", "dilation")),
    "chunked": (lambda n: CAUSAL & Chunked(5), ("chunk",)),
    "chunked-back": (lambda n: Chunked(4, back=1), ("chunk",)),
    "strided": (lambda n: CAUSAL & (SlidingWindow(3, 0) | Strided(4)), ("stride",)),
    "fixed": (lambda n: CAUSAL & (Chunked(6) | KeyStride(6, [5])), ("stride", "chunk")),
    "offsets": (lambda n: Offsets([0, 1, 2, 4, 8]), ("stride",)),
    "rows-and-keys": (lambda n: RowStride(3, [1]) & KeyStride(2, [0]), ("stride", "empty")),
    "sinks": (lambda n: CAUSAL & (SlidingWindow(4, 0) | Sink(2)), ("sink-tokens", "window")),
    "prefix": (lambda n: PrefixLM(4), ("prefix",)),
    "longformer": (lambda n: SlidingWindow(3, 3) | Global([0, 6]), ("global",)),
    "global-keys": (lambda n: CAUSAL & (SlidingWindow(2, 0) | Keys([0, 3])), ("global",)),
    "documents": (lambda n: CAUSAL & Document(np.arange(n) // 5), ("documents",)),
    "blocks": (lambda n: Blocked(SlidingWindow(1, 1), 4), ("block",)),
    "bigbird": (
        lambda n: Blocked(SlidingWindow(1, 1) | Global([0]), 4) | RandomKeys(2, 3, n),
        ("block", "global", "random"),
    ),
    "random": (lambda n: RandomKeys(3, 7, n, causal=True), ("random", "empty")),
    "butterfly": (lambda n: Xor([0, 1, 2, 4]), ("block",)),
    "natten": (lambda n: Neighborhood(n, min(5, n)), ("window",)),
    "grid": (lambda n: Grid((3, -(-n // 3)), [Full(), SlidingWindow(1, 1)]), ("window",)),
    "per-head": (
        lambda n: PerHead([CAUSAL & SlidingWindow(3, 0), CAUSAL & Strided(3)]),
        ("heads", "stride"),
    ),
    "multiset": (lambda n: Multi([CAUSAL, SlidingWindow(3, 0)]), ("counts",)),
    "nothing": (lambda n: ~Full(), ("empty",)),
}  # fmt: skip


def _sinks(rng: np.random.Generator, s: Sizes) -> Any:
    return rng.integers(-4, 5, s.h) / 2.0


def _slopes(rng: np.random.Generator, s: Sizes) -> Any:
    return 2.0 ** -np.arange(1.0, s.h + 1)


def _bias(rng: np.random.Generator, s: Sizes) -> Any:
    return rng.integers(-64, 65, (s.h, s.m, s.n)) / 32


def _lengths(rng: np.random.Generator, s: Sizes) -> Any:
    return np.array([s.n - 3, *[max(s.n // 2, 1)] * (s.b - 1)][: s.b])


def _scale(rng: np.random.Generator, s: Sizes) -> float:
    return 0.75


Option = tuple[dict[str, Any], tuple[str, ...]]
OPTIONS: dict[str, Option] = {
    "scale": ({"scale": _scale}, ("scale",)),
    "softcap": ({"softcap": 1.5}, ("softcap",)),
    "sinks": ({"sink_logits": _sinks}, ("sink-logit",)),
    "alibi": ({"alibi_slopes": _slopes}, ("bias",)),
    "bias": ({"bias": _bias}, ("bias",)),
    "start": ({"q_start": 0}, ("alignment",)),
    "lengths": ({"kv_lengths": _lengths, "q_start": 0}, ("lengths", "padding")),
    "capped-bias": ({"softcap": 1.5, "bias": _bias, "sink_logits": _sinks}, ("softcap", "order")),
}


def cases(
    *,
    pattern: Pattern | None = None,
    quick: bool = False,
    dtypes: Sequence[str] = ("float32", "float16"),
    only: str | Sequence[str] | None = None,
    options: bool = True,
    sizes: Sequence[Sizes] | None = None,
) -> list[Case]:
    """The cases of `check`, as data.

    Parameters
    ----------
    pattern : Pattern, optional
        This one alone instead of the suite's, for an implementation of one pattern.
    quick : bool
        A fifth of the cases: small sizes, the first type.
    dtypes : names of types, of "float32", "float64", "float16", "bfloat16"
    only : str or several
        Ids, or parts of ids.
    options : bool
        Whether to ask for attributes (scale=, softcap=, ...) too.
    sizes : of Sizes, optional
        Instead of the suite's own.

    >>> [case.id for case in cases(quick=True, only="window-1/b1h6g2-13x13")][:2]
    ['window-1/b1h6g2-13x13-d5e7/even/float32', 'window-1/b1h6g2-13x13-d5e7/random/float32']
    """
    if pattern is not None:
        checked(pattern)
    if isinstance(dtypes, str) or not dtypes:
        raise ValueError(f"dtypes must be a list of names, got {dtypes!r}")
    found: dict[str, Case] = {}
    for case in _suite(pattern, quick, tuple(dtypes), options, sizes):
        found.setdefault(case.id, case)
    wanted = None if only is None else (only,) if isinstance(only, str) else tuple(only)
    if wanted is not None:
        found = {i: case for i, case in found.items() if any(part in i for part in wanted)}
    return list(found.values())


def _suite(
    pattern: Pattern | None,
    quick: bool,
    dtypes: tuple[str, ...],
    options: bool,
    sizes: Sequence[Sizes] | None,
) -> Iterator[Case]:
    named: Named = PATTERNS
    if pattern is not None:
        named = {"given": (lambda n: pattern, OUTER)}
    usual = {
        SELF: tuple(PROBES), CROSS: ("even", "random", "low"), WIDE: ("even", "random", "low"),
        RAGGED: ("even", "random", "steps"), ONE: ("even", "random"), TINY: ("random",),
    }  # fmt: skip
    if quick:
        usual = {SELF: ("even", "random"), CROSS: ("even", "random")}
    if sizes is not None:
        usual = {integer_sizes(s): tuple(PROBES) for s in sizes}
    for dtype in dtypes[:1] if quick else dtypes:
        first = dtype == dtypes[0]
        for s, probes in usual.items():
            if not first and s not in (SELF, RAGGED) and sizes is None:
                continue
            for name, hunts, one in _of(named, s):
                for probe in probes:
                    yield Case(name, one, s, probe, {}, dtype, hunts)
        if sizes is None and first:
            yield from _odd(named, dtype, quick)
        if options and (first or not quick):
            yield from _optional(named, dtype, quick)
        if not quick and sizes is None:
            yield from _long(pattern, dtype)


def _of(named: Named, s: Sizes, *names: str) -> Iterator[tuple[str, tuple[str, ...], Pattern]]:
    """The patterns of these names (none: all) that can be asked at these sizes."""
    for name, (make, hunts) in named.items():
        if not names or name in names:
            one = make(s.n)
            if one.covers is None or one.covers >= s.n:
                yield name, hunts, one


def _odd(named: Named, dtype: str, quick: bool) -> Iterator[Case]:
    """Nothing to compute, and what nobody sees not finite."""
    for s in EMPTY:
        for name, _, one in _of(named, s, "given", "causal", "full", "window"):
            yield Case(name, one, s, "random", {}, dtype, ("empty",))
    hiding = ("given", "strictly-causal", "window-1", "rows-and-keys", "global-keys")
    for s in (SELF, CROSS)[: 1 if quick else 2]:
        for name, _, one in _of(named, s, *hiding):
            yield Case(name, one, s, "random", {}, dtype, ("MaskedNaN",))


def _optional(named: Named, dtype: str, quick: bool) -> Iterator[Case]:
    for s in (SELF, CROSS)[: 1 if quick else 2]:
        for name, _, one in _of(named, s, "given", "causal", "window", "strided"):
            for asked, hunts in OPTIONS.values():
                for probe in ("random",) if quick else ("random", "ramp"):
                    yield Case(name, one, s, probe, dict(asked), dtype, hunts)


def _long(pattern: Pattern | None, dtype: str) -> Iterator[Case]:
    """Few queries over many keys, where one key is worth nothing on random inputs."""
    for s in (LONG, LONGER):
        ones: dict[str, Pattern] = {
            "causal": CAUSAL,
            "window": CAUSAL & SlidingWindow(s.n // 2, 0),
            "strided": CAUSAL & (SlidingWindow(63, 0) | Strided(64)),
            "sinks": CAUSAL & (SlidingWindow(255, 0) | Sink(4)),
        }
        if pattern is not None:
            ones = {"given": pattern}
        for name, one in ones.items():
            if one.covers is None or one.covers >= s.n:
                for probe in ("even", "ramp", "lower", "steps"):
                    yield Case(name, one, s, probe, {}, dtype, OUTER)


def integer_sizes(sizes: Sequence[int]) -> Sizes:
    """Sizes from seven integers, checked."""
    given = Sizes(*(integer(name, x) for name, x in zip(Sizes._fields, sizes, strict=True)))
    if not given.g or given.h % given.g:
        raise ValueError(f"sizes must have g that divides h, got g = {given.g}, h = {given.h}")
    return given
