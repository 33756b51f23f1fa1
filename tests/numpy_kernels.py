"""Three plain attention kernels in float32: one pass, a running maximum, and parts joined by lse.

They know nothing of the library: a boolean mask (..., m, n) says who sees whom. Arrays are
(..., m, d), (..., n, d), (..., n, e) with equal leading axes; `bias` broadcasts to (..., m, n) and
`sink` to (..., m, 1). Scores are stored in `score`, weights in `weight` (types NumPy can cast to);
sums are float32. They return (out in q's type, lse in float32); an empty row gives 0 and -inf.
"""

import numpy as np

F32 = np.float32


def naive(
    q, k, v, mask, *, scale, softcap=None, bias=None, sink=None, score=F32, weight=F32, dtype=None
):
    """Softmax over the whole row, then one product with the values."""
    s = scores(q, k, mask, scale, softcap, bias, score)
    peak, e, total = exponentials(s, sink)
    acc = e.astype(weight).astype(F32) @ v.astype(weight).astype(F32)
    return finished(acc, total, peak, dtype or q.dtype)


def online(
    q, k, v, mask, *, scale, softcap=None, bias=None, sink=None, score=F32, weight=F32, dtype=None,
    block=37,
):  # fmt: skip
    """One block of keys after another; what is summed is rescaled when the maximum moves."""
    s = scores(q, k, mask, scale, softcap, bias, score)
    peak = np.full((*s.shape[:-1], 1), -np.inf, F32) if sink is None else column(sink, s)
    total = np.where(np.isinf(peak), F32(0), F32(1))
    acc = np.zeros((*s.shape[:-1], v.shape[-1]), F32)
    for start in range(0, s.shape[-1], block):
        part = s[..., start : start + block]
        higher = np.maximum(peak, part.max(-1, keepdims=True))
        shift = np.where(np.isinf(higher), F32(0), higher)
        rescale, e = np.exp(peak - shift), np.exp(part - shift)
        values = v[..., start : start + block, :].astype(weight).astype(F32)
        total = rescale * total + e.sum(-1, keepdims=True)
        acc = rescale * acc + e.astype(weight).astype(F32) @ values
        peak = higher
    return finished(acc, total, peak, dtype or q.dtype)


def blocked(
    q, k, v, mask, *, scale, softcap=None, bias=None, sink=None, score=F32, weight=F32, dtype=None,
    block=64,
):  # fmt: skip
    """Each block of keys on its own, as on machines of their own; joined by their lse."""
    s = scores(q, k, mask, scale, softcap, bias, score)
    outs, lses = [], []
    for start in range(0, s.shape[-1], block):
        peak, e, total = exponentials(s[..., start : start + block], sink if start == 0 else None)
        p = (e / np.where(total == 0, F32(1), total)).astype(weight).astype(F32)
        outs.append(p @ v[..., start : start + block, :].astype(weight).astype(F32))
        lses.append(log_sum(total, peak))
    lses = np.stack(lses)
    peak = lses.max(0)
    shares = np.exp(lses - np.where(np.isinf(peak), F32(0), peak))
    total = shares.sum(0)
    return finished((shares * np.stack(outs)).sum(0), total, peak, dtype or q.dtype)


def scores(q, k, mask, scale, softcap, bias, score):
    s = (q.astype(F32) @ np.swapaxes(k.astype(F32), -1, -2)) * F32(scale)
    s = s.astype(score).astype(F32)
    if softcap is not None:
        s = F32(softcap) * np.tanh(s / F32(softcap))
    if bias is not None:
        s = s + np.asarray(bias, F32)
    return np.where(mask, s.astype(score).astype(F32), F32(-np.inf))


def exponentials(s, sink):
    """The maximum, the weights relative to it, and their sum."""
    peak = s.max(-1, keepdims=True)
    if sink is not None:
        peak = np.maximum(peak, column(sink, s))
    shift = np.where(np.isinf(peak), F32(0), peak)
    e = np.exp(s - shift)
    total = e.sum(-1, keepdims=True)
    return peak, e, total if sink is None else total + np.exp(column(sink, s) - shift)


def column(sink, s):
    return np.broadcast_to(np.asarray(sink, F32), (*s.shape[:-1], 1))


def log_sum(total, peak):
    with np.errstate(divide="ignore"):
        return np.where(total == 0, F32(-np.inf), peak + np.log(total))


def finished(acc, total, peak, dtype):
    out = acc / np.where(total == 0, F32(1), total)
    return out.astype(dtype), log_sum(total, peak)[..., 0]
