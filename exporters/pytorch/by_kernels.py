"""The operator on a CPU: the Numba kernels, forward and backward, on the memory of the tensors."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any

import numpy as np
import torch
from torch import Tensor

import sparse_ref as sr

from .given import Options

AVAILABLE = find_spec("numba") is not None


def forward(q: Tensor, k: Tensor, v: Tensor, given: Options) -> tuple[Tensor, Tensor]:
    """Out (b, h, m, e) in q's type, and lse (b, h, m)."""
    arrays = (array(x) for x in (q, k, v))
    got = sr.kernels.attention(*arrays, given.pattern, **_options(given, q, k))
    return tensor(got.out), tensor(got.lse)


def backward(
    dout: Tensor,
    dlse: Tensor | None,
    out: Tensor,
    lse: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    given: Options,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of q, k, v and sinks; weights are computed again, not kept."""
    arrays = (array(x) for x in (q, k, v))
    known = sr.Attention(array(out), array(lse))
    got = sr.kernels.attention_vjp(
        *arrays, given.pattern, array(dout), dlse=None if dlse is None else array(dlse),
        forward=known, **_options(given, q, k),
    )  # fmt: skip
    sinks = lse.new_zeros(q.shape[1]) if got.dsink_logits is None else tensor(got.dsink_logits)
    return tensor(got.dq), tensor(got.dk), tensor(got.dv), sinks


def array(x: Tensor) -> np.ndarray[Any, Any]:
    """The memory of a tensor on a CPU as an array: nothing is copied, bfloat16 neither."""
    x = x.detach()
    if x.dtype != torch.bfloat16:
        return x.numpy()
    if find_spec("ml_dtypes") is None:
        return x.float().numpy()
    from ml_dtypes import bfloat16

    return x.view(torch.int16).numpy().view(bfloat16)


def tensor(x: np.ndarray[Any, Any]) -> Tensor:
    """The memory of an array as a tensor."""
    if x.dtype.name == "bfloat16":
        return torch.from_numpy(x.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(x)


def _options(given: Options, q: Tensor, k: Tensor) -> dict[str, Any]:
    return {
        "scale": given.scale,
        "softcap": given.softcap or None,
        "sink_logits": None if given.sinks is None else array(given.sinks),
        "alibi_slopes": None if given.slopes is None else array(given.slopes),
        **given.positions(q, k),
    }
