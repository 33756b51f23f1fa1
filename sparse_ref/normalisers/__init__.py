"""Normalisers other than softmax: sparsemax, 1.5-entmax and alpha-entmax over a pattern.

What softmax has and these do not, and what is refused for it:

- No log-sum-exp. Parts over disjoint keys cannot be joined from (out, threshold): the threshold of
  the union needs the scores. So there is no lse to answer, and `merge` refuses the bare output.
- A key that counts c times (`Multi`) is log c on its score for softmax only; it raises.
- A sink is a share of softmax's denominator; with a threshold there is none to take, and no paper
  defines one. There is no `sink_logits`; a key with a zero value is what would come closest.
"""

from .entmax import (
    EntmaxGradients,
    entmax_attention,
    entmax_attention_vjp,
    entmax_weights,
)

__all__ = [
    "EntmaxGradients",
    "entmax_attention",
    "entmax_attention_vjp",
    "entmax_weights",
]
