"""A golden case: what is asked, what is right, and how far off float32 and half may be."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sparse_ref.conformance.calling import Implementation, ask
from sparse_ref.conformance.case import Call, dtype_named
from sparse_ref.conformance.judging import Wrong, differences
from sparse_ref.conformance.probes import Sizes
from sparse_ref.patterns import Pattern, from_dict
from sparse_ref.results import Attention, Gradients

from .files import Tensors
from .text import counts

TYPES = ("float32", "float16", "bfloat16")
WIDEST = 2**20  # entries of a pattern's tables


@dataclass(frozen=True, eq=False)
class GoldenCase:
    """One case; `repr` is its id, and `words` says which keys a query sees.

    Its arrays are read-only; `attributes` are those of `sr.attention`. Where q and k choose the
    keys, or the tensors index_q, index_k and index_weights, `selection` says how; `pattern` and
    `counts` hold what is right to choose.
    """

    id: str
    family: str
    comment: str
    flags: tuple[str, ...]
    words: str
    sizes: Sizes
    probe: str
    tensors: Tensors = field(repr=False)
    _pattern: dict[str, Any] = field(repr=False)
    _attributes: dict[str, Any] = field(repr=False)
    _mask: dict[str, Any] = field(repr=False)
    selection: dict[str, Any] | None = field(default=None, repr=False)

    def __repr__(self) -> str:
        return self.id

    @cached_property
    def pattern(self) -> Pattern:
        """The pattern, from its JSON."""
        if _entries(self._pattern) > WIDEST:
            raise ValueError(f"{self.id}: pattern must have tables of at most {WIDEST} entries")
        return from_dict(self._pattern)

    @cached_property
    def attributes(self) -> dict[str, Any]:
        """Scale, softcap, bias, ... as `sr.attention` takes them; only those that are given."""
        arrays = ("bias", "alibi_slopes", "sink_logits")
        given = {n: np.asarray(self.tensors[n], np.float64) for n in arrays if n in self.tensors}
        for name, value in self._attributes.items():
            given[name] = np.array(value) if isinstance(value, list) else value
        return given

    @cached_property
    def counts(self) -> NDArray[np.uint8]:
        """How often each key counts, (1 or b, 1 or h, m, n): pattern, lengths and positions."""
        batch, heads = self._mask["batch"], self._mask["heads"]
        rows = counts(self._mask["rows"], self.sizes.n)
        return rows.reshape(batch, heads, self.sizes.m, self.sizes.n)

    def call(self, dtype: str = "float32") -> Call:
        """The call to make: q, k and v are exact in every type but 8-bit ones."""
        q, k, v = (self.tensors[name].astype(dtype_named(dtype)) for name in "qkv")
        return Call(q, k, v, self.pattern, self.attributes)

    @property
    def want(self) -> Attention:
        """What is right, in float64."""
        return Attention(self.tensors["out"], self.tensors["lse"])

    def bound(self, dtype: str = "float32") -> Attention:
        """How far from it an implementation of this type may be."""
        return Attention(*(self.tensors[f"bound.{dtype}.{name}"] for name in ("out", "lse")))

    @property
    def cotangents(self) -> tuple[NDArray[Any], NDArray[Any] | None] | None:
        """What comes from above, (dout, dlse or None); None if no gradients are asked for."""
        if "dout" not in self.tensors:
            return None
        return self.tensors["dout"], self.tensors.get("dlse")

    @property
    def gradients(self) -> Gradients:
        """The right gradients; None where there are none."""
        return Gradients(*(self.tensors.get(name) for name in Gradients._fields))

    def gradient_bound(self, dtype: str = "float32") -> Gradients:
        """How far from them an implementation may be."""
        names = (f"bound.{dtype}.{name}" for name in Gradients._fields)
        return Gradients(*(self.tensors.get(name) for name in names))

    def check(self, fn: Implementation, dtype: str = "float32") -> list[Wrong]:
        """Where `fn(q, k, v, pattern, **attributes) -> out or (out, lse)` is wrong, if anywhere.

        Raises what fn raises, and AnswerError for a wrong shape or for inputs written over.
        """
        call, bound = self.call(dtype), self.bound(dtype)
        answer = ask(fn, call.q, call.k, call.v, call.pattern, call.attributes)
        pairs = (
            differences(name, theirs, getattr(self.want, name), getattr(bound, name))
            for name, theirs in answer._asdict().items()
            if theirs is not None
        )
        return [wrong for wrong in pairs if wrong is not None]


def _entries(part: Any) -> int:
    """How many entries the run-length tables of a pattern's JSON decode to."""
    if isinstance(part, list):
        return sum(map(_entries, part))
    if not isinstance(part, dict):
        return 0
    total = sum(_entries(part[key]) for key in part)
    for key in ("table", "rows", "key_steps"):
        for run in part[key] if isinstance(part.get(key), list) else ():
            if isinstance(run, list) and len(run) == 2 and isinstance(run[1], int):
                total += abs(run[1])
    for run in part["set"] if isinstance(part.get("set"), list) else ():
        if isinstance(run, list) and len(run) == 3 and all(isinstance(i, int) for i in run):
            total += abs(run[1] - run[0]) // max(abs(run[2]), 1)
    return total
