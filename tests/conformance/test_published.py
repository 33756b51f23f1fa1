"""Kernels behind published signatures, dense, packed and in pages: what can be said is judged."""

import numpy as np
import pytest

import sparse_ref as sr
from tests.conformance import published
from tests.conformance.test_candidates import verdicts

F32 = np.float32
SOME = [
    case for case in sr.cases(quick=True, dtypes=("float32",))
    if case.name in ("full", "causal", "window", "band", "packed", "strided", "per-head")
]  # fmt: skip
SOME += sr.cases(dtypes=("float32",), only="causal+q_start+kv_lengths/b2")
CANDIDATES = {
    "dense": sr.Candidate(published.flash_attn_func, layout="bshd", spell="flash_attn"),
    "varlen": sr.Candidate(published.flash_attn_varlen_func, layout="thd", spell="flash_attn"),
    "cache": sr.Candidate(
        published.flash_attn_with_kvcache, layout="bshd", spell="flash_attn_kvcache"),
    "pages": sr.Candidate(
        published.flash_attn_with_kvcache, layout="paged", spell="flash_attn_kvcache",
        page_size=5),
    "xformers": sr.Candidate(
        published.memory_efficient_attention, layout="bshd", spell="xformers"),
    "flashinfer": sr.Candidate(
        published.single_prefill_with_kv_cache, layout="thd", spell="flashinfer"),
}  # fmt: skip
PASS, CANNOT = {"PASS"}, {"UNSUPPORTED"}
CACHE = "causal+q_start+kv_lengths"
# What each can say of: a window, documents in one sequence, any mask, a cache, a softcap.
SAYS = {
    "dense": {"window": PASS, "packed": CANNOT, "strided": CANNOT, "causal+softcap": PASS},
    "varlen": {"window": PASS, "packed": {"PASS", "UNSUPPORTED"}, "strided": CANNOT},
    "cache": {"window": PASS, "packed": CANNOT, "causal+softcap": PASS},
    "pages": {"window": PASS, "packed": CANNOT, "causal+alibi_slopes": PASS},
    "xformers": {"window": PASS, "packed": PASS, "strided": PASS, "causal+softcap": CANNOT},
    "flashinfer": {"packed": {"PASS", "UNSUPPORTED"}, "per-head": CANNOT},
}


@pytest.mark.parametrize("name", CANDIDATES)
def test_what_it_can_say_is_right_and_the_rest_is_unsupported(name):
    report = sr.check(CANDIDATES[name], SOME)

    assert set(report.counts) == {"PASS", "UNSUPPORTED"}, str(report)
    found = verdicts(report)
    assert {case: found[case] for case in SAYS[name]} == SAYS[name]


@pytest.mark.parametrize("name", ["varlen", "cache", "pages"])
def test_lengths_of_a_cache_reach_the_kernel(name):
    cached = [case for case in SOME if case.id.startswith(CACHE)]
    report = sr.check(CANDIDATES[name], cached)

    assert report.counts == {"PASS": len(cached)}, str(report)
    assert {case.sizes.m for case in cached} == {7, 13}


def without_documents(q, k, v, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, **more):
    """One sequence of all."""
    return published.flash_attn_func(q[None], k[None], v[None], **more)[0][0]


def ends_of_the_longest(q, k, v, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, **more):
    """A varlen kernel that cuts a key off every sequence."""
    cut = [x[np.setdiff1d(np.arange(len(x)), cu_seqlens_k[1:] - 1)] for x in (k, v)]
    shorter = cu_seqlens_k - np.arange(len(cu_seqlens_k))
    return published.flash_attn_varlen_func(
        q, *cut, cu_seqlens_q, shorter, max_seqlen_q, max_seqlen_k, **more
    )


def without_lengths(q, k_cache, v_cache, cache_seqlens=None, block_table=None, **more):
    """All of the cache, up to the last page."""
    full = np.full_like(cache_seqlens, block_table.shape[1] * k_cache.shape[1])
    return published.flash_attn_with_kvcache(
        q, k_cache, v_cache, cache_seqlens=full, block_table=block_table, **more
    )


def pages_in_order(q, k_cache, v_cache, cache_seqlens=None, block_table=None, **more):
    """Pages as if they stood one after another."""
    ordered = np.sort(block_table.ravel()).reshape(block_table.shape)
    return published.flash_attn_with_kvcache(
        q, k_cache, v_cache, cache_seqlens=cache_seqlens, block_table=ordered, **more
    )


@pytest.mark.parametrize(
    ("kernel", "layout", "spell"),
    [
        (without_documents, "thd", "flash_attn"),
        (ends_of_the_longest, "thd", "flash_attn"),
        (without_lengths, "paged", "flash_attn_kvcache"),
        (pages_in_order, "paged", "flash_attn_kvcache"),
    ],
)
def test_a_kernel_that_packs_or_pages_wrongly_fails(kernel, layout, spell):
    fn = sr.Candidate(kernel, layout=layout, spell=spell, page_size=5)
    report = sr.check(fn, SOME)
    assert report.counts["FAIL"] > 0


def test_an_argument_that_an_older_release_lacks_is_unsupported():
    def older(q, k, v, dropout_p=0.0, softmax_scale=None, causal=False, window_size=(-1, -1)):
        return published.flash_attn_func(q, k, v, dropout_p, softmax_scale, causal, window_size)

    report = sr.check(sr.Candidate(older, layout="bshd", spell="flash_attn"), SOME)
    found = verdicts(report)
    assert found["causal+softcap"] == CANNOT
    assert found["window"] == found["causal+scale"] == PASS


def test_a_base_of_2_left_in_lse_is_found():
    def natural(*given, **more):
        out, lse = published.single_prefill_with_kv_cache(*given, **more)
        return out, lse * F32(np.log(2))

    report = sr.check(sr.Candidate(natural, layout="thd", spell="flashinfer"), SOME)
    assert report.counts["FAIL"] > 0
    assert {wrong.name for r in report.failures for wrong in r.wrong} == {"lse"}


def test_options_a_plain_candidate_does_not_take_are_unsupported():
    def kernel(q, k, v, pattern, *, scale=None):
        return sr.attention(q, k, v, pattern, scale=scale).out.astype(F32)

    for fn in (kernel, sr.Candidate(kernel), sr.fixed(lambda q, k, v, scale=None: kernel(
            q, k, v, sr.Causal(), scale=scale))):  # fmt: skip
        found = verdicts(sr.check(fn, [case for case in SOME if case.name == "causal"]))
        assert found["causal+softcap"] == found["causal+bias"] == CANNOT
        assert found["causal"] == found["causal+scale"] == PASS


def test_dlpack_is_all_that_is_known_of_an_array():
    torch = pytest.importorskip("torch")

    def kernel(q, k, v, pattern):
        assert not hasattr(q, "shape")
        q, k, v = (torch.from_dlpack(x) for x in (q, k, v))
        out = sr.attention(q.numpy(), k.numpy(), v.numpy(), pattern).out
        return torch.from_numpy(out.astype(F32))

    plain = [case for case in SOME if not case.options]
    assert sr.check(sr.Candidate(kernel, arrays="dlpack"), plain).counts == {"PASS": len(plain)}
