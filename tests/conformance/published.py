"""Right kernels in NumPy behind the signatures that libraries publish, which cannot run here.

The signatures are those of flash-attn 2.8, xFormers 0.0.3x and FlashInfer 0.6; arguments that
no spelling uses are left out.
"""

import numpy as np

import sparse_ref as sr

F32 = np.float32


def windowed(causal, window_size):
    """The pattern of flash-attention's arguments: causal cuts the right side."""
    left, right = (None if side < 0 else side for side in window_size)
    return sr.SlidingWindow(left, 0 if causal else right)


def flash_attn_func(q, k, v, dropout_p=0.0, softmax_scale=None, causal=False, window_size=(-1, -1),
                    softcap=0.0, alibi_slopes=None):  # fmt: skip
    """(b, s, h, d); the last query stands at the last key."""
    assert dropout_p == 0.0
    out, lse = sr.attention(
        *(x.swapaxes(1, 2) for x in (q, k, v)), windowed(causal, window_size), scale=softmax_scale,
        softcap=softcap or None, alibi_slopes=alibi_slopes,
    )  # fmt: skip
    return out.swapaxes(1, 2).astype(q.dtype), lse.astype(F32), None


def flash_attn_varlen_func(q, k, v, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k,
                           dropout_p=0.0, softmax_scale=None, causal=False, window_size=(-1, -1),
                           softcap=0.0, alibi_slopes=None):  # fmt: skip
    """(tokens, h, d): every sequence on its own; lse is (h, tokens)."""
    outs, lses = [], [np.zeros((q.shape[1], 0), F32)]
    for i in range(len(cu_seqlens_q) - 1):
        mine, theirs = (slice(c[i], c[i + 1]) for c in (cu_seqlens_q, cu_seqlens_k))
        one = [x[None] for x in (q[mine], k[theirs], v[theirs])]
        assert one[0].shape[1] <= max_seqlen_q
        assert one[1].shape[1] <= max_seqlen_k
        out, lse, _ = flash_attn_func(
            *one, dropout_p, softmax_scale, causal, window_size, softcap, alibi_slopes
        )
        outs.append(out[0])
        lses.append(lse[0])
    empty = np.zeros((0, q.shape[1], v.shape[2]), q.dtype)
    return np.concatenate([empty, *outs]), np.concatenate(lses, axis=1), None


def flash_attn_with_kvcache(q, k_cache, v_cache, k=None, v=None, cache_seqlens=None,
                            block_table=None, softmax_scale=None, causal=False,
                            window_size=(-1, -1), softcap=0.0, alibi_slopes=None):  # fmt: skip
    """q (b, s, h, d); caches (b, s, g, d), or (pages, page size, g, d) with a block_table."""
    assert k is None
    assert v is None
    outs = []
    for i in range(len(q)):
        if block_table is None:
            keys, values = k_cache[i], v_cache[i]
        else:
            keys, values = (x[block_table[i]].reshape(-1, *x.shape[2:]) for x in (k_cache, v_cache))
        end = len(keys) if cache_seqlens is None else cache_seqlens[i]
        one = (q[i : i + 1], keys[None, :end], values[None, :end])
        outs.append(flash_attn_func(*one, 0.0, softmax_scale, causal, window_size, softcap,
                                    alibi_slopes)[0])  # fmt: skip
    return np.concatenate([np.zeros((0, *q.shape[1:3], v_cache.shape[-1]), q.dtype), *outs])


def memory_efficient_attention(query, key, value, attn_bias, p=0.0, scale=None):
    """(b, s, h, d), or (b, s, g, h / g, d) with a bias (b, g, h / g, m, n)."""
    assert p == 0.0
    assert query.shape[2:-1] == key.shape[2:-1]
    heads = int(np.prod(query.shape[2:-1]))
    flat = [x.reshape(*x.shape[:2], heads, x.shape[-1]).swapaxes(1, 2) for x in (query, key, value)]
    bias = attn_bias.reshape(len(query), heads, query.shape[1], key.shape[1])
    outs = [
        sr.attention(*(x[i : i + 1] for x in flat), sr.Full(), scale=scale, bias=bias[i]).out
        for i in range(len(query))
    ]
    out = np.concatenate([np.zeros((0, *flat[0].shape[1:3], value.shape[-1])), *outs])
    return out.swapaxes(1, 2).reshape(*query.shape[:-1], value.shape[-1]).astype(query.dtype)


def single_prefill_with_kv_cache(q, k, v, custom_mask=None, causal=False, kv_layout="NHD",
                                 sm_scale=None, window_left=-1, logits_soft_cap=None,
                                 return_lse=True):  # fmt: skip
    """(s, h, d), one sequence; lse is (s, h), to base 2."""
    assert kv_layout == "NHD"
    pattern = windowed(causal, (window_left, -1))
    if custom_mask is not None:
        pattern = sr.from_mask(np.asarray(custom_mask)) if custom_mask.size else sr.Full()
    out, lse = sr.attention(
        *(x.swapaxes(0, 1) for x in (q, k, v)), pattern, scale=sm_scale, softcap=logits_soft_cap
    )
    return out.swapaxes(0, 1).astype(q.dtype), (lse.T / np.log(2)).astype(F32)
