"""The compiled kernel inside ONNX Runtime: the operator's meaning, its refusals, its life."""

import os
import re
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings

import sparse_ref as sr

onnxruntime = pytest.importorskip("onnxruntime")
pytest.importorskip("numba")

from onnx import TensorProto, helper  # noqa: E402

from exporters import register_kernels, to_onnx  # noqa: E402
from exporters.onnx import DOMAIN, OP  # noqa: E402
from exporters.onnx.native import register, shim  # noqa: E402
from exporters.onnx.native.checks import SENTENCES  # noqa: E402
from tests.exporters.any_lists import feed_of, model, oracle, problems  # noqa: E402
from tests.exporters.test_onnx import assert_within_bound  # noqa: E402

if shim.compiler() is None:
    pytest.skip("needs a C compiler", allow_module_level=True)

WINDOW = sr.SlidingWindow(4, 4)
KEPT = {}


def session(made, threads=2, kernel=True):
    """A session, kept; with the kernel it is proved to be the one that runs."""
    key = made.SerializeToString(), threads, kernel
    if key not in KEPT:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.log_severity_level = threads, 4
        options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
        if kernel:
            options.register_custom_ops_library(str(register.loaded(False)))
        KEPT[key] = one = onnxruntime.InferenceSession(key[0], options)
        info = one.get_provider_graph_assignment_info()
        ran = [node.domain for part in info for node in part.get_nodes()]
        assert (DOMAIN in ran) == kernel
    return KEPT[key]


@given(problem=problems())
@settings(max_examples=150)
def test_the_kernel_is_attention_over_its_lists(problem):
    feed, block, cap = problem
    got = session(model("loop", block, cap)).run(None, feed)
    arguments, rest = oracle(feed, cap)
    with np.errstate(all="ignore"):
        assert_within_bound(got, *arguments, np.float32, **rest)


@given(problem=problems())
@settings(max_examples=20)
def test_the_body_agrees_and_threads_change_no_bit(problem):
    feed, block, cap = problem
    made = model("loop", block, cap)
    ours = session(made).run(None, feed)
    for mine, alone in zip(ours, session(made, threads=1).run(None, feed), strict=True):
        np.testing.assert_array_equal(mine, alone)
    body = session(made, kernel=False).run(None, feed)
    for mine, theirs in zip(ours, body, strict=True):
        np.testing.assert_allclose(mine, theirs, rtol=2e-5, atol=2e-5)


PATTERN = sr.Causal() & (sr.SlidingWindow(30, 0) | sr.Global([2]))


@pytest.mark.parametrize("dtype", ["float32", "float64", "float16"])
@pytest.mark.parametrize(("m", "n"), [(1, 1), (1, 131), (67, 131), (67, 67)])
def test_every_type_through_the_exporter(dtype, m, n):
    made = to_onnx(PATTERN, heads=4, kv_heads=2, head_dim=5, value_dim=3, dtype=dtype, softcap=2.0)
    rng = np.random.default_rng(0)
    shapes = {"q": (3, 4, m, 5), "k": (3, 2, n, 5), "v": (3, 2, n, 3)}
    given_ = {name: rng.standard_normal(shape).astype(dtype) for name, shape in shapes.items()}
    got = session(made).run(None, given_)[0]
    want = sr.attention(*given_.values(), PATTERN, softcap=2.0)
    inside = "float64" if dtype == "float64" else "float32"
    bound = sr.error_bound(*given_.values(), PATTERN, softcap=2.0, arithmetic=inside, output=dtype)

    assert got.dtype == np.dtype(dtype)
    assert (np.abs(got.astype(np.float64) - want.out) <= bound.out).all()


def test_bfloat16_between_casts():
    """NumPy has no bfloat16, so the model converts: what comes out is rounded once."""
    ml_dtypes = pytest.importorskip("ml_dtypes")
    inner = model("loop", (4, 2), kind=TensorProto.BFLOAT16, lse=False)
    graph, info = inner.graph, helper.make_tensor_value_info
    node = helper.make_node(
        OP, ["q", "k", "v", *(x.name for x in graph.input[3:8]), "s"], ["y"], domain=DOMAIN,
        scale=0.5, softcap=0.0, q_block_size=4, k_block_size=2,
    )  # fmt: skip
    names = dict(zip(("q", "k", "v", "s"), ("query", "key", "value", "sinks"), strict=True))
    casts = [
        helper.make_node("Cast", [old], [new], to=TensorProto.BFLOAT16)
        for new, old in names.items()
    ]
    inputs = [
        info(x.name, 1, [None] * len(x.type.tensor_type.shape.dim))
        if x.name in names.values()
        else x
        for x in graph.input
    ]
    made = helper.make_model(
        helper.make_graph(
            [*casts, node, helper.make_node("Cast", ["y"], ["Y"], to=TensorProto.FLOAT)],
            "casts", inputs, [info("Y", 1, [None] * 4)],
        ),
        opset_imports=inner.opset_import, functions=inner.functions, ir_version=10,
    )  # fmt: skip
    feed = feed_of(WINDOW, 2, 4, 2, 29, 31, block=(4, 2))
    for name in ("query", "key", "value"):
        feed[name] = feed[name].astype(ml_dtypes.bfloat16).astype(np.float32)
    got = session(made).run(None, feed)[0]
    arguments, rest = oracle(feed)
    want = sr.attention(*arguments, **rest)
    bound = sr.error_bound(*arguments, **rest, output="bfloat16")
    assert (np.abs(got - want.out) <= bound.out).all()
    np.testing.assert_array_equal(got, got.astype(ml_dtypes.bfloat16).astype(np.float32))


WRONG = [
    ("block_indices", (0, 0, 3, 0), -1, 9),
    ("block_indices", (0, 0, 3, 1), 10, 9),
    ("block_indices", (0, 0, 3, 1), 2**31 - 1, 9),
    ("tile_ids", (0, 0, 2, 0), -1, 10),
    ("tile_ids", (0, 0, 2, 0), 99, 10),
    ("block_count", (0, 0, 3), -1, 8),
    ("block_count", (0, 0, 3), 99, 8),
    ("key", np.s_[:, :2], None, 2),
    ("key", np.s_[..., :3], None, 3),
    ("value", np.s_[:, :, :7], None, 2),
    ("block_indices", np.s_[:, :, :4], None, 4),
    ("block_count", np.s_[:, :, :4], None, 5),
    ("tile_masks", np.s_[:, :1], None, 6),
    ("key_length", np.s_[:0], None, 7),
    ("sinks", np.s_[:0], None, 7),
]


@pytest.mark.parametrize(("name", "at", "value", "sentence"), WRONG)
def test_wrong_inputs_are_errors_of_the_session(name, at, value, sentence):
    feed = feed_of(WINDOW, 2, 3, 3, 29, 29)
    one = session(model("loop"))
    want = one.run(None, feed)
    spoilt = dict(feed)
    if value is None:
        spoilt[name] = np.ascontiguousarray(feed[name][at])
    else:
        spoilt[name] = feed[name].copy()
        spoilt[name][at] = value
    with pytest.raises(Exception, match=re.escape(SENTENCES[sentence])):
        one.run(None, spoilt)
    np.testing.assert_array_equal(one.run(None, feed)[0], want[0])


def test_wrong_ranks_are_too():
    feed = feed_of(WINDOW, 1, 2, 2, 9, 9)
    made = model("loop")
    bare = helper.make_model(
        helper.make_graph(
            made.graph.node, "ranks",
            [helper.make_tensor_value_info(x.name, x.type.tensor_type.elem_type, None)
             for x in made.graph.input],
            made.graph.output,
        ),
        opset_imports=made.opset_import, ir_version=10,
    )  # fmt: skip
    with pytest.raises(Exception, match="must have rank 4"):
        session(bare).run(None, {**feed, "query": feed["query"][0]})
    with pytest.raises(Exception, match="must have rank 4"):
        session(bare).run(None, {**feed, "query": feed["query"][None, None]})


def test_nothing_to_compute_is_answered():
    one = session(model("loop"))
    for b, m, n in ((0, 5, 5), (2, 0, 5)):
        feed = feed_of(WINDOW, b, 2, 1, m, n)
        feed["block_indices"] = np.zeros((1, 1, -(-m // 2), 1), np.int32)
        feed["tile_ids"] = feed["block_indices"]
        feed["block_count"] = np.zeros((1, 1, -(-m // 2)), np.int32)
        out, lse = one.run(None, feed)
        assert out.shape == (b, 2, m, 3)
        assert lse.shape == (b, 2, m)
    feed = feed_of(~sr.Full(), 2, 2, 1, 5, 1)
    out, lse = one.run(None, feed)
    assert not out.any()
    assert np.isneginf(lse).all()


def test_many_threads_share_a_session():
    one = session(model("loop", (2, 3)))
    feed = feed_of(sr.SlidingWindow(40, 9), 2, 4, 2, 257, 263)
    want, got = one.run(None, feed)[0], [None] * 4

    def call(i):
        for _ in range(3):
            got[i] = one.run(None, feed)[0]

    callers = [threading.Thread(target=call, args=(i,)) for i in range(4)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    for out in got:
        np.testing.assert_array_equal(out, want)


LIFE = """
import gc, sys
import numpy as np, onnxruntime, sparse_ref as sr
from exporters import to_onnx
from exporters.onnx.native.register import loaded
library = str(loaded({elf}))
model = to_onnx(sr.Causal(), heads=2, head_dim=4).SerializeToString()
x = np.ones((1, 2, 5, 4), np.float32)

def session():
    options = onnxruntime.SessionOptions()
    options.register_custom_ops_library(library)
    return onnxruntime.InferenceSession(model, options)

first, second = session(), session()
del first
gc.collect()
third = session()
for one in (second, third):
    assert np.abs(one.run(None, dict(q=x, k=x, v=x))[0] - 1).max() < 1e-6
print("ran")
"""


@pytest.mark.parametrize("elf", [False, True])
def test_sessions_come_and_go_and_the_interpreter_ends_cleanly(elf):
    code = LIFE.format(elf=elf)
    environment = dict(os.environ)
    if elf:  # with no compiler on the way, the library is written byte by byte
        if sys.platform != "linux":
            pytest.skip("the library without a compiler is for Linux")
        code = "import shutil; shutil.which = lambda name: None\n" + code
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, env=environment
    )
    assert done.stdout == "ran\n", done.stderr
    assert done.returncode == 0


def test_it_runs_in_an_older_release_too():
    older = Path(sys.prefix) / "older"
    if not older.is_dir():
        pytest.skip("no second release of ONNX Runtime: `make` puts one into .venv/older")
    root = Path(__file__).parents[2]
    code = (
        "import onnxruntime; from exporters.onnx.native.trial import main; main([]); "
        "print(onnxruntime.__version__)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(older), str(root)])},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() != onnxruntime.__version__
    assert done.stdout.startswith(register.TESTED)


@pytest.fixture
def forgotten():
    register._library.cache_clear()
    yield
    register._library.cache_clear()


def test_an_untested_release_is_refused_with_one_warning(forgotten, monkeypatch):
    monkeypatch.setattr(onnxruntime, "__version__", "1.99.0")
    with pytest.warns(RuntimeWarning, match=r"body will run: .* 1\.32, not 1\.99"):
        assert not register_kernels(onnxruntime.SessionOptions())


def test_a_failed_trial_is_refused_with_one_warning(forgotten, monkeypatch):
    monkeypatch.setattr(register, "CACHE", None)
    monkeypatch.setattr(register.sys, "executable", "/bin/false")
    with pytest.warns(RuntimeWarning, match="a trial in another process ended with 1"):
        assert not register_kernels(onnxruntime.SessionOptions())


def test_registering_runs_the_trial_and_then_the_kernel(forgotten):
    options = onnxruntime.SessionOptions()
    assert register_kernels(options)
    made = to_onnx(WINDOW, heads=2, head_dim=4)
    one = onnxruntime.InferenceSession(made.SerializeToString(), options)
    x = np.ones((1, 2, 9, 4), np.float32)
    np.testing.assert_allclose(one.run(None, {"q": x, "k": x, "v": x})[0], 1, rtol=1e-6)


def test_only_session_options_are_taken():
    with pytest.raises(TypeError, match=r"must be onnxruntime\.SessionOptions, got 3"):
        register_kernels(3)
