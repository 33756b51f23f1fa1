"""ONNX files, sessions and operators as candidates: what their inputs can say is judged."""

import pickle

import pytest

import sparse_ref as sr
from sparse_ref.conformance import Sizes
from sparse_ref.conformance.operators import (
    Attention,
    attention_23,
    attention_24,
    attention_25,
    group_query_attention,
    in_onnxruntime,
)
from tests.conformance.test_candidates import verdicts

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")

SELF, CROSS = Sizes(1, 6, 2, 13, 13, 5, 7), Sizes(2, 6, 2, 7, 19, 5, 3)
PASS, CANNOT = {"PASS"}, {"UNSUPPORTED"}
SOME = sr.cases(quick=True, dtypes=("float32",), only=["/b1h6g2-13x13-", "/b2h6g2-7x19-"])
WINDOW = sr.Causal() & sr.SlidingWindow(3, 0)


def value(name, kind, shape):
    return onnx.helper.make_tensor_value_info(name, kind, shape)


def file_of(path, nodes, inputs, out, version=23):
    """A file of some nodes, whose output is y."""
    made = onnx.helper.make_graph(nodes, "attention", inputs, [out])
    opsets = [onnx.helper.make_opsetid("", version)]
    onnx.save(onnx.helper.make_model(made, opset_imports=opsets, ir_version=10), path)
    return str(path)


def attention_file(path, *, kind="FLOAT", mask=None, names="qkv", heads=None, **attributes):
    """One Attention, with a mask of an element type and axes if given; three axes with heads."""
    element = getattr(onnx.TensorProto, kind)
    sizes = ["b", "h", "m", "d"] if heads is None else ["b", "m", 5 * heads[0]]
    shapes = [list(sizes) for _ in names]
    for shape, letter in zip(shapes, "mnn", strict=True):
        shape[2 if heads is None else 1] = letter
    if heads is not None:
        shapes[1][2] = shapes[2][2] = 5 * heads[1]
        attributes |= {"q_num_heads": heads[0], "kv_num_heads": heads[1]}
    else:
        shapes[1][1] = shapes[2][1] = "g"
        shapes[2][3] = "e"
    inputs = [value(name, element, shape) for name, shape in zip(names, shapes, strict=True)]
    given = list(names)
    if mask is not None:
        inputs.append(value("mask", getattr(onnx.TensorProto, mask[0]), mask[1]))
        given.append("mask")
    node = onnx.helper.make_node("Attention", given, ["y"], **attributes)
    return file_of(path, [node], inputs, value("y", element, [None] * len(sizes)))


def test_a_file_with_a_mask_is_asked_for_every_pattern(tmp_path):
    path = attention_file(tmp_path / "masked.onnx", mask=("BOOL", ["b", "h", "m", "n"]))
    for fn in (path, tmp_path / "masked.onnx", onnxruntime.InferenceSession(path)):
        report = sr.check(sr.Candidate(fn), SOME)
        found = verdicts(report)

        assert not report.failures, str(report)
        assert found["window"] == found["per-head"] == found["causal+q_start"] == PASS
        assert found["causal+q_start+kv_lengths"] == PASS  # a mask hides padding too
        assert found["multiset"] == found["causal+scale"] == found["causal+bias"] == CANNOT


def test_a_mask_of_floats_takes_a_bias(tmp_path):
    path = attention_file(tmp_path / "added.onnx", mask=("FLOAT", ["b", "h", "m", "n"]))
    found = verdicts(sr.check(sr.Candidate(path), SOME))

    assert found["causal+bias"] == found["window"] == PASS
    assert found["causal+alibi_slopes"] == found["causal+softcap"] == CANNOT


@pytest.mark.parametrize("shape", [["m", "n"], [1, 1, "m", "n"]])
def test_one_mask_for_all_heads_says_no_pattern_of_heads(tmp_path, shape):
    path = attention_file(tmp_path / "one.onnx", mask=("BOOL", shape))
    found = verdicts(sr.check(sr.Candidate(path), SOME))

    assert found["window"] == found["strided"] == PASS
    assert found["per-head"] == CANNOT


def test_a_file_without_a_mask_has_its_own_pattern(tmp_path):
    path = attention_file(tmp_path / "causal.onnx", names=["a", "b.1", "c"], is_causal=1)
    square = sr.cases(pattern=sr.Causal(), dtypes=("float32",), only="/b1h6g2-13x13-d5e7/random/")
    square = [case for case in square if "MaskedNaN" not in case.hunts]
    found = verdicts(sr.check(sr.Candidate(path), square))
    few = [case for case in sr.cases(dtypes=("float32",)) if case.id.startswith("causal/b2h6g2-7")]

    assert found.pop("given") == PASS
    assert found.pop("given+q_start") == PASS  # 0, as it is with as many queries as keys
    assert set().union(*found.values()) == CANNOT
    report = sr.check(sr.Candidate(path), few)  # from the top left, where ONNX has no past
    assert "top-left" in report.diagnoses[0].ids


def test_a_file_of_ours_is_asked_what_it_says_and_nothing_else(tmp_path):
    from exporters import to_onnx

    made = to_onnx(
        WINDOW, heads=6, kv_heads=2, head_dim=5, value_dim=7, key_length=True, q_start=True,
        sinks=True,
    )  # fmt: skip
    onnx.save(made, tmp_path / "ours.onnx")
    mine = sr.Candidate(tmp_path / "ours.onnx")
    every = [
        *sr.cases(quick=True, dtypes=("float32",)),
        *sr.cases(pattern=WINDOW, dtypes=("float32",), only="/random/"),
    ]
    report = sr.check(mine, [case for case in every if case.sizes == SELF])
    found = verdicts(report)

    assert not report.failures, str(report)
    assert found["given"] == found["given+q_start"] == found["given+sink_logits"] == PASS
    assert found["given+q_start+kv_lengths"] == PASS
    assert found["causal"] == found["strided"] == found["given+scale"] == CANNOT
    reason = next(r.reason for r in report.results if r.case.name == "causal")
    assert reason.startswith("its pattern is Causal() & SlidingWindow(left=3, ")


def test_sizes_types_and_heads_that_a_file_does_not_have_are_unsupported(tmp_path):
    path = attention_file(tmp_path / "half.onnx", kind="FLOAT16", mask=("BOOL", ["m", "n"]))
    one = sr.cases(only="window/b1h6g2-13x13-d5e7/random", options=False)
    wide, half = (r.verdict for r in sr.check(sr.Candidate(path), one).results)
    assert wide == "UNSUPPORTED"
    assert half in {"PASS", "FAIL"}  # ONNX Runtime rounds scores to float16: not in every draw
    rows = attention_file(tmp_path / "rows.onnx", heads=(6, 2), mask=("BOOL", ["m", "n"]))
    sizes = [Sizes(2, 6, 2, 7, 19, 5, 5), Sizes(2, 6, 3, 7, 19, 5, 5)]
    some = sr.cases(sizes=sizes, only="window/", dtypes=("float32",), options=False)
    for layout in ("bhsd", "bshd"):
        report = sr.check(sr.Candidate(rows, layout=layout), some)
        found = {sizes: set() for sizes in sizes}
        for result in report.results:
            found[result.case.sizes].add(result.verdict)
        assert list(found.values()) == [PASS, CANNOT]


def test_a_file_that_is_wrong_is_named(tmp_path):
    node = [
        onnx.helper.make_node("Not", ["mask"], ["seen"]),
        onnx.helper.make_node("Attention", ["q", "k", "v", "seen"], ["y"]),
    ]
    inputs = [value(x, onnx.TensorProto.FLOAT, ["b", x, "s" + x, "d" + x]) for x in "qkv"]
    inputs.append(value("mask", onnx.TensorProto.BOOL, ["b", "h", "m", "n"]))
    path = file_of(tmp_path / "wrong.onnx", node, inputs,
                   value("y", onnx.TensorProto.FLOAT, [None] * 4))  # fmt: skip
    report = sr.check(sr.Candidate(path), SOME)
    assert "mask-inverted" in report.diagnoses[0].ids


def test_a_file_can_be_asked_in_a_process_of_its_own(tmp_path):
    path = attention_file(tmp_path / "masked.onnx", mask=("BOOL", ["b", "h", "m", "n"]))
    mine = sr.Candidate(path)
    assert sr.check(mine, SOME[:1]).ok
    assert pickle.loads(pickle.dumps(mine)) == mine
    report = sr.check(mine, [c for c in SOME if c.name == "window"][:2], isolate=True)
    report.fn.close()
    assert report.counts == {"PASS": 2}


def test_a_name_is_a_candidate_too():
    mine = sr.Candidate("sparse_ref:attention", dtype="float32")
    assert sr.check(mine, SOME[:3]).counts == {"PASS": 3}
    with pytest.raises(ValueError, match=r"fn must be module:function or a path in \.onnx"):
        sr.Candidate("attention")


def test_what_is_no_attention_is_refused_in_a_sentence(tmp_path):
    with pytest.raises(ValueError, match=r"fn must be the path of an ONNX file, got 'none\.onnx'"):
        sr.Candidate("none.onnx")
    with pytest.raises(TypeError, match="fn must be callable, got int"):
        sr.Candidate(3)
    path = attention_file(tmp_path / "fine.onnx")
    with pytest.raises(ValueError, match="spell must be None with an ONNX file, got 'sdpa'"):
        sr.Candidate(path, spell="sdpa")
    inputs = [value(x, onnx.TensorProto.FLOAT, ["n"]) for x in ("x", "y")]
    node = [onnx.helper.make_node("Add", ["x", "y"], ["z"])]
    other = file_of(tmp_path / "add.onnx", node, inputs, value("z", onnx.TensorProto.FLOAT, ["n"]))
    with pytest.raises(ValueError, match=r"inputs of an ONNX file must be q, k, v .* got x, y"):
        sr.Candidate(other).called  # noqa: B018
    numbers = attention_file(tmp_path / "int.onnx", mask=("INT64", ["m", "n"]))
    with pytest.raises(ValueError, match="mask must hold truths or floats"):
        sr.Candidate(numbers).called  # noqa: B018


@pytest.mark.witness
@pytest.mark.parametrize(
    ("operator", "spell"),
    [(attention_23, "onnx23"), (attention_24, "onnx24"), (attention_25, "onnx25")],
)
def test_attention_of_onnx_in_onnx_runtime(operator, spell):
    some = [case for case in SOME if "MaskedNaN" not in case.hunts and case.sizes.n]
    report = sr.check(sr.Candidate(operator, spell=spell), some)
    found = verdicts(report)

    assert not report.failures, str(report)
    assert found["causal"] == found["window"] == found["per-head"] == found["band"] == PASS
    assert found["causal+q_start"] == found["causal+softcap"] == found["causal+bias"] == PASS
    assert found["causal+q_start+kv_lengths"] == PASS
    assert found["causal+sink_logits"] == found["multiset"] == CANNOT


def test_every_version_says_what_it_can_without_a_mask():
    said = {}

    def noting(version):
        def run(made, feeds):
            node = made.graph.node[0]
            used = {one.name for one in node.attribute} | set(feeds) - {"Q", "K", "V"}
            said.setdefault(version, set()).add(frozenset(used))
            return in_onnxruntime(made, feeds)

        return sr.Candidate(Attention(version, run), spell=f"onnx{version}")

    ids = ["band/b1h6g2-13x13-d5e7/even", "causal+q_start+kv_lengths/b2", "causal/b2h6g2-7x19"]
    some = sr.cases(dtypes=("float32",), only=ids)
    for version in (23, 24, 25):
        assert set(sr.check(noting(version), some).counts) == {"PASS"}
    mask, cache = frozenset({"attn_mask"}), frozenset({"is_causal", "nonpad_kv_seqlen"})
    sides = frozenset({"left_window_size", "right_window_size"})
    assert said == {23: {mask}, 24: {mask, cache}, 25: {mask, cache, sides}}


@pytest.mark.witness
def test_group_query_attention_of_onnx_runtime():
    sizes = [Sizes(1, 4, 2, 13, 13, 8, 8), Sizes(2, 4, 2, 1, 19, 8, 8)]
    some = sr.cases(dtypes=("float32",), sizes=sizes)
    some = [c for c in some if c.sizes in sizes and c.name in ("causal", "window", "band")]
    report = sr.check(sr.Candidate(group_query_attention, spell="ort_gqa"), some)
    found = verdicts(report)

    assert not report.failures, str(report)
    assert found["causal"] == found["window"] == PASS
    assert found["band"] == CANNOT  # it is causal
