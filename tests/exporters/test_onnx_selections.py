"""Selectors inside an ONNX file, against `sparse_ref.selection` and attention over its choice."""

import json
import re
from functools import cache
from typing import Any

import numpy as np
import pytest

import sparse_ref as sr
from sparse_ref import selection

pytest.importorskip("onnxruntime")

import onnx
import onnxruntime
from onnx.reference import ReferenceEvaluator

from exporters.onnx.observed import SELECTION
from exporters.onnx.peak import estimated_peak
from exporters.onnx.selections import selection_to_onnx
from exporters.onnx.selections_judged import Choice
from exporters.onnx.selections_judged import chosen as chosen_by
from exporters.onnx.selections_rules import RULES
from exporters.onnx.validate import validate_onnx
from sparse_ref.cli import main
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


def judged(model, *feeds):
    return validate_onnx(model, providers=["CPUExecutionProvider"], cases=feeds or None)


def claiming(name, **changed):
    """The file, whose metadata says something else than it does."""
    made = type(file(name))()
    made.CopyFrom(file(name))
    (said,) = (
        one for node in made.graph.node for one in node.metadata_props if one.key == SELECTION
    )
    said.value = json.dumps(json.loads(said.value) | changed)
    return made


@pytest.mark.parametrize("name", ["DSA", "NSA", pytest.param("MSA", marks=pytest.mark.slow)])
def test_validate_judges_what_is_chosen_and_the_attention_over_it(name):
    report = judged(file(name))

    assert report.ok
    assert {one.what for one in report.verdicts} == {
        what + how for what in ("choice", "out") for how in ("", ", evaluator")
    }
    cases = {one.case for one in report.verdicts}
    assert {"1 x 1", "33 x 33", "33 x 33, ties", "7 x 33", "33 x 7", "257 x 257"} <= cases
    assert "of what " + ASKED[name][0] + " chooses" in str(report)


@pytest.mark.parametrize(
    "options", [{"mode": "inline"}, {"dtype": "float64"}, {"dtype": "float16"}]
)
def test_validate_reads_other_files_too(options):
    kind = options.get("dtype", "float32")
    feeds = [feed("MoBA", 2, 17, 29, whole=whole) for whole in (True, False)]
    assert judged(
        file("MoBA", **options), *({x: y.astype(kind) for x, y in f.items()} for f in feeds)
    ).ok


@pytest.mark.parametrize(
    ("name", "changed", "sentence"),
    [
        ("top keys", {"count": 6}, "lacks the keys"),
        ("top keys", {"visible": sr.to_dict(sr.Causal() & sr.SlidingWindow(9, 0))}, "sees other"),
        ("DSA", {"count": 6}, "lacks the keys"),
        ("top blocks by mean", {"pool": "max"}, "lacks the blocks"),
        ("MSA", {"local": 0}, "lacks the blocks"),
        ("MSA, nothing forced", {"local": 2}, "lacks the blocks"),
        ("MoBA", {"selector": "topk_blocks"}, "lacks the blocks"),
        ("NSA", {"initial": 0}, "lacks the blocks"),
        ("NSA", {"stride": 4}, "lacks the blocks"),
    ],
)
def test_validate_finds_a_file_that_chooses_otherwise_than_it_says(name, changed, sentence):
    report = judged(
        claiming(name, **changed), feed(name, 1, 33, 50), feed(name, 1, 33, 50, whole=False)
    )

    assert not report.ok
    wrong = [one for one in report.verdicts if not one.ok]
    assert {one.what for one in wrong} == {"choice", "choice, evaluator"}
    assert re.match(rf"batch 0, head \d, query \d+ {sentence}", wrong[0].wrong)


def test_a_tie_is_no_near_miss():
    """Scores of whole numbers are exact, so that the last of equal ones is wrong."""
    fed = feed("top keys", 1, 9, 9) | {"q": np.zeros((1, H, 9, D), np.float32)}
    right = [list(range(min(t + 1, 5))) for t in range(9)]
    choice = Choice("topk_keys", {"count": 5}, CAUSAL)
    lists = {
        "i": np.array(right[-1:] * 9, np.int32)[None, None],
        "masks": np.ones((1, 1, 1), np.uint8),
    }
    lists |= {"count": np.minimum(np.arange(1, 10), 5).astype(np.int32)[None, None]}
    lists |= {"ids": np.zeros_like(lists["i"])}
    names = ("i", "count", "ids", "masks")
    assert chosen_by(choice, fed | lists, names, (1, H, 9, 9))[1:] == (0, None)

    lists["i"][0, 0, 8] = [0, 1, 2, 3, 5]
    _, off, first = chosen_by(choice, fed | lists, names, (1, H, 9, 9))
    assert off == H
    assert first == "batch 0, head 0, query 8 lacks the keys [4], and has [5] instead"


def test_where_float32_cannot_tell_either_choice_is_right():
    """In float64 the second key scores 2**-30 more: float32 sees a tie, and takes the first."""
    model = selection_to_onnx("topk_keys", heads=1, head_dim=2, count=1)
    key = np.array([[[[1, 0], [1, 2**-10]]]], dtype=np.float32)
    fed = {"q": np.array([[[[1, 2**-20]]]], dtype=np.float32), "k": key, "v": key}

    assert judged(model, fed).ok
    fed["k"] = np.array([[[[1, 0], [1 + 2**-10, 0]]]], dtype=np.float32)
    assert judged(model, fed).ok
    fed["k"] = fed["k"][:, :, ::-1].copy()
    assert judged(model, fed).ok


def test_the_memory_of_a_choice_is_not_guessed():
    with pytest.raises(NotImplementedError, match="a file that chooses by content is not known"):
        estimated_peak(file("MoBA"), 100)


def test_a_list_that_leads_outside_is_wrong():
    choice = Choice("topk_keys", {"count": 1}, CAUSAL)
    one = np.ones((1, 1, 1, 1), np.float32)
    count, ids = np.ones((1, 1, 1), np.int32), np.zeros((1, 1, 1, 1), np.int32)
    lists = {"i": ids + 3, "count": count, "ids": ids, "masks": np.ones((1, 1, 1), np.uint8)}
    got = {"q": one, "k": one} | lists
    assert (
        chosen_by(choice, got, tuple(lists), (1, 1, 1, 1))[2] == "a list must have blocks below 1"
    )


def test_the_command_validates_a_selection(tmp_path, capsys):
    path = tmp_path / "chosen.onnx"
    onnx.save(selection_to_onnx("topk_keys", heads=1, head_dim=4, count=3), path)
    assert main(["validate", str(path), "--provider", "cpu"]) == 0
    assert "what topk_keys chooses (count=3) of Causal()" in capsys.readouterr().out
    onnx.save(claiming("MoBA", count=4), path)
    assert main(["validate", str(path), "--provider", "cpu"]) == 1
    onnx.save(claiming("MoBA", selector="quest"), path)
    assert main(["validate", str(path), "--provider", "cpu"]) == 2
    assert "selector must be one of topk_keys, topk_blocks, " in capsys.readouterr().err
