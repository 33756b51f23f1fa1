"""The whole catalogue as ONNX: every mode that claims a pattern, every runtime, at odd lengths."""

import inspect
import itertools
import warnings
from functools import cache, lru_cache
from typing import Any, NamedTuple

import numpy as np
import pytest

import sparse_ref as sr

pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")

import onnxruntime
from onnx.reference import ReferenceEvaluator

from exporters import to_onnx
from exporters.onnx.running import CPU, run, shared_buffers
from tests.exporters.catalogue import CATALOGUE, N, drawn
from tests.test_layouts import FAMILIES

HEADS, KV_HEADS, SIZE, WIDTH = 4, 2, 8, 5
BUFFER = 128  # what the length of a cache for com.microsoft.SparseAttention is a multiple of
WAYS = {
    "custom, loop": ("custom", "loop"),
    "custom, gather": ("custom", "gather"),
    "inline, loop": ("inline", "loop"),
    "inline, gather": ("inline", "gather"),
    "standard": ("standard", "loop"),
    "microsoft": ("microsoft", "loop"),
}
SQUARE = [(1, 1), (7, 7), (33, 33), (100, 100), (257, 257)]
DECODE = [(1, 7), (1, 100), (1, 257)]
UNEQUAL = [(7, 33), (70, 257), (100, 33)]
SHORT = [(1, 1), (33, 33), (1, 100)]
ATTRIBUTES = {"softcap": 1.5, "scale": 0.3}
ORACLE = {  # what `to_onnx` and `sr.attention` call the same
    "sinks": "sink_logits", "key_length": "kv_lengths", "q_start": "q_start",
    "softcap": "softcap", "scale": "scale",
}  # fmt: skip

# The patterns that ONNX Runtime's own operators say, and how the others are refused.
MICROSOFT = {
    "causal": "GroupQueryAttention",
    "mistral": "GroupQueryAttention",
    "gemma3, a sliding layer": "GroupQueryAttention",
    "gemma3, a full layer": "GroupQueryAttention",
    "gpt_oss, a sliding layer": "GroupQueryAttention",
    "llama4 by 32": "SparseAttention",
    "phi3_small": "SparseAttention",
}
REFUSED = (
    r"^mode 'microsoft' (needs a causal window, or a causal pattern of blocks of [\d, ]+ keys|"
    r"needs every query to see its own block|has one set of keys for all batch rows).*; "
    r"mode 'custom' says any pattern, mode 'standard' all but bfloat16$"
)


def claims(way, name):
    return way != "microsoft" or name in MICROSOFT


@cache
def made(name, way, **options):
    mode, body = WAYS[way]
    return to_onnx(
        CATALOGUE[name], heads=HEADS, kv_heads=KV_HEADS, head_dim=SIZE,
        value_dim=None if mode == "microsoft" else WIDTH, mode=mode, body=body, **options,
    )  # fmt: skip


class Problem(NamedTuple):
    """Inputs of a file, what must come out, and how far off it may be."""

    feed: dict[str, Any]
    want: Any
    bound: Any


@lru_cache(maxsize=32)  # modes of one pattern are asked the same
def problem(name, b, m, n, width, switched_on):
    """`switched_on` names the inputs, and attributes, that the file has beside its arrays."""
    rng = np.random.default_rng(1000 * m + n)
    shapes = (b, HEADS, m, SIZE), (b, KV_HEADS, n, SIZE), (b, KV_HEADS, n, width)
    arrays = [rng.standard_normal(shape).astype(np.float32) for shape in shapes]
    tables, pattern = drawn(name, b, n)
    sinks = np.array([0.5, -np.inf, 3, -2], np.float32)
    lengths, starts = np.array([0, n - n // 3]), np.array([n - m, max(n - m - 3, 0)])
    inputs = {"sinks": sinks, "key_length": lengths, "q_start": starts}
    feed = dict(zip("qkv", arrays, strict=True)) | tables
    feed |= {name: x for name, x in inputs.items() if name in switched_on}
    options = {ORACLE[name]: (inputs | ATTRIBUTES)[name] for name in switched_on}
    want = sr.attention(*arrays, pattern, **options).out
    wide = {"arithmetic": "float32", "output": "float32"}
    return Problem(feed, want, sr.error_bound(*arrays, pattern, **options, **wide).out)


def in_runtime(model):
    return _answers(onnxruntime.SessionOptions(), model)


def in_runtime_with_kernel(model):
    from exporters import register_kernels

    options = onnxruntime.SessionOptions()
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        if not register_kernels(options):
            pytest.skip(str(said[-1].message))
    options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
    return _answers(options, model, ours=True)


def in_evaluator(model):
    ready = ReferenceEvaluator(model)
    return lambda feed: ready.run(["y"], feed)[0]


def _answers(options, model, *, ours=False):
    options.log_severity_level, options.intra_op_num_threads = 4, 1
    ready = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=[CPU])
    if ours:  # the kernel is what runs, not the body
        parts = ready.get_provider_graph_assignment_info()
        assert "SparseAttention" in {node.op_type for one in parts for node in one.get_nodes()}
    names, shared = [one.name for one in model.graph.output], shared_buffers(model)
    return lambda feed: run(ready, _with_cache(feed) if shared else feed, names, shared)["y"]


def _with_cache(feed):
    """As com.microsoft.SparseAttention wants it: new keys, and the past in buffers with room."""
    m, n = feed["q"].shape[2], feed["k"].shape[2]
    given = dict(feed)
    for name, past in (("k", "past_key"), ("v", "past_value")):
        b, g, _, d = feed[name].shape
        buffer = np.zeros((b, g, -(-n // BUFFER) * BUFFER, d), np.float32)
        buffer[:, :, : n - m] = feed[name][:, :, : n - m]
        given |= {name: feed[name][:, :, n - m :], past: buffer}
    return given | {"total_sequence_length": np.array([n], np.int32)}


def runtimes(way):
    """Who can run a file of this mode; the evaluator knows no operator of com.microsoft."""
    found = {"ONNX Runtime": in_runtime}
    if way != "microsoft":
        found["evaluator"] = in_evaluator
    return found


def assert_agrees(runtime, y, asked):
    assert y.shape == asked.want.shape
    assert y.dtype == np.float32
    within = (y == asked.want) | (np.abs(y - asked.want) <= asked.bound)  # a NaN is neither
    assert within.all(), f"{runtime}: {(~within).sum()} beyond the bound, {np.argwhere(~within)[0]}"


def fitting(name, way, shapes):
    """A pattern with a start serves no more queries than keys, and only as many as it covers."""
    covers = CATALOGUE[name].covers
    for m, n in shapes:
        if (covers is None and way != "microsoft") or m <= n:
            yield m, n


def agrees(name, way, shapes, runtimes, **options):
    """`options` switch on every input of the file that its mode has."""
    model = made(name, way, **options)
    answers = {runtime: ready(model) for runtime, ready in runtimes.items()}
    for m, n in fitting(name, way, shapes):
        b = 2 if m in (1, n) or way != "microsoft" else 1
        width = SIZE if way == "microsoft" else WIDTH
        asked = problem(name, b, m, n, width, tuple(one for one in options if one in ORACLE))
        for runtime, answer in answers.items():
            with np.errstate(all="ignore"):
                y = answer(asked.feed)
            assert_agrees(f"{runtime}, {m} x {n}", y, asked)


def switched_on(way):
    given = {"sinks": True} | ATTRIBUTES
    return given if way == "microsoft" else given | {"key_length": True, "q_start": True}


EVERYTHING = [(way, name) for name, way in itertools.product(CATALOGUE, WAYS) if claims(way, name)]
# Of the whole, as many as there are patterns, each in another mode than its neighbours.
SAMPLE = [(list(WAYS)[i % 5], name) for i, name in enumerate(CATALOGUE)]
SAMPLE += [("microsoft", name) for name in ("mistral", "phi3_small")]


@pytest.mark.parametrize(("way", "name"), SAMPLE)
def test_a_sample_of_the_whole(way, name):
    agrees(name, way, SHORT, runtimes(way))


@pytest.mark.slow
@pytest.mark.parametrize(("way", "name"), EVERYTHING)
def test_every_pattern_in_every_mode_at_every_length(way, name):
    agrees(name, way, [*SQUARE, *DECODE, *UNEQUAL], runtimes(way))


@pytest.mark.slow
@pytest.mark.parametrize(("way", "name"), EVERYTHING)
def test_with_sinks_a_soft_cap_and_key_lengths_and_starts_of_every_row(way, name):
    """The first batch row has no key at all."""
    if MICROSOFT.get(name) == "SparseAttention" and way == "microsoft":
        with pytest.raises(NotImplementedError, match="has no softcap and no sinks in Sparse"):
            made(name, way, **switched_on(way))
        return
    agrees(name, way, [(33, 33), (1, 100), (70, 257)], runtimes(way), **switched_on(way))


@pytest.mark.slow
@pytest.mark.parametrize("name", CATALOGUE)
def test_our_kernel_in_onnx_runtime(name):
    way, ours = "custom, loop", {"kernel": in_runtime_with_kernel}
    agrees(name, way, [*SQUARE, *DECODE, *UNEQUAL], ours)
    agrees(name, way, [(33, 33), (1, 100), (70, 257)], ours, **switched_on(way))


@pytest.mark.slow
@pytest.mark.parametrize("way", [way for way in WAYS if way != "microsoft"])
@pytest.mark.parametrize("name", [name for name, one in CATALOGUE.items() if one.covers])
def test_files_of_fixed_lengths(way, name):
    """As many queries and keys as the pattern covers; what the run brings is never fixed."""
    n = CATALOGUE[name].covers
    agrees(name, way, [(n, n)], runtimes(way), dynamic=False)


@pytest.mark.parametrize("name", MICROSOFT)
def test_what_onnx_runtimes_own_operators_say(name):
    operators = [one.op_type for one in made(name, "microsoft").graph.node if one.domain]
    assert operators == [MICROSOFT[name]]


@pytest.mark.parametrize("name", [name for name in CATALOGUE if name not in MICROSOFT])
def test_what_they_do_not_say_is_refused_with_the_modes_that_do(name):
    with pytest.raises(NotImplementedError, match=REFUSED):
        made(name, "microsoft")


def test_the_catalogue_holds_every_recipe_and_every_kind_of_pattern():
    source = inspect.getsource(inspect.getmodule(drawn))
    assert not [one for one in sr.recipes.__all__ if f"recipes.{one}(" not in source]
    kinds = {type(part) for one in CATALOGUE.values() for part in parts(one)}
    assert not {type(part) for one in FAMILIES for part in parts(one)} - kinds
    everyone = {one for name in sr.__all__ if inspect.isclass(one := getattr(sr, name))}
    assert not {one for one in everyone if issubclass(one, sr.Pattern)} - kinds - {sr.Pattern}


def parts(pattern):
    return [pattern, *(one for child in pattern.children for one in parts(child))]


def test_the_catalogue_reaches_past_every_window_and_has_rows_that_see_nothing():
    for name, pattern in CATALOGUE.items():
        assert pattern.covers is None or pattern.covers >= N, name
    empty = {
        name
        for name in CATALOGUE
        if not drawn(name, 2, 33)[1].for_batch(0).at(0).mask(33, 33)[0].any(axis=1).all()
    }
    assert {"nothing", "rows that see nothing", "earlier chunks only", "few explicit pairs"} < empty
