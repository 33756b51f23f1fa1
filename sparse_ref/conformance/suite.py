"""The cases: patterns x sizes x probes x options x types, each for the mistakes it can show."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import chain

from sparse_ref._arrays import integer
from sparse_ref.patterns import Pattern, Sink, SlidingWindow, Strided
from sparse_ref.patterns.pattern import checked
from sparse_ref.selection import Selection

from .case import Case
from .probes import PROBES, Sizes
from .questions import (
    CAUSAL,
    CROSS,
    EMPTY,
    GRADIENT_OPTIONS,
    LONG,
    LONGER,
    ONE,
    OPTIONS,
    OUTER,
    PATTERNS,
    RAGGED,
    SELF,
    TINY,
    WIDE,
    Named,
)


def cases(
    *,
    pattern: Pattern | Selection | None = None,
    quick: bool = False,
    dtypes: Sequence[str] = ("float32", "float16"),
    only: str | Sequence[str] | None = None,
    options: bool = True,
    sizes: Sequence[Sizes] | None = None,
    gradients: bool = False,
) -> list[Case]:
    """The cases of `check`, as data.

    Parameters
    ----------
    pattern : Pattern or Selection, optional
        This one alone instead of the suite's, for an implementation of one pattern. A selection is
        asked for at its own batch, heads and number of queries, over as many keys: more only if it
        lists some beyond them, or `sizes` says so. Cases differ in the rest.
    quick : bool
        A fifth of the cases: small sizes, the first type.
    dtypes : names of types, of "float32", "float64", "float16", "bfloat16"
    only : str or several
        Ids, or parts of ids.
    options : bool
        Whether to ask for attributes (scale=, softcap=, ...) too.
    sizes : of Sizes, optional
        Instead of the suite's own.
    gradients : bool
        Whether to ask for gradients too, of one that has `fn.vjp`; their ids end in "/vjp".

    >>> [case.id for case in cases(quick=True, only="window-1/b1h6g2-13x13")][:2]
    ['window-1/b1h6g2-13x13-d5e7/even/float32', 'window-1/b1h6g2-13x13-d5e7/random/float32']
    >>> import sparse_ref as sr
    >>> chosen = sr.Selection([[[[0], [1], [0]]]], heads=2)
    >>> cases(pattern=chosen, quick=True)[0].id
    'given/b1h2g2-3x3-d5e7/even/float32'
    """
    if pattern is not None and not isinstance(pattern, Selection):
        checked(pattern)
    if isinstance(dtypes, str) or not dtypes:
        raise ValueError(f"dtypes must be a list of names, got {dtypes!r}")
    found: dict[str, Case] = {}
    chosen: Iterable[Case]
    if isinstance(pattern, Selection):
        chosen = _selected(pattern, quick, tuple(dtypes), options, sizes, gradients)
    else:
        chosen = _suite(pattern, quick, tuple(dtypes), options, sizes)
    if gradients and not isinstance(pattern, Selection):
        chosen = chain(chosen, _gradients(pattern, quick, tuple(dtypes), options, sizes))
    for case in chosen:
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
    for s in (SELF, CROSS):
        for name, _, one in _of(named, s, "given", "causal", "window", "strided"):
            for option, (asked, hunts) in OPTIONS.items():
                if quick and (option == "start") != (s == CROSS):
                    continue  # where queries start is told by fewer of them than keys
                for probe in ("random",) if quick else ("random", "ramp"):
                    yield Case(name, one, s, probe, dict(asked), dtype, hunts)


def _gradients(
    pattern: Pattern | None,
    quick: bool,
    dtypes: tuple[str, ...],
    options: bool,
    sizes: Sequence[Sizes] | None,
) -> Iterator[Case]:
    """On random inputs alone: what is worth nothing there is worth nothing to learning too."""
    named: Named = PATTERNS if pattern is None else {"given": (lambda n: pattern, OUTER)}
    usual = [SELF, CROSS] if quick else [SELF, CROSS, WIDE, RAGGED, ONE]
    usual = usual if sizes is None else [integer_sizes(s) for s in sizes]
    for dtype in dtypes[:1] if quick else dtypes:
        for s in usual:
            for name, hunts, one in _of(named, s):
                yield Case(name, one, s, "random", {}, dtype, (*hunts, "gradients"), True)
        for s in [SELF, CROSS] if options else []:
            for name, _, one in _of(named, s, "given", "causal", "window"):
                for asked, hunts in GRADIENT_OPTIONS.values():
                    more = (*hunts, "gradients")
                    yield Case(name, one, s, "random", dict(asked), dtype, more, True)


def _long(pattern: Pattern | None, dtype: str) -> Iterator[Case]:
    """Few queries over many keys, where one key is worth nothing on random inputs."""
    for s in (LONG, LONGER):
        ones: dict[str, Pattern] = {
            "causal": CAUSAL,
            "window": CAUSAL & SlidingWindow(s.n // 2, 0),
            "band": SlidingWindow(s.n // 2, 2),
            "strided": CAUSAL & (SlidingWindow(63, 0) | Strided(64)),
            "sinks": CAUSAL & (SlidingWindow(255, 0) | Sink(4)),
        }
        if pattern is not None:
            ones = {"given": pattern}
        for name, one in ones.items():
            if one.covers is None or one.covers >= s.n:
                mixed = ("random",) if name in ("causal", "given") else ()  # tells queries apart
                for probe in ("even", "ramp", "lower", "steps", *mixed):
                    yield Case(name, one, s, probe, {}, dtype, OUTER)


def _selected(
    one: Selection,
    quick: bool,
    dtypes: tuple[str, ...],
    options: bool,
    sizes: Sequence[Sizes] | None,
    gradients: bool,
) -> Iterator[Case]:
    """A selection is of one length, so that its cases differ in all else."""
    hunts, brief = ("selection", *OUTER), ("even", "random")
    b, _, rows, _ = one.indices.shape
    m = rows * one.query_block
    first = Sizes(b, one.heads, one.kv_heads, m, one.least_keys(m), SELF.d, SELF.e)
    usual = {first: brief if quick else tuple(PROBES)}
    if not quick:
        usual[first._replace(d=RAGGED.d, e=RAGGED.e)] = brief
    if sizes is not None:
        usual = {integer_sizes(s): tuple(PROBES) for s in sizes}
    for dtype in dtypes[:1] if quick else dtypes:
        for s, probes in usual.items():
            one.fit(s.b, s.h, s.g, s.m)  # an error, if it does not
            for probe in probes:
                yield Case("given", one, s, probe, {}, dtype, hunts)
            yield Case("given", one, s, "random", {}, dtype, ("MaskedNaN",))
            asked = OPTIONS if options else {}
            for option, more in asked.values():
                if "kv_lengths" not in option or s.n > 3:
                    for probe in brief[1:] if quick else ("random", "ramp"):
                        yield Case("given", one, s, probe, dict(option), dtype, more)
            asked = {"": ({}, hunts)} | (GRADIENT_OPTIONS if options else {})
            for option, more in asked.values() if gradients else ():
                if "kv_lengths" not in option or s.n > 3:
                    named = (*more, "gradients")
                    yield Case("given", one, s, "random", dict(option), dtype, named, True)


def integer_sizes(sizes: Sequence[int]) -> Sizes:
    """Sizes from seven integers, checked."""
    given = Sizes(*(integer(name, x) for name, x in zip(Sizes._fields, sizes, strict=True)))
    if not given.g or given.h % given.g:
        raise ValueError(f"sizes must have g that divides h, got g = {given.g}, h = {given.h}")
    return given
