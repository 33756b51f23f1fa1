"""Number formats, and the arithmetic of an implementation: what is rounded to which of them."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ._arrays import Bools, Floats


@dataclass(frozen=True)
class Format:
    """A binary floating-point format with `bits` significant bits, rounded to nearest."""

    bits: int
    least_exponent: int
    max: float

    @property
    def unit(self) -> float:
        """Unit roundoff: a result is off by at most this times itself."""
        return 2.0**-self.bits

    def tiny(self, flush: bool) -> float:
        """How much a result below the normal range is off.

        Flushing to zero is a mode of units with float32's range or more; half and 8-bit numbers
        come from conversions, which keep subnormals.
        """
        flushes = flush and self.least_exponent <= -126
        return 2.0 ** (self.least_exponent - (0 if flushes else self.bits))

    def holds(self, x: Floats) -> Bools:
        """Which entries are numbers of this format; NaN is none."""
        exponent = np.maximum(np.frexp(x)[1], self.least_exponent + 1) - self.bits
        steps = np.ldexp(x, -exponent)
        return np.asarray((steps == np.rint(steps)) & ~(np.abs(x) > self.max))


FORMATS = {
    "float64": Format(53, -1022, np.finfo(np.float64).max),
    "float32": Format(24, -126, (2 - 2.0**-23) * 2.0**127),
    "tf32": Format(11, -126, (2 - 2.0**-10) * 2.0**127),
    "bfloat16": Format(8, -126, (2 - 2.0**-7) * 2.0**127),
    "float16": Format(11, -14, 65504.0),
    "float8_e4m3": Format(4, -6, 448.0),
    "float8_e5m2": Format(3, -14, 57344.0),
}


@dataclass(frozen=True)
class Arithmetic:
    """Which number format each step of an attention kernel rounds to.

    Parameters
    ----------
    score : format of what enters and leaves q.k, and of the scores with softcap and bias
    exp : format of the exponential, its argument and its result
    weight : format in which weights and values enter the second product
    accumulate : format of the sums in both products, of the denominator and of lse
    output : format of the output
        Each of float64, float32, tf32, bfloat16, float16, float8_e4m3, float8_e5m2.
    exp_ulps : float >= 0
        Error of exp, tanh and log, in units in the last place.
    flush : bool
        Whether float32 and wider may flush subnormal results to zero.

    Raises
    ------
    ValueError, TypeError
        Naming the field, what it must be and what was got.

    >>> Arithmetic("float32", "float32", "bfloat16", "float32", "bfloat16").exp_ulps
    2
    >>> Arithmetic("float32", "float32", "int8", "float32", "float32")
    Traceback (most recent call last):
    ...
    ValueError: weight must be one of float64, float32, ..., float8_e5m2, got 'int8'
    """

    score: str
    exp: str
    weight: str
    accumulate: str
    output: str
    exp_ulps: float = 2
    flush: bool = True

    def __post_init__(self) -> None:
        for name in ("score", "exp", "weight", "accumulate", "output"):
            format_named(name, getattr(self, name))
        ulps = self.exp_ulps
        if isinstance(ulps, bool) or not isinstance(ulps, (int, float, np.integer, np.floating)):
            raise TypeError(f"exp_ulps must be a number, got {ulps!r}")
        if not 0 <= ulps < math.inf:
            raise ValueError(f"exp_ulps must be finite and >= 0, got {ulps!r}")
        if not isinstance(self.flush, (bool, np.bool_)):
            raise TypeError(f"flush must be a bool, got {self.flush!r}")


def format_named(name: str, value: object) -> Format:
    """The format that argument `name` asks for."""
    if not isinstance(value, str) or value not in FORMATS:
        raise ValueError(f"{name} must be one of {', '.join(FORMATS)}, got {value!r}")
    return FORMATS[value]


def _with_weights(weight: str) -> Arithmetic:
    return Arithmetic("float32", "float32", weight, "float32", "float32")


PRESETS = {
    "float64": Arithmetic("float64", "float64", "float64", "float64", "float64"),
    "float32": _with_weights("float32"),
    "tf32": Arithmetic("tf32", "float32", "tf32", "float32", "float32"),
    # What fused kernels do on half and 8-bit inputs: float32 inside, but for the weights, which
    # enter the second product in the type of the values.
    "bfloat16": _with_weights("bfloat16"),
    "float16": _with_weights("float16"),
    "float8_e4m3": _with_weights("float8_e4m3"),
    "float8_e5m2": _with_weights("float8_e5m2"),
}


def arithmetic_named(arithmetic: object, output: object) -> Arithmetic:
    """An Arithmetic as it is; a preset with the given output format."""
    if isinstance(arithmetic, Arithmetic):
        return arithmetic
    if not isinstance(arithmetic, str) or arithmetic not in PRESETS:
        names = ", ".join(PRESETS)
        raise ValueError(f"arithmetic must be an Arithmetic or one of {names}, got {arithmetic!r}")
    format_named("output", output)
    return replace(PRESETS[arithmetic], output=str(output))


class Limits:
    """An arithmetic in numbers: the unit roundoff of every step, 2^-53 added for the oracle's."""

    def __init__(self, given: Arithmetic) -> None:
        steps = ("score", "exp", "weight", "accumulate", "output")
        self.formats = {step: FORMATS[getattr(given, step)] for step in steps}
        self.formats["lse"] = FORMATS["float64" if given.output == "float64" else "float32"]
        self.score, self.exp, self.weight, self.accumulate, self.output, self.lse = (
            f.unit + 2.0**-53 for f in self.formats.values()
        )
        self.function = 2 * given.exp_ulps  # error of exp, tanh and log in unit roundoffs
        self.flush = given.flush

    def tiny(self, step: str) -> float:
        """How much a result of this step below the normal range is off."""
        return self.formats[step].tiny(self.flush)

    def max(self, step: str) -> float:
        """The largest number this step can give."""
        return self.formats[step].max


def summation(terms: Any, u: Limits) -> Any:
    """How much of the sum of its terms' sizes a sum of so many terms may be off."""
    return gamma(np.minimum(2 * terms + 8, 8 * np.sqrt(terms) + 16), u.accumulate)


def gamma(n: Any, unit: float) -> Any:
    """Higham's n u / (1 - n u); infinite where that says nothing."""
    nu = np.asarray(n) * unit
    return np.where(nu < 1, nu / (1 - nu), np.inf)
