"""Attention on the CPU, compiled by Numba: the oracle's meaning at the speed of matrix products.

>>> import numpy as np, sparse_ref as sr
>>> q = k = v = np.ones((2, 70, 8), dtype=np.float32)
>>> sr.kernels.attention(q, k, v, sr.Causal()).out.shape
(2, 70, 8)
"""

from .backward import attention_vjp
from .forward import attention
from .plans import Plan, plan
from .select import lightning_indexer, moba, msa, topk_blocks, topk_keys

__all__ = [
    "Plan", "attention", "attention_vjp", "lightning_indexer", "moba", "msa", "plan",
    "topk_blocks", "topk_keys",
]  # fmt: skip

attention.vjp = attention_vjp  # type: ignore[attr-defined]  # where `sr.check` looks for gradients
