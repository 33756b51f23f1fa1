"""What attention answers, whoever computes it."""

from __future__ import annotations

from typing import Any, NamedTuple


class Attention(NamedTuple):
    """Output (..., h, m, e) and natural log-sum-exp of the scores (..., h, m).

    >>> Attention(out=[[1.0]], lse=[0.0]).lse
    [0.0]
    """

    out: Any
    lse: Any


class Gradients(NamedTuple):
    """Gradients in the shapes of q, k, v, bias (or its table), sink_logits; None if not given.

    >>> Gradients([0.0], [0.0], [0.0], None, None).dbias is None
    True
    """

    dq: Any
    dk: Any
    dv: Any
    dbias: Any
    dsink_logits: Any
