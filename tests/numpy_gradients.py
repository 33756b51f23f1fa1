"""Two plain backward passes in float32: through a whole softmax, and from a stored output and lse.

As `numpy_kernels`, they know nothing of the library: a boolean mask says who sees whom.
"""

import numpy as np

from tests import numpy_kernels

F32 = np.float32


def naive(q, k, v, mask, dout, dlse, *, scale, softcap=None, bias=None, sink=None, weight=F32):
    """D is summed from the probabilities."""
    s = numpy_kernels.scores(q, k, mask, scale, softcap, bias, F32)
    peak, e, total = numpy_kernels.exponentials(s, sink)
    p = e / np.where(total == 0, F32(1), total)
    shift = np.where(np.isinf(peak), F32(0), peak)
    dp = dout.astype(F32) @ np.swapaxes(v.astype(F32), -1, -2)
    dp = np.where(mask, dp, F32(0))
    mean = (p * dp).sum(-1, keepdims=True)
    lse = shift + np.log(np.where(total == 0, F32(1), total))
    return finished(q, k, p, dp, mean, dout, dlse, lse, scale, softcap, sink, weight)


def from_lse(
    q, k, v, mask, dout, dlse, *, scale, softcap=None, bias=None, sink=None, weight=F32
):  # fmt: skip
    """As fused kernels do: the probabilities again from the lse, D from the output as stored."""
    options = {"scale": scale, "softcap": softcap, "bias": bias, "sink": sink, "weight": weight}
    out, lse = numpy_kernels.online(q, k, v, mask, **options)
    s = numpy_kernels.scores(q, k, mask, scale, softcap, bias, F32)
    lse = np.where(np.isinf(lse), F32(0), lse)[..., None]
    p = np.exp(s - lse)
    dp = dout.astype(F32) @ np.swapaxes(v.astype(F32), -1, -2)
    dp = np.where(mask, dp, F32(0))
    mean = (dout.astype(F32) * out.astype(F32)).sum(-1, keepdims=True)
    return finished(q, k, p, dp, mean, dout, dlse, lse, scale, softcap, sink, weight)


def finished(q, k, p, dp, mean, dout, dlse, lse, scale, softcap, sink, weight):
    """(dq, dk, dv) in q's type and (dscore, dsink) in float32; query heads apart."""
    dlse = dlse.astype(F32)[..., None]
    dscore = p * (dp - mean + dlse)
    through = dscore
    if softcap is not None:
        dots = (q.astype(F32) @ np.swapaxes(k.astype(F32), -1, -2)) * F32(scale)
        through = dscore * (F32(1) - np.tanh(dots / F32(softcap)) ** 2)
    p, through = (x.astype(weight).astype(F32) for x in (p, through))
    left, right, up = (x.astype(weight).astype(F32) for x in (k, q, dout))
    dq = F32(scale) * (through @ left)
    dk = F32(scale) * (np.swapaxes(through, -1, -2) @ right)
    dv = np.swapaxes(p, -1, -2) @ up
    dsink = None
    if sink is not None:
        at = numpy_kernels.column(sink, p)
        dsink = (np.exp(at - lse) * (dlse - mean)).sum((-1, -2))
    return *(x.astype(q.dtype) for x in (dq, dk, dv)), dscore, dsink
