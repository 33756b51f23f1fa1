"""Real kernels through their own arguments: what is said is asked, and the verdict is true."""

import numpy as np
import pytest

import sparse_ref as sr
from tests.test_bounds import F32

SOME = sr.cases(quick=True, dtypes=("float32",), only=["/b1h6g2-13x13-", "/b2h6g2-7x19-"])


def verdicts(report):
    """Verdicts by the name of the pattern, and of the options."""
    found = {}
    for result in report.results:
        name = "+".join([result.case.name, *result.case.options])
        found.setdefault(name, set()).add(report.verdict(result))
    return found


@pytest.mark.witness
def test_torch_sdpa_is_right_but_for_what_is_masked_and_not_finite():
    torch = pytest.importorskip("torch")
    fn = sr.Candidate(
        torch.nn.functional.scaled_dot_product_attention, arrays="torch", spell="sdpa"
    )
    report = sr.check(fn, SOME)
    found = verdicts(report)

    assert report.ok, str(report)
    assert report.counts["ACCEPTABLE"] > 0
    assert found["window"] == found["per-head"] == found["causal+scale"] == {"PASS"}
    assert found["multiset"] == found["causal+softcap"] == {"UNSUPPORTED"}


@pytest.mark.witness
def test_flex_attention_takes_the_mask_as_a_block_mask():
    flex = pytest.importorskip("torch.nn.attention.flex_attention")
    fn = sr.Candidate(flex.flex_attention, arrays="torch", spell="flex")
    some = [case for case in SOME if case.name in ("window", "per-head", "documents")]
    report = sr.check(fn, some)

    assert set(report.counts) <= {"PASS", "UNSUPPORTED"}, str(report)
    assert report.counts["PASS"] >= 6


@pytest.mark.witness
def test_jax_gives_the_mean_of_v_to_a_query_that_sees_nothing():
    jax = pytest.importorskip("jax")
    fn = sr.Candidate(jax.nn.dot_product_attention, layout="bshd", arrays="jax", spell="jax_nn")
    square = [sr.conformance.Sizes(1, 6, 2, 13, 13, 5, 5)]  # it wants values of the keys' size
    options = {"dtypes": ("float32",), "options": False, "sizes": square}
    right = sr.check(fn, sr.cases(only=["window/", "documents/", "full/"], **options))
    empty = sr.check(fn, sr.cases(only="strictly-causal/", **options))

    assert set(right.counts) == {"PASS"}, str(right)
    assert "empty-mean" in empty.diagnoses[0].ids, str(empty)


def test_packed_sequences_are_one_after_another():
    def varlen(q, k, v, *, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, causal,
               window_size):  # fmt: skip
        left, right = (None if side < 0 else side for side in window_size)
        outs = []
        for i in range(len(cu_seqlens_q) - 1):
            mine, theirs = (slice(c[i], c[i + 1]) for c in (cu_seqlens_q, cu_seqlens_k))
            one = (q[mine], k[theirs], v[theirs])
            assert (len(one[0]), len(one[1])) == (max_seqlen_q, max_seqlen_k)
            heads_first = (x.swapaxes(0, 1) for x in one)
            outs.append(sr.attention(*heads_first, sr.SlidingWindow(left, right)).out)
        return np.concatenate([out.swapaxes(0, 1) for out in outs]).astype(F32)

    fn = sr.Candidate(varlen, layout="thd", spell="flash_attn")
    names = ("window", "causal", "band")
    report = sr.check(fn, [case for case in SOME if case.name in names and not case.options])
    assert set(report.counts) == {"PASS"}, str(report)
    assert report.counts["PASS"] >= 12


def test_a_spelling_refuses_what_it_cannot_say():
    def kernel(q, k, v, **said):
        raise AssertionError("must not be asked")

    fn = sr.Candidate(kernel, spell="flash_attn")
    report = sr.check(fn, [case for case in SOME if case.name in ("strided", "multiset")])
    assert set(report.counts) == {"UNSUPPORTED"}


@pytest.mark.parametrize("name", ["layout", "arrays", "spell"])
def test_unknown_words_are_refused(name):
    with pytest.raises(ValueError, match=f"{name} must be one of .*, got 'nobody'"):
        sr.Candidate(print, **{name: "nobody"})


def gqa_node(q, k, v, *, local_window_size, scale=None, softcap=0.0, head_sink=None):
    """GroupQueryAttention of ONNX Runtime, a graph for every call; the past are the first keys."""
    onnx = pytest.importorskip("onnx")
    runtime = pytest.importorskip("onnxruntime")
    (b, h, m, d), (g, n) = q.shape, k.shape[1:3]
    if d != v.shape[3] or not 0 < m <= n or d % 8:
        raise NotImplementedError("it has one size of heads, of multiples of 8, and a past or none")
    flat = {"query": q, "key": k[:, :, n - m :], "value": v[:, :, n - m :]}
    feed = {name: x.swapaxes(1, 2).reshape(b, m, -1) for name, x in flat.items()}
    feed |= {"past_key": k[:, :, : n - m], "past_value": v[:, :, : n - m]}
    feed |= {"seqlens_k": np.full(b, n - 1, np.int32), "total": np.array([n], np.int32)}
    names = [*feed, "", "", "", "", "head_sink"][: 7 if head_sink is None else 12]
    if head_sink is not None:
        feed["head_sink"] = np.asarray(head_sink, q.dtype)
    attributes = {"num_heads": h, "kv_num_heads": g, "local_window_size": local_window_size}
    attributes |= {} if scale is None else {"scale": scale}
    attributes |= {"softcap": softcap} if softcap else {}
    node = onnx.helper.make_node(
        "GroupQueryAttention", names, ["out", "k", "v"], domain="com.microsoft", **attributes
    )
    kind = onnx.helper.np_dtype_to_tensor_dtype
    values = [onnx.helper.make_tensor_value_info(x, kind(a.dtype), a.shape)
              for x, a in feed.items()]  # fmt: skip
    results = [
        onnx.helper.make_tensor_value_info(x, kind(q.dtype), None) for x in ("out", "k", "v")
    ]
    graph = onnx.helper.make_graph([node], "gqa", values, results)
    opsets = [onnx.helper.make_opsetid("", 21), onnx.helper.make_opsetid("com.microsoft", 1)]
    model = onnx.helper.make_model(graph, opset_imports=opsets, ir_version=10)
    session = runtime.InferenceSession(
        model.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    return session.run(["out"], feed)[0].reshape(b, m, h, d).swapaxes(1, 2)


@pytest.mark.witness
def test_group_query_attention_of_onnx_runtime():
    pytest.importorskip("onnxruntime")
    square = [
        sr.conformance.Sizes(1, 4, 2, 13, 13, 8, 8),
        sr.conformance.Sizes(2, 4, 2, 1, 19, 8, 8),
    ]
    some = sr.cases(dtypes=("float32",), sizes=square, only=["causal/", "window/", "band/"])
    some = [case for case in some if case.name != "strictly-causal" and case.sizes in square]
    fn = sr.Candidate(gqa_node, spell="ort_gqa")
    report = sr.check(fn, some)
    found = verdicts(report)

    assert set(report.counts) == {"PASS", "UNSUPPORTED"}, str(report)
    assert found["causal"] == found["window"] == {"PASS"}
    assert found["band"] == {"UNSUPPORTED"}  # it is causal


def test_a_selection_is_said_as_the_pattern_it_is():
    rng = np.random.default_rng(5)
    q, k = rng.normal(size=(2, 6, 7, 5)), rng.normal(size=(2, 2, 19, 5))
    chosen = sr.selection.topk_keys(q, k, count=3)
    some = sr.cases(pattern=chosen, dtypes=("float32",), only="/random/", options=False)
    some = [case for case in some if "MaskedNaN" not in case.hunts]

    def masked(q, k, v, *, attn_mask, **said):
        hidden = np.where(attn_mask, 0, -np.inf)
        return sr.attention(q, k, v, sr.Full(), bias=hidden).out.astype(F32)

    report = sr.check(sr.Candidate(masked, spell="sdpa"), some)
    assert set(report.counts) == {"PASS"}, str(report)
    window = sr.check(sr.Candidate(masked, spell="flash_attn"), some)
    assert set(window.counts) == {"UNSUPPORTED"}
    assert all(len(result.reason) < 300 for result in window.results)


def test_flex_answers_no_queries():
    flex = pytest.importorskip("torch.nn.attention.flex_attention", reason="torch is not installed")
    fn = sr.Candidate(flex.flex_attention, arrays="torch", spell="flex")
    cases = sr.cases(quick=True, dtypes=("float32",), only="1-0x5-d", options=False)

    assert sr.check(fn, cases).counts == {"PASS": 3}
