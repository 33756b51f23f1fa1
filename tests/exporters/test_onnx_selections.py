"""Selectors inside an ONNX file, against `sparse_ref.selection` and attention over its choice."""

import json
from functools import cache
from typing import Any

import numpy as np
import pytest

import sparse_ref as sr
from sparse_ref import selection

pytest.importorskip("onnxruntime")

import onnxruntime
from onnx.reference import ReferenceEvaluator

from exporters.onnx.selections import selection_to_onnx
from exporters.onnx.selections_rules import RULES
from tests.exporters.test_onnx_done import in_runtime_with_kernel

H, G, D, E = 4, 2, 8, 5
CAUSAL = sr.Causal()
INDEX = {"lightning_indexer": 3, "msa": G}  # index heads
ASKED = {
    "top keys": ("topk_keys", {"count": 5}),
    "all keys": ("topk_keys", {"count": 300}),
    "top blocks by mean": ("topk_blocks", {"count": 3, "block_size": 4}),
    "top blocks by maximum": ("topk_blocks", {"count": 3, "block_size": 4, "pool": "max"}),
    "DSA": ("lightning_indexer", {"count": 7}),
    "MSA": ("msa", {"count": 3, "block_size": 4, "local": 2}),
    "MSA, nothing forced": ("msa", {"count": 3, "block_size": 4, "local": 0}),
    "MoBA": ("moba", {"count": 3, "block_size": 4}),
    "NSA": ("nsa_blocks", {"count": 5, "block_size": 8, "window": 4, "stride": 2}),
    "NSA of a long window": (
        "nsa_blocks",
        {"count": 4, "block_size": 4, "window": 12, "stride": 4, "initial": 0, "local": 1},
    ),
}
SHAPES = [(1, 1), (7, 7), (33, 33), (100, 100), (1, 50), (20, 77), (35, 9)]


@cache
def file(name: str, **options: Any) -> Any:
    selector, parameters = ASKED[name]
    if selector in INDEX:
        options |= {"index_heads": INDEX[selector], "index_dim": 6}
    return selection_to_onnx(
        selector, heads=H, kv_heads=G, head_dim=D, value_dim=E, indices=True,
        **(parameters | options),
    )  # fmt: skip


def feed(name: str, b: int, m: int, n: int, *, whole: bool = True) -> Any:
    """Small whole numbers tie often, and are exact in every order of adding up."""
    rng = np.random.default_rng(1000 * m + n)
    selector, _ = ASKED[name]

    def draw(*shape: int) -> Any:
        values = rng.integers(-2, 3, shape) if whole else rng.standard_normal(shape)
        return values.astype(np.float32)

    made = {"q": draw(b, H, m, D), "k": draw(b, G, n, D)}
    made["v"] = rng.standard_normal((b, G, n, E)).astype(np.float32)
    if selector in INDEX:
        made |= {"index_q": draw(b, INDEX[selector], m, 6), "index_k": draw(b, 1, n, 6)}
    if selector == "lightning_indexer":
        made["index_weights"] = draw(b, m, INDEX[selector])
    return made


def chosen(name: str, fed: Any, visible: Any = CAUSAL) -> Any:
    selector, parameters = ASKED[name]
    own = [fed[x] for x in ("index_q", "index_k", "index_weights") if x in fed]
    return getattr(selection, selector)(*(own or (fed["q"], fed["k"])), visible=visible,
                                        **parameters)  # fmt: skip


def session(model: Any) -> Any:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 4
    return onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )


def assert_same_choice(got: Any, want: Any) -> None:
    width = max(got.shape[-1], want.shape[-1])
    got, want = (
        np.pad(x, [(0, 0)] * 3 + [(0, width - x.shape[-1])], constant_values=-1)
        for x in (got, want)
    )
    np.testing.assert_array_equal(got, want)


def assert_attention(y: Any, fed: Any, want: Any, dtype: str = "float32") -> None:
    arrays = [fed[x] for x in "qkv"]
    out = sr.attention(*arrays, want).out
    inside = "float64" if dtype == "float64" else "float32"
    bound = sr.error_bound(*arrays, want, arithmetic=inside, output=dtype).out
    assert y.dtype == np.dtype(dtype)
    assert (np.abs(y.astype(np.float64) - out) <= bound).all()


@pytest.mark.parametrize(
    ("count", "want"),
    [(1, [[0], [1], [1], [1]]), (2, [[0, -1], [0, 1], [1, 2], [1, 2]])],
)
def test_of_four_keys_the_best_and_of_equal_ones_the_first(count, want):
    model = selection_to_onnx("topk_keys", heads=1, head_dim=1, count=count, indices=True)
    keys = np.array([[[[1], [3], [3], [2]]]], dtype=np.float32)
    fed = {"q": np.ones((1, 1, 4, 1), dtype=np.float32), "k": keys, "v": keys}
    _, got = session(model).run(["y", "indices"], fed)
    assert got[0, 0].tolist() == want


@pytest.mark.parametrize("name", ASKED)
def test_one_file_chooses_as_the_selector_at_every_length_ties_included(name):
    model = file(name)
    assert model.ByteSize() < 65_536
    runs = session(model)
    for i, (m, n) in enumerate(SHAPES):
        fed = feed(name, 1 + i % 2, m, n)
        y, got = runs.run(["y", "indices"], fed)
        want = chosen(name, fed)
        assert_same_choice(got, want.indices)
        assert_attention(y, fed, want)


@pytest.mark.parametrize("name", ASKED)
def test_numbers_that_are_not_whole(name):
    fed = feed(name, 2, 67, 131, whole=False)
    y, got = session(file(name)).run(["y", "indices"], fed)
    want = chosen(name, fed)
    assert_same_choice(got, want.indices)
    assert_attention(y, fed, want)


VISIBLE = {
    "a window": sr.Causal() & sr.SlidingWindow(20, 0),
    "both ways": sr.SlidingWindow(9, 6),
    "strided": sr.Causal() & (sr.Strided(3) | sr.Sink(2)),
    "rows that see nothing": sr.Causal() & ~sr.Rows([0, 5, 30]),
}


@pytest.mark.parametrize("name", ["top keys", "top blocks by mean", "MSA", "MoBA", "NSA"])
@pytest.mark.parametrize("visible", VISIBLE)
def test_whatever_is_visible(name, visible):
    runs = session(file(name, visible=VISIBLE[visible]))
    for m, n in ((1, 1), (33, 33), (20, 77)):
        fed = feed(name, 1, m, n)
        y, got = runs.run(["y", "indices"], fed)
        want = chosen(name, fed, VISIBLE[visible])
        assert_same_choice(got, want.indices)
        assert_attention(y, fed, want)


@pytest.mark.parametrize("name", ["top keys", "DSA", "MoBA"])
@pytest.mark.parametrize("options", [{"body": "gather"}, {"mode": "inline"}, {"opset": 21}])
def test_other_bodies_and_modes(name, options):
    fed = feed(name, 2, 33, 50)
    y, got = session(file(name, **options)).run(["y", "indices"], fed)
    assert_same_choice(got, chosen(name, fed).indices)
    assert_attention(y, fed, chosen(name, fed))


@pytest.mark.parametrize("name", ASKED)
def test_the_evaluator_chooses_alike(name):
    fed = feed(name, 1, 19, 33)
    with np.errstate(all="ignore"):
        y, got = ReferenceEvaluator(file(name)).run(["y", "indices"], fed)
    assert_same_choice(got, chosen(name, fed).indices)
    assert_attention(y, fed, chosen(name, fed))


@pytest.mark.slow
@pytest.mark.parametrize("name", ASKED)
def test_our_kernel_attends_to_what_was_chosen(name):
    answer = in_runtime_with_kernel(file(name))
    for m, n in SHAPES:
        fed = feed(name, 1, m, n)
        assert_attention(answer(fed), fed, chosen(name, fed))


@pytest.mark.parametrize("dtype", ["float16", "float64"])
@pytest.mark.parametrize("name", ["top keys", "DSA", "MSA"])
def test_other_types(name, dtype):
    fed = {x: y.astype(dtype) for x, y in feed(name, 1, 20, 33).items()}
    y, got = session(file(name, dtype=dtype)).run(["y", "indices"], fed)
    assert_same_choice(got, chosen(name, fed).indices)
    assert_attention(y, fed, chosen(name, fed), dtype)


def test_a_key_that_is_not_a_number_is_chosen_so_that_it_shows():
    fed = feed("top keys", 1, 33, 33)
    fed["k"][0, 0, 17] = np.nan
    y, got = session(file("top keys")).run(["y", "indices"], fed)
    want = chosen("top keys", fed).indices
    assert_same_choice(got, want)
    assert (got[0, :2, 17:] == 17).any(axis=-1).all()
    assert np.isnan(y[0, :2, 17:]).all()
    assert np.isfinite(y[0, :2, :17]).all()


def test_softcap_and_scale_are_the_attentions():
    fed = feed("MoBA", 1, 33, 33)
    y = session(file("MoBA", softcap=1.5, scale=0.3)).run(["y"], fed)[0]
    want = sr.attention(*(fed[x] for x in "qkv"), chosen("MoBA", fed), softcap=1.5, scale=0.3).out
    np.testing.assert_allclose(y, want, atol=1e-5)


def test_the_file_says_what_it_computes():
    node = file("MoBA").graph.node[-2]
    said = {one.key: one.value for one in node.metadata_props}
    assert json.loads(said["sparse_ref.selection"]) == {
        "selector": "moba", "count": 3, "block_size": 4, "visible": {"kind": "Causal"},
    }  # fmt: skip
    assert said["sparse_ref.sentence"].startswith("moba: The `count` blocks of Mixture of Block")


def test_every_rule_has_its_selector():
    assert set(RULES) <= set(selection.__all__)
    assert {selector for selector, _ in ASKED.values()} == set(RULES)


@pytest.mark.parametrize(
    ("selector", "options", "message"),
    [
        ("quest", {}, "selector must be one of topk_keys, topk_blocks, lightning_indexer, moba, "),
        ("topk_keys", {"block_size": 4}, "topk_keys takes count, got block_size"),
        ("topk_keys", {"count": 0}, "count must be >= 1, got 0"),
        ("topk_blocks", {"pool": "sum"}, "pool must be one of mean, max, got 'sum'"),
        ("nsa_blocks", {"window": 5, "stride": 2}, "window must be a multiple of stride = 2"),
        ("moba", {"index_dim": 3}, "index_dim must be None: moba scores with q and k"),
        ("msa", {"index_dim": 3, "index_heads": 4}, "index_heads must be kv_heads = 2 for msa"),
        ("topk_keys", {"mode": "standard"}, "mode must be one of custom, inline, got 'standard'"),
        ("topk_keys", {"visible": sr.Document([0, 0, 1])}, "visible must carry no length and no"),
        ("topk_keys", {"visible": sr.Keys(sr.Runtime("x"))}, "visible must carry no length and no"),
        ("topk_keys", {"kv_heads": 3}, "kv_heads must divide heads = 4, got 3"),
    ],
)
def test_bad_input_is_refused(selector, options, message):
    given = {"heads": 4, "kv_heads": 2, "head_dim": 8, "count": 3} | options
    with pytest.raises((TypeError, ValueError), match=message):
        selection_to_onnx(selector, **given)
