"""The reference for sparse attention: patterns, layouts, an oracle and its error bound.

>>> import numpy as np, sparse_ref as sr
>>> window = sr.Causal() & sr.SlidingWindow(left=2, right=0)
>>> print(sr.draw(window, 4))
# . . .
# # . .
# # # .
. # # #
>>> q = k = v = np.eye(4)[None]
>>> sr.attention(q, k, v, window).out.shape
(1, 4, 4)
"""

import importlib
from typing import TYPE_CHECKING as _CHECKING
from typing import Any as _Any

from .arithmetic import Arithmetic
from .bounds import error_bound
from .gradient_bounds import error_bound_vjp
from .gradients import attention_vjp
from .layouts import Blocks, to_blocks, to_csr
from .patterns import (
    And,
    Blocked,
    BlockPattern,
    Causal,
    Chunked,
    Comparison,
    Document,
    Full,
    Global,
    Grid,
    Keys,
    KeyStride,
    Multi,
    Neighborhood,
    Not,
    Offsets,
    Or,
    Pattern,
    PerBatch,
    PerHead,
    Permuted,
    PrefixLM,
    RandomKeys,
    Rows,
    RowStride,
    Runtime,
    Sink,
    SlidingWindow,
    Strided,
    Tokens,
    WithinDocument,
    Xor,
    compare,
    draw,
    from_dict,
    from_mask,
    to_dict,
)
from .reach import reach
from .reference import attention, merge, weights
from .relative_bias import RelativeBias
from .results import Attention, Gradients
from .selection import Selection

__version__ = "0.1.0"

__all__ = [
    "And", "Arithmetic", "Attention", "BlockPattern", "Blocked", "Blocks", "Budget", "Candidate",
    "Causal", "Chunked", "Comparison", "Document", "Full", "Global", "Gradients", "Grid",
    "KeyStride", "Keys", "Multi", "Neighborhood", "Not", "Offsets", "Or", "Pattern", "PerBatch",
    "PerHead", "Permuted", "PrefixLM", "RandomKeys", "RelativeBias", "RowStride", "Rows", "Runtime",
    "Selection", "Sink", "SlidingWindow", "Strided", "Tokens", "WithinDocument", "Xor", "attention",
    "attention_vjp", "cases", "check", "compare", "conventions", "diagnose", "draw", "error_bound",
    "error_bound_vjp", "fixed", "from_dict", "from_mask", "golden", "isolated", "mechanisms",
    "merge", "normalisers", "parametrize", "reach", "read_mask", "read_precision", "recipes",
    "selection", "to_blocks", "to_csr", "to_dict", "weights",
]  # fmt: skip


if _CHECKING:
    from . import conventions, golden, mechanisms, normalisers, recipes
    from .conformance import (
        Budget,
        Candidate,
        cases,
        check,
        diagnose,
        fixed,
        isolated,
        parametrize,
        read_mask,
        read_precision,
    )

# Whole shelves are imported when first asked for; the kernels among them need Numba.
_SHELVES = (
    "conformance", "conventions", "golden", "kernels", "mechanisms", "normalisers", "recipes",
)  # fmt: skip
_JUDGES = (
    "Budget", "Candidate", "cases", "check", "diagnose", "fixed", "isolated", "parametrize",
    "read_mask", "read_precision",
)  # fmt: skip


def __getattr__(name: str) -> _Any:
    if name in _SHELVES:
        return importlib.import_module("." + name, __name__)
    if name in _JUDGES:
        return getattr(importlib.import_module(".conformance", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
