"""Cases: what an implementation is asked, as data."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from sparse_ref.bounds import error_bound
from sparse_ref.gradient_bounds import error_bound_vjp
from sparse_ref.gradients import attention_vjp
from sparse_ref.patterns import Full, Pattern, PerBatch
from sparse_ref.reference import attention
from sparse_ref.selection import Selection

from .probes import PROBES, Sizes


class Call(NamedTuple):
    """One call of an implementation."""

    q: Any
    k: Any
    v: Any
    pattern: Any  # a Pattern, or a Selection
    attributes: dict[str, Any]
    dout: Any = None  # asks for the gradients

    def oracle(self) -> Any:
        """What is right, in float64: `Attention`, or `Gradients`."""
        with np.errstate(invalid="ignore", over="ignore"):
            if self.dout is None:
                return attention(self.q, self.k, self.v, self.pattern, **self.attributes)
            return attention_vjp(self.q, self.k, self.v, self.pattern, self.dout, **self.attributes)

    def bound(self, arithmetic: Any, output: str) -> Any:
        """How far from it one may be."""
        more = {**self.attributes, "arithmetic": arithmetic, "output": output}
        if self.dout is None:
            return error_bound(self.q, self.k, self.v, self.pattern, **more)
        return error_bound_vjp(self.q, self.k, self.v, self.pattern, self.dout, **more)

    def lowered(self) -> Call:
        """The same with a selection written out as a pattern, which mistakes are made of."""
        if not isinstance(self.pattern, Selection):
            return self
        (b, h, m, _), n = self.q.shape, self.k.shape[2]
        starts = np.broadcast_to(self.attributes.get("q_start", n - m), b)
        rows = [
            self.pattern.lowered(m, n, q_start=int(start), batch=i, heads=h)
            for i, start in enumerate(starts)
        ]
        one = rows[0] if b == 1 else PerBatch(rows) if b else Full()
        return self._replace(pattern=one)


@dataclass(frozen=True)
class Case:
    """One question: a pattern, sizes, a probe, options, a type, and the mistakes it is for.

    Parameters
    ----------
    name : str
        Of the pattern, for the id.
    pattern : Pattern or Selection
    sizes : Sizes
    probe : str
        One of `PROBES`.
    options : dict
        Name of an attribute to its value, or to a function of (rng, sizes) that draws it.
    dtype : str
    hunts : tuple of str
        What mistakes it is for; "MaskedNaN" also plants NaN where nobody may look.
    gradients : bool
        Whether it asks for the gradients, not for the answer.
    """

    name: str
    pattern: Pattern | Selection
    sizes: Sizes
    probe: str = "random"
    options: dict[str, Any] = field(default_factory=dict)
    dtype: str = "float32"
    hunts: tuple[str, ...] = ()
    gradients: bool = False

    @property
    def id(self) -> str:
        """Permanent, and unique among the cases of a suite."""
        options = "".join(f"+{name}" for name in self.options)
        planted = "+nan" if "MaskedNaN" in self.hunts else ""
        asked = "/vjp" if self.gradients else ""
        return f"{self.name}{options}{planted}/{self.sizes}/{self.probe}/{self.dtype}{asked}"

    def call(self, seed: int) -> Call:
        """The arrays and attributes of one call: the same for the same seed."""
        rng = np.random.default_rng([seed, *self.id.encode()])
        q, k, v = (x.astype(dtype_named(self.dtype)) for x in PROBES[self.probe](rng, self.sizes))
        attributes = {
            name: value(rng, self.sizes) if callable(value) else value
            for name, value in self.options.items()
        }
        dout = None
        if self.gradients:
            s = self.sizes
            dout = (rng.integers(-128, 129, (s.b, s.h, s.m, s.e)) / 64).astype(q.dtype)
        call = Call(q, k, v, self.pattern, attributes, dout)
        if "MaskedNaN" in self.hunts:
            plant(call)
        return call


def plant(call: Call) -> None:
    """NaN into every key and value that nobody sees, in place."""
    (b, h, m, _), (g, n) = call.q.shape, call.k.shape[1:3]
    for row in range(b):
        start = call.attributes.get("q_start")
        seen = call.pattern.mask(m, n, heads=h, q_start=start, batch=row)
        hidden = ~seen.reshape(g, -1, n).any(axis=1)
        call.k[row, hidden] = call.v[row, hidden] = np.nan


def dtype_named(name: str) -> np.dtype[Any]:
    """A NumPy dtype; bfloat16 needs ml_dtypes."""
    if name == "bfloat16":
        import ml_dtypes  # noqa: PLC0415 - only where it is asked for

        kind: np.dtype[Any] = np.dtype(ml_dtypes.bfloat16)
        return kind
    return np.dtype(name)
