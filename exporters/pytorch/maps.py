"""What attention looked at: the probabilities of any layer, head and batch row as CSR."""

from __future__ import annotations

from collections import Counter
from typing import Any

import torch
from scipy import sparse
from torch import Tensor, nn

import sparse_ref as sr

from .by_kernels import array
from .given import Options
from .op import listening


class AttentionMap:
    """The queries and keys of one attention; probabilities are computed when asked for.

    `batch`, `heads` and `pattern` say what there is.
    """

    def __init__(self, q: Tensor, k: Tensor, pattern: sr.Pattern, given: Options):
        self.q, self.k, self.pattern, self.given = (
            q.detach().cpu(),
            k.detach().cpu(),
            pattern,
            given,
        )
        self.batch, self.heads = q.shape[:2]

    def csr(self, head: int, batch: int = 0) -> sparse.csr_array:
        """The probabilities (m, n) of one head and batch row, float64, at the keys it may see.

        With sinks, rows do not sum to 1.
        """
        given = self.given
        sinks, slopes = (
            None if x is None else x.detach().cpu().double().numpy()
            for x in (given.sinks, given.slopes)
        )
        return sr.weights(
            array(self.q), array(self.k), given.pattern, scale=given.scale,
            softcap=given.softcap or None, sink_logits=sinks, alibi_slopes=slopes, head=head,
            batch=batch, **given.positions(self.q, self.k),
        )  # fmt: skip

    def __repr__(self) -> str:
        m, n = self.q.shape[2], self.k.shape[2]
        return f"<AttentionMap {m} x {n}: batch {self.batch}, heads {self.heads}, {self.pattern!r}>"


def attention_maps(model: nn.Module, *inputs: Any, **options: Any) -> dict[str, AttentionMap]:
    """Run a model once and keep the queries and keys of every attention over a pattern.

    Parameters
    ----------
    model : nn.Module
        It attends by `sparse_attention`, as all modules here do; not one that was compiled.
    inputs, options
        What it is called with.

    Returns
    -------
    dict from the name of the module that attends, as `named_modules` has it, to its AttentionMap;
    "name#2" and so on where one attends again. `maps[name].csr(head, batch)` is a SciPy CSR array.

    Examples
    --------
    >>> from exporters import SparseAttention
    >>> layer = SparseAttention(8, 2, sr.Causal() & sr.SlidingWindow(1, 0))
    >>> found = attention_maps(nn.Sequential(layer), torch.zeros(1, 3, 8))
    >>> found["0"].csr(head=1).toarray()
    array([[1. , 0. , 0. ],
           [0.5, 0.5, 0. ],
           [0. , 0.5, 0.5]])
    """
    found: dict[str, AttentionMap] = {}
    inside: list[str] = []
    times: Counter[str] = Counter()

    def record(q: Tensor, k: Tensor, pattern: sr.Pattern, given: Options) -> None:
        name = inside[-1] if inside else ""
        times[name] += 1
        again = f"#{times[name]}" if times[name] > 1 else ""
        found[name + again] = AttentionMap(q, k, pattern, given)

    def entered(name: str) -> Any:
        return lambda *_: inside.append(name)

    hooks = []
    for name, module in model.named_modules():
        hooks.append(module.register_forward_pre_hook(entered(name)))
        hooks.append(module.register_forward_hook(lambda *_: inside.pop() and None))
    try:
        with torch.no_grad(), listening(record):
            model(*inputs, **options)
    finally:
        for hook in hooks:
            hook.remove()
    return found
