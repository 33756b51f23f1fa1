"""The X-ray of ONNX files: ours, strangers', and files that lost their window."""

import argparse
import json

import numpy as np
import pytest

import sparse_ref as sr

onnx = pytest.importorskip("onnx", reason="onnx is not installed")
pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")

from onnx import parser  # noqa: E402

from exporters import to_onnx  # noqa: E402
from exporters.onnx.expected import compare_with_config, longest  # noqa: E402
from exporters.onnx.xray import xray_onnx  # noqa: E402
from sparse_ref.cli import xray as command  # noqa: E402
from sparse_ref.cli.command import Refusal  # noqa: E402

WINDOW = sr.Causal() & sr.SlidingWindow(6, 0)
SIZES = {"heads": 4, "kv_heads": 2, "head_dim": 8}
CONFIG = {
    "num_hidden_layers": 1, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8,
    "sliding_window": 7,
}  # fmt: skip


def only(model, **options):
    (one,) = xray_onnx(model, **options)
    assert one.unread is None, one.unread
    return one.xray


def ours(pattern=WINDOW, **options):
    return to_onnx(pattern, **{**SIZES, **options})


MODES = {
    "custom": {"mode": "custom", "softcap": 5.0},
    "Attention 23": {"mode": "standard", "opset": 23},
    "Attention 24": {"mode": "standard", "opset": 24},
    "Attention 25": {"mode": "standard", "opset": 25},
    "GroupQueryAttention": {"mode": "microsoft", "softcap": 5.0},
}


@pytest.mark.parametrize("mode", MODES)
def test_our_own_files_are_what_they_were_made_for(mode):
    got = only(ours(scale=0.3, **MODES[mode]), length=13)
    np.testing.assert_array_equal(got.mask, WINDOW.mask(13, 13, heads=4))
    assert {(one.scale, one.softcap) for one in got.heads} == {(0.3, MODES[mode].get("softcap"))}
    assert tuple(got.key_heads) == (0, 0, 1, 1)
    assert {one.seen.spelled["hf"] for one in got.heads} == {"sliding_window=7"}


def test_sinks_are_the_values_of_the_file():
    feeds = {"sinks": np.array([0.5, -1.25, 3.0, 0.0], np.float32)}
    got = only(ours(sinks=True), feeds=feeds, length=9)
    assert [one.sink for one in got.heads] == [0.5, -1.25, 3.0, 0.0]


@pytest.mark.parametrize("mode", ["Attention 25", "GroupQueryAttention", "custom"])
def test_keys_of_a_past_come_first(mode):
    rng = np.random.default_rng(0)
    sizes = {"q": (1, 4, 5, 8), "k": (1, 2, 11, 8), "v": (1, 2, 11, 8)}
    feeds = {name: rng.standard_normal(size).astype(np.float32) for name, size in sizes.items()}
    narrow = sr.Causal() & sr.SlidingWindow(1, 0)  # the first query sees a past key and a new one
    got = only(ours(narrow, **MODES[mode]), feeds=feeds)
    np.testing.assert_array_equal(got.mask, narrow.mask(5, 11, heads=4))
    assert got.heads[0].seen.alignment == "the last query stands at the last key (bottom-right)"
    assert {one.scale for one in got.heads} == {8**-0.5}


def test_a_body_without_its_operator_is_read_as_a_whole():
    got = only(ours(mode="inline", scale=0.3, softcap=5.0), length=9)
    np.testing.assert_array_equal(got.mask, WINDOW.mask(9, 9, heads=4))
    assert (got.heads[0].scale, got.heads[0].softcap) == (0.3, 5.0)


def test_half_precision_is_told():
    got = only(ours(dtype="float16"), length=9)
    np.testing.assert_array_equal(got.mask, WINDOW.mask(9, 9, heads=4))
    assert (got.precision["scores"], got.precision["values"]) == (24, 11)


def written(mask="causal", scores="s = Mul (p, scale)", groups=1, tail="w = Softmax (h)"):
    """A stranger's attention, 4 heads over 2, that hides keys by adding `mask` (m, n) to scores."""
    masks = {
        "causal": "edge = Trilu <upper=1> (low, one)  bias = Identity (edge)",
        "top-left": "edge = Trilu <upper=1> (low, one)  bias = Identity (edge)",
        "bottom-right": "shift = Sub (n, m)  next = Add (shift, one)"
        "  edge = Trilu <upper=1> (low, next)  bias = Identity (edge)",
        "soft": "edge = Trilu <upper=1> (ten, one)  bias = Identity (edge)",
        "input": "bias = Identity (given)",
    }
    axis = "two" if groups else "one1"
    order = (
        "Concat <axis=0> (bv, g1, two, n1, d1)"
        if groups
        else "Concat <axis=0> (bv, two, g1, n1, d1)"
    )
    extra = ", float[m, n] given" if mask == "input" else ""
    return parser.parse_model(f"""
      <ir_version: 8, opset_import: ["": 18]>
      stranger (float[b, 4, m, 8] q, float[b, 2, n, 8] k, float[b, 2, n, 8] v{extra})
        => (float[b, 4, m, 8] y)
      <float scale = {{0.3}}, float cap = {{5}}, int64 one = {{1}}, int64[1] one1 = {{1}},
       int64[1] two = {{2}}, int64[1] g1 = {{2}}, int64[1] d1 = {{8}},
        int64[4] flat = {{0, 4, -1, 8}},
       float lowest = {{-3.0e38}}, float minus = {{-10}}>
      {{
        ms = Shape <start=2, end=3> (q)  n1 = Shape <start=2, end=3> (k)
        bv = Shape <start=0, end=1> (q)
        m = Squeeze (ms)  n = Squeeze (n1)  mn = Concat <axis=0> (ms, n1)
        low = Expand (lowest, mn)  ten = Expand (minus, mn)
        {masks[mask]}
        sizes = {order}
        k5 = Unsqueeze (k, {axis})  ke = Expand (k5, sizes)  kr = Reshape (ke, flat)
        v5 = Unsqueeze (v, {axis})  ve = Expand (v5, sizes)  vr = Reshape (ve, flat)
        kt = Transpose <perm=[0, 1, 3, 2]> (kr)
        p = MatMul (q, kt)
        {scores}
        h = Add (s, bias)
        {tail}
        y = MatMul (w, vr)
      }}""")


def read(model, m=5, n=9, **more):
    rng = np.random.default_rng(0)
    feeds = {"q": (1, 4, m, 8), "k": (1, 2, n, 8), "v": (1, 2, n, 8)}
    feeds = {name: rng.standard_normal(size).astype(np.float32) for name, size in feeds.items()}
    return only(model, feeds={**feeds, **more})


@pytest.mark.parametrize("where", ["top-left", "bottom-right"])
def test_the_alignment_of_a_file_is_said(where):
    got = read(written(where))
    assert got.heads[0].seen.words == "causal"
    assert got.heads[0].seen.alignment.endswith(f"({where})")
    assert (got.heads[0].scale, got.heads[0].softcap) == (0.3, None)


def test_a_softcap_between_the_products_is_found():
    capped = "a = Mul (p, scale)  c = Div (a, cap)  t = Tanh (c)  s = Mul (t, cap)"
    one = read(written(scores=capped)).heads[0]
    assert (one.scale, one.softcap) == (0.3, 5.0)


def test_a_missing_scale_is_found():
    assert read(written(scores="s = Identity (p)")).heads[0].scale == 1.0


def test_a_soft_mask_is_found():
    one = read(written("soft"), 7, 7).heads[0]
    assert (one.leak, one.seen.words) == (-10, "causal")


def test_tiled_heads_are_found():
    assert tuple(read(written()).key_heads) == (0, 0, 1, 1)
    assert tuple(read(written(groups=0)).key_heads) == (0, 1, 0, 1)


def test_a_mask_after_the_softmax_is_found():
    late = (
        "u = Softmax (s)  seen = Cast <to=9> (bias)  zero = Sub (u, u)  w = Where (seen, zero, u)"
    )
    got = read(written(tail=late), 7, 7)
    assert got.heads[0].lost
    np.testing.assert_array_equal(got.mask[0], np.tri(7, dtype=bool))


def test_sinks_beside_the_scores_are_found():
    """As gpt-oss has them: one more column in the softmax, cut off after it."""
    beside = """
        column = Constant <value_floats = [0.5, -2.0, 1.0, 4.0]> ()
        tall = Constant <value_ints = [1, 4, 1, 1]> ()  c4 = Reshape (column, tall)
        four = Constant <value_ints = [4]> ()  c = Concat <axis=0> (bv, four, ms, one1)
        sink = Expand (c4, c)  all = Concat <axis=-1> (h, sink)
        top = ReduceMax <axes = [-1]> (all)  less = Sub (all, top)  probs = Softmax (less)
        zero = Constant <value_ints = [0]> ()  last = Constant <value_ints = [-1]> ()
        w = Slice (probs, zero, n1, last)"""
    model = written("bottom-right", tail=beside)
    model.opset_import[0].version = 17  # where ReduceMax has its axes as an attribute
    got = read(model)
    assert [one.sink for one in got.heads] == [0.5, -2.0, 1.0, 4.0]
    assert {one.scale for one in got.heads} == {0.3}


def test_operators_of_onnx_runtime_are_read():
    plain = parser.parse_model("""
      <ir_version: 8, opset_import: ["": 18, "com.microsoft": 1]>
      plain (float[1, m, 32] q, float[1, n, 32] k, float[1, n, 40] v) => (float[1, m, 40] y) {
        y = com.microsoft.MultiHeadAttention
          <num_heads: int = 4, unidirectional: int = 1, scale: float = 0.3> (q, k, v)
      }""")
    got = only(plain, length=7)
    np.testing.assert_array_equal(got.mask, sr.Causal().mask(7, 7, heads=4))
    assert (got.heads[0].scale, tuple(got.key_heads)) == (0.3, (0, 1, 2, 3))


def test_a_rotary_embedding_inside_is_turned_off_and_that_is_said():
    turning = parser.parse_model("""
      <ir_version: 8, opset_import: ["": 18, "com.microsoft": 1]>
      turning (float[1, 9, 64] q, float[1, 9, 32] k, float[1, 9, 32] v, int32[1] last, int32 total,
               float[16, 8] cos, float[16, 8] sin) => (float[1, 9, 64] y) {
        y, pk, pv = com.microsoft.GroupQueryAttention
          <num_heads: int = 4, kv_num_heads: int = 2, do_rotary: int = 1,
           local_window_size: int = 3>
          (q, k, v, , , last, total, cos, sin)
      }""")
    feeds = {"last": np.array([8], np.int32), "total": np.array(9, np.int32)}
    (one,) = xray_onnx(turning, feeds=feeds)
    assert one.notes == ("its rotary embedding is turned off for the reading",)
    assert one.xray.heads[0].scale == 16**-0.5
    assert one.xray.heads[0].seen.spelled["ort_gqa"] == "local_window_size=3"


def test_masks_are_made_of_the_inputs_given():
    given = np.where(np.arange(9) < 6, 0, -np.inf) + np.where(np.tri(5, 9, 4), 0, -np.inf)
    given[3] = -3e38
    one = read(written("input"), given=given.astype(np.float32)).heads[0]
    want = given == 0
    np.testing.assert_array_equal(one.mask, want)
    assert one.empty == "the mean of V"


def test_a_router_is_no_attention():
    router = parser.parse_model("""
      <ir_version: 8, opset_import: ["": 18]>
      router (float[1, 5, 6] x) => (float[1, 5, 2] y) <float[6, 3] a, float[3, 2] b> {
        s = MatMul (x, a)  w = Softmax (s)  y = MatMul (w, b)
      }""")
    for name, size in (("a", (6, 3)), ("b", (3, 2))):
        tensor = onnx.numpy_helper.from_array(np.ones(size, np.float32), name)
        router.graph.initializer.append(tensor)
    del router.graph.input[1:]
    assert xray_onnx(router) == []


def test_what_cannot_be_read_says_why():
    packed = parser.parse_model("""
      <ir_version: 8, opset_import: ["": 18, "com.microsoft": 1]>
      packed (float[1, 3, 64] x, int32[1] last, int32 total) => (float[1, 3, 32] y) {
        y, pk, pv = com.microsoft.GroupQueryAttention <num_heads: int = 2, kv_num_heads: int = 1>
          (x, , , , , last, total)
      }""")
    feeds = {"last": np.array([2], np.int32), "total": np.array(3, np.int32)}
    (one,) = xray_onnx(packed, feeds=feeds)
    assert one.xray is None
    assert one.unread == "its query, key and value are packed into one input"
    with pytest.raises(ValueError, match="model must run on these inputs, and does not"):
        xray_onnx(written(), feeds={"q": np.zeros((1, 3, 5, 8), np.float32)})


@pytest.fixture(scope="module")
def readings():
    return xray_onnx(ours(), length=15)


NOT_7 = "every head has: causal window of 7 keys; the first difference is at (query, key) ="
CHANGED = [  # in the config, and the sentences about it
    ({}, []),
    (
        {"sliding_window": 8},
        [f"layer 0: config says sliding_window=8 (causal window of 8 keys), {NOT_7} (7, 0)"],
    ),
    (
        {"layer_types": ["full_attention"]},
        [f"layer 0: config says full_attention (causal), {NOT_7} (7, 0)"],
    ),
    (
        {"use_sliding_window": False, "attention_chunk_size": 4},
        [f"layer 0: config says attention_chunk_size=4 (causal chunks of 4 keys), {NOT_7} (4, 0)"],
    ),
    (
        {"num_key_value_heads": 4},
        ["layer 0: config says num_key_value_heads=4, the file has 2"],
    ),
    (
        {"num_attention_heads": 8},
        ["layer 0: config says num_attention_heads=8, the file has 4"],
    ),
    (
        {"attn_logit_softcapping": 50.0},
        ["layer 0: attn_logit_softcapping makes the softcap 50, the file's of head 0 is none"],
    ),
    (
        {"query_pre_attn_scalar": 16},
        ["layer 0: query_pre_attn_scalar makes the scale 0.25, the file's of head 0 is 0.353553"],
    ),
    ({"num_hidden_layers": 2}, ["the config has 2 layers, the file 1 attentions"]),
    (
        {"sliding_window": 15},
        [
            "layer 0: sliding_window=15 cannot be seen with 15 keys: read it with 16 or more",
            f"layer 0: config says sliding_window=15 (causal), {NOT_7} (7, 0)",
        ],
    ),
]


@pytest.mark.parametrize(("changes", "sentences"), CHANGED)
def test_a_config_is_compared_a_sentence_each(readings, changes, sentences):
    assert compare_with_config(readings, {**CONFIG, **changes}) == sentences
    assert compare_with_config(readings, {"text_config": {**CONFIG, **changes}}) == sentences


def test_configs_older_than_layer_types():
    gemma = {"model_type": "gemma2", "sliding_window": 9, "num_hidden_layers": 4}
    assert longest(gemma) == 17
    assert longest({"attention_chunk_size": 8, "num_hidden_layers": 2}) == 16
    assert longest({"num_hidden_layers": 2}) == 0
    with pytest.raises(ValueError, match="layer_types must hold"):
        longest({"layer_types": ["linear_attention"]})
    with pytest.raises(ValueError, match="config must be of a causal decoder, got modernbert"):
        longest({"model_type": "modernbert"})
    with pytest.raises(ValueError, match="config must have sliding_window, as layer 0 slides"):
        longest({"layer_types": ["sliding_attention"]})


def run(*words):
    """The exit status of the command."""
    asked = argparse.ArgumentParser()
    command.add_to(asked.add_subparsers())
    arguments = asked.parse_args(["xray", *map(str, words)])
    try:
        return arguments.run(arguments)
    except Refusal as refused:
        return refused.status


KERNELS = """
import sparse_ref as sr
def built_in(q, k, v):
    return sr.attention(q, k, v, sr.SlidingWindow(2, 0)).out
def asked(q, k, v, pattern):
    return sr.attention(q, k, v, pattern).out
def refuses(q, k, v):
    raise NotImplementedError("no")
"""


def test_the_command(tmp_path, capsys):
    kernels, file, config = (tmp_path / name for name in ("xk.py", "window.onnx", "config.json"))
    kernels.write_text(KERNELS)
    file.write_bytes(ours().SerializeToString())
    config.write_text(json.dumps(CONFIG))
    assert run(file, "--expect", config) == 0
    said = capsys.readouterr().out
    assert said.startswith("layer 0: sparse_ref.SparseAttention\n")
    assert "causal window of 7 keys: hf sliding_window=7" in said
    config.write_text(json.dumps({**CONFIG, "sliding_window": 8}))
    assert run(file, "--expect", config, "--json") == 1
    assert "config says sliding_window=8" in json.loads(capsys.readouterr().out)["differences"][0]
    small = ("--kv-len", 5, "--head-dim", 8)
    assert run(f"{kernels}:built_in", *small) == 0
    assert "causal window of 3 keys" in capsys.readouterr().out
    assert run(f"{kernels}:built_in", *small, "--pattern", "Causal()") == 1
    assert run(f"{kernels}:asked", *small, "--pattern", "SlidingWindow(2, 0)", "-q") == 0
    assert run(f"{kernels}:asked") == run(f"{kernels}:nothing") == run(tmp_path / "no.onnx") == 2
    assert run(f"{kernels}:built_in", "--expect", config) == run(file, "--pattern", "Full()") == 2
    assert run(f"{kernels}:refuses") == 3
    config.write_text("[")
    assert run(file, "--expect", config) == 2


# Stock exports of transformers


def exported(name, attention, **changes):
    """A small random model of transformers as torch.onnx.export writes it, and its config."""
    torch = pytest.importorskip("torch", reason="torch is not installed")
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    pytest.importorskip("onnxscript", reason="onnxscript is not installed")
    from tests.exporters.hf_models import MODELS

    torch.set_num_threads(1)
    kind, config, options = MODELS[name]
    torch.manual_seed(0)
    config = getattr(transformers, config)(**{**options, **changes}, attn_implementation=attention)
    made = getattr(transformers, kind)(config).eval()

    class Model(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = made

        def forward(self, ids):
            return self.inner(input_ids=ids, use_cache=False).last_hidden_state

    free = {"ids": {1: torch.export.Dim("n", min=2, max=100)}}
    file = torch.onnx.export(
        Model(), (torch.randint(3, 50, (1, 24)),), dynamo=True, opset_version=18,
        input_names=["ids"], dynamic_shapes=free, verbose=False,
    )  # fmt: skip
    return file.model_proto, config.to_dict()


SLIDING = {"sliding_window": 7}
STOCK = [
    ("Mistral", "eager", SLIDING), ("Mistral", "sdpa", SLIDING),
    ("Gemma 3", "eager", SLIDING), ("Gemma 3", "sdpa", SLIDING),
    ("Gemma 2, softcap", "eager", SLIDING),
]  # fmt: skip


@pytest.mark.slow
@pytest.mark.witness
@pytest.mark.parametrize(("name", "attention", "changes"), STOCK)
@pytest.mark.filterwarnings("ignore")
def test_stock_exports_are_what_their_config_says(name, attention, changes):
    model, config = exported(name, attention, **changes)
    readings = xray_onnx(model, length=17)
    assert compare_with_config(readings, config) == []
    words = [one.xray.heads[0].seen.words for one in readings]
    full = "causal window of 7 keys" if name == "Mistral" else "causal"
    assert words == ["causal window of 7 keys", full]
    assert {tuple(one.xray.key_heads) for one in readings} == {(0, 0, 1, 1)}
    assert {one.operator for one in readings} == {"Softmax"}


@pytest.mark.witness
@pytest.mark.filterwarnings("ignore")
def test_a_window_that_was_lost_is_found_and_named():
    model, config = exported("Mistral", "eager", sliding_window=None, num_hidden_layers=1)
    readings = xray_onnx(model, length=longest({**config, **SLIDING}))
    assert compare_with_config(readings, config) == []
    (sentence,) = compare_with_config(readings, {**config, **SLIDING})
    assert sentence == (
        "layer 0: config says sliding_window=7 (causal window of 7 keys), every head has: causal; "
        "the first difference is at (query, key) = (7, 0)"
    )
