"""What `to_onnx` was asked for, checked once; every mode reads it."""

from __future__ import annotations

import math
from dataclasses import KW_ONLY, dataclass
from typing import Any

import numpy as np

import sparse_ref as sr
from sparse_ref._arrays import integer

DTYPES = ("float32", "float64", "float16", "bfloat16")
OPSETS = 18, 25


@dataclass(frozen=True)
class Request:
    """One attention as a model, with every default filled in.

    Attributes
    ----------
    pattern : Pattern
    heads, kv_heads : int
        Query heads, and heads of keys and values; the latter divide the former.
    head_dim, value_dim : int
        Of queries and keys, and of values.
    dtype : str
        float32, float64, float16 or bfloat16.
    scale : float > 0
    softcap : float > 0 or None
        A number of float32 where dtype is float64.
    sinks, key_length, q_start : bool
        Whether the model has the input of that name.
    opset : int or None
        None leaves it to the mode.
    dynamic : bool
        Whether the lengths are free. If not, queries and keys are the positions that the pattern
        covers, so it must be one that carries its length.

    Raises
    ------
    TypeError, ValueError
        If an argument is none of this.

    Examples
    --------
    >>> request = Request(sr.Causal(), heads=4, head_dim=64)
    >>> request.kv_heads, request.value_dim, request.scale
    (4, 64, 0.125)
    """

    pattern: sr.Pattern
    _: KW_ONLY
    heads: int
    kv_heads: Any = None
    head_dim: int
    value_dim: Any = None
    dtype: str = "float32"
    scale: Any = None
    softcap: float | None = None
    sinks: bool = False
    key_length: bool = False
    q_start: bool = False
    opset: int | None = None
    dynamic: bool = True

    def __post_init__(self) -> None:
        if not isinstance(self.pattern, sr.Pattern):
            raise TypeError(f"pattern must be a pattern, got {self.pattern!r}")
        heads, head_dim = integer("heads", self.heads, 1), integer("head_dim", self.head_dim, 1)
        kv_heads = heads if self.kv_heads is None else integer("kv_heads", self.kv_heads, 1)
        if heads % kv_heads:
            raise ValueError(f"kv_heads must divide heads = {heads}, got {kv_heads}")
        value_dim = head_dim if self.value_dim is None else integer("value_dim", self.value_dim, 1)
        for name in ("sinks", "key_length", "q_start", "dynamic"):
            if not isinstance(getattr(self, name), bool):
                raise TypeError(f"{name} must be True or False, got {getattr(self, name)!r}")
        checked = {
            "heads": heads,
            "kv_heads": kv_heads,
            "head_dim": head_dim,
            "value_dim": value_dim,
            "dtype": _dtype(self.dtype),
            "scale": head_dim**-0.5 if self.scale is None else _positive("scale", self.scale),
            "softcap": None if self.softcap is None else _positive("softcap", self.softcap),
            "opset": None if self.opset is None else integer("opset", self.opset, *OPSETS),
        }
        for name, value in checked.items():
            object.__setattr__(self, name, value)
        if self.dtype == "float64" and self.softcap is not None:
            _check_exact(self.softcap)
        if not self.dynamic:
            self._check_fixed()

    def _check_fixed(self) -> None:
        if self.pattern.covers is None:
            raise ValueError(
                f"dynamic must be True for a pattern that carries no length, got {self.pattern!r}"
            )
        if self.q_start:
            raise ValueError("q_start must be False where dynamic is: the queries stay in place")


def _dtype(value: Any) -> str:
    """The name of an element type."""
    try:
        name = value if isinstance(value, str) else np.dtype(value).name
    except TypeError:
        name = repr(value)
    if name not in DTYPES:
        raise ValueError(f"dtype must be one of {', '.join(DTYPES)}, got {name}")
    return name


def _check_exact(softcap: float) -> None:
    """Refuse what the file would silently compute with another number in float64."""
    kept = float(np.float32(softcap))  # no input takes it instead, as the queries do for the scale
    if kept != softcap:
        raise ValueError(
            f"softcap must be a float32 number where dtype is float64, as ONNX keeps attributes: "
            f"give {kept!r}, got {softcap!r}"
        )


def _positive(name: str, value: Any) -> float:
    """A finite number above 0."""
    try:
        number = float(value)
    except (TypeError, ValueError):
        raise TypeError(f"{name} must be a number > 0 or None, got {value!r}") from None
    if not 0 < number < math.inf:
        raise ValueError(f"{name} must be > 0 and finite, or None, got {value!r}")
    return number
