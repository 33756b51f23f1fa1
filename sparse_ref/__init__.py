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
from types import ModuleType as _ModuleType
from typing import TYPE_CHECKING as _CHECKING

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

__version__ = "0.1.0"

__all__ = [
    "And", "Arithmetic", "Attention", "BlockPattern", "Blocked", "Blocks", "Causal", "Chunked",
    "Comparison", "Document", "Full", "Global", "Gradients", "Grid", "KeyStride", "Keys",
    "Multi", "Neighborhood", "Not", "Offsets", "Or", "Pattern", "PerBatch", "PerHead",
    "Permuted", "PrefixLM", "RandomKeys", "RelativeBias", "RowStride", "Rows", "Runtime",
    "Sink", "SlidingWindow", "Strided", "Tokens", "WithinDocument", "Xor", "attention",
    "attention_vjp", "compare", "conventions", "draw", "error_bound", "error_bound_vjp",
    "from_dict", "from_mask", "merge", "reach", "recipes", "to_blocks", "to_csr",
    "to_dict", "weights",
]  # fmt: skip


if _CHECKING:
    from . import conventions, recipes


def __getattr__(name: str) -> _ModuleType:
    """Whole shelves are imported when first asked for; the kernels among them need Numba."""
    if name in ("conventions", "kernels", "recipes"):
        return importlib.import_module("." + name, __name__)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
