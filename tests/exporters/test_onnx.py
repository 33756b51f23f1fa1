"""The ONNX operator against the oracle: its body in two runtimes, and the oracle as operator."""

from typing import Any, NamedTuple

import numpy as np
import pytest

import sparse_ref as sr

pytest.importorskip("onnxruntime")

from exporters.onnx import block_tensors
from tests.exporters.one_node import SCALE, WAYS, Sizes, by_runtime, draw, model

WINDOW = sr.Causal() & sr.SlidingWindow(20, 0)
HEADS = sr.PerHead([WINDOW, sr.Causal() & sr.Strided(7), sr.Keys([0, 3])])


class Case(NamedTuple):
    pattern: sr.Pattern
    size: Sizes
    block: tuple[int, int] = (16, 8)
    softcap: float | None = None
    sinks: Any = None
    key_length: Any = None


CASES = {
    "one token": Case(sr.Causal(), Sizes(2, 2, 2, 1, 1, 3, 5)),
    "less than a block": Case(sr.Causal(), Sizes(1, 3, 3, 7, 7, 4, 2)),
    "window": Case(WINDOW, Sizes(2, 3, 3, 33, 33, 5, 7)),
    "both ways, long": Case(sr.SlidingWindow(9, 30), Sizes(1, 2, 1, 100, 100, 8, 3), (32, 32)),
    "heavy rows": Case(WINDOW | sr.Global([0, 200]), Sizes(1, 2, 2, 257, 257, 4, 6), (16, 32)),
    "end of a cache": Case(WINDOW, Sizes(3, 4, 2, 7, 100, 5, 3)),
    "more queries than keys": Case(sr.Causal(), Sizes(2, 4, 4, 33, 9, 3, 4)),
    "grouped heads": Case(sr.Causal(), Sizes(2, 6, 2, 33, 33, 3, 5)),
    "heads differ": Case(HEADS, Sizes(2, 3, 3, 33, 33, 5, 4)),
    "heads differ, grouped": Case(HEADS, Sizes(2, 6, 2, 19, 33, 5, 4)),
    "sinks": Case(WINDOW, Sizes(1, 4, 2, 33, 33, 5, 3), sinks=[0.5, -np.inf, 3.0, -2.0]),
    "key lengths": Case(
        sr.SlidingWindow(3, 3), Sizes(3, 2, 1, 33, 33, 3, 5), key_length=[0, 33, 9]
    ),
    "soft cap": Case(sr.Causal(), Sizes(1, 2, 2, 33, 33, 5, 3), softcap=1.5),
    "multiset": Case(sr.Multi([WINDOW, sr.Keys([2, 5]), WINDOW]), Sizes(2, 2, 1, 33, 33, 3, 5)),
    "no keys for some": Case(
        sr.Keys([4]) & sr.Causal(), Sizes(1, 2, 2, 33, 33, 3, 5), sinks=[1.0, 2.0]
    ),
    "no keys for any": Case(sr.Keys([]), Sizes(1, 2, 2, 5, 9, 3, 5)),
}


def run(way: Any, case: Case, dtype: Any, feed: dict[str, Any]) -> list[Any]:
    optional = {
        "key_length": None if case.key_length is None else np.array(case.key_length, np.int32),
        "sinks": None if case.sinks is None else np.array(case.sinks, dtype),
    }
    given = {name: value for name, value in optional.items() if value is not None}
    made = model(
        case.pattern, case.size, dtype=dtype, block=case.block, softcap=case.softcap,
        given=tuple(given),
    )  # fmt: skip
    with np.errstate(all="ignore"):
        return WAYS[way](made, feed | given)


def attributes(case: Case) -> dict[str, Any]:
    return {
        "scale": SCALE,
        "softcap": case.softcap,
        "sink_logits": case.sinks,
        "kv_lengths": case.key_length,
    }


def assert_within_bound(got, q, k, v, pattern, dtype, **attributes):
    """Finite where the oracle is, and no farther than the rounding of the arithmetic allows."""
    expected = sr.attention(q, k, v, pattern, **attributes)
    wide = np.float64 if dtype == np.float64 else np.float32
    bound = sr.error_bound(
        q, k, v, pattern,
        arithmetic=np.dtype(wide).name, output=np.dtype(dtype).name, **attributes,
    )  # fmt: skip
    for ours, want, allowed, of in zip(got, expected, bound, (dtype, wide), strict=True):
        assert ours.dtype == of
        finite = np.isfinite(want)
        np.testing.assert_array_equal(ours[~finite], want[~finite])
        assert (np.abs(ours[finite] - want[finite]) <= allowed[finite]).all()


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", CASES)
def test_the_operator_is_attention(way, name):
    case = CASES[name]
    feed = draw(case.size)
    got = run(way, case, np.float32, feed)
    assert_within_bound(got, *feed.values(), case.pattern, np.float32, **attributes(case))


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("dtype", [np.float64, np.float16])
def test_every_type_that_numpy_has(way, dtype):
    case = Case(WINDOW, Sizes(2, 4, 2, 33, 33, 5, 3), sinks=[0.5, 1, -1, 2])
    feed = draw(case.size, dtype)
    got = run(way, case, dtype, feed)
    assert_within_bound(got, *feed.values(), case.pattern, dtype, **attributes(case))


def test_one_file_takes_any_batch():
    size = Sizes(1, 2, 2, 33, 33, 5, 3)
    made = model(WINDOW, size)
    for b in (1, 2, 5):
        feed = draw(size._replace(b=b))
        assert_within_bound(by_runtime(made, feed), *feed.values(), WINDOW, np.float32, scale=SCALE)


@pytest.mark.parametrize("way", WAYS)
def test_batch_rows_may_have_lists_of_their_own(way):
    size, patterns = Sizes(2, 2, 1, 33, 33, 5, 3), [sr.Causal(), sr.Causal() & sr.Strided(3)]
    # tiles are numbered per layout, so both rows are laid out as heads of one
    heads = sr.to_blocks(sr.PerHead(patterns), 33, 33, block_size=(16, 8), heads=2)
    lists = {
        name: tensor.swapaxes(0, 1) if name != "tile_masks" else tensor
        for name, tensor in block_tensors(heads).items()
    }
    feed = draw(size)
    with np.errstate(all="ignore"):
        got = WAYS[way](model(sr.Causal(), size, lists=lists), feed)
    assert_within_bound(got, *feed.values(), sr.PerBatch(patterns), np.float32, scale=SCALE)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("where", ["k", "v"])
@pytest.mark.parametrize("pattern", [WINDOW - sr.Keys([3]), HEADS - sr.Keys([3])])
def test_a_hidden_key_or_value_reaches_nothing(way, bad, where, pattern):
    case = Case(pattern, Sizes(2, 6, 2, 33, 33, 5, 3))
    clean = draw(case.size)
    dirty = {name: x.copy() for name, x in clean.items()}
    dirty[where][:, :, 3] = bad
    got = run(way, case, np.float32, dirty)
    assert_within_bound(got, *clean.values(), pattern, np.float32, scale=SCALE)


@pytest.mark.parametrize("way", WAYS)
def test_a_nan_spreads_over_what_sees_it_and_no_farther(way):
    case = Case(sr.SlidingWindow(1, 0), Sizes(1, 1, 1, 33, 33, 5, 3))
    feed = draw(case.size)
    feed["v"][0, 0, 7, 1] = np.nan  # one column of rows 7 and 8
    feed["k"][0, 0, 20, 4] = np.nan  # rows 20 and 21
    feed["q"][0, 0, 30, 0] = np.nan
    expected = np.zeros((33, 3), dtype=bool)
    expected[7:9, 1] = expected[20:22] = expected[30] = True
    out, lse = run(way, case, np.float32, feed)
    np.testing.assert_array_equal(np.isnan(out[0, 0]), expected)
    np.testing.assert_array_equal(np.flatnonzero(np.isnan(lse)), [20, 21, 30])


@pytest.mark.parametrize("way", WAYS)
def test_a_score_of_minus_infinity_hides_a_key(way):
    case = Case(sr.Full(), Sizes(1, 1, 1, 2, 3, 1, 2))
    feed = draw(case.size)
    feed["q"][0, 0, :, 0] = -1, 1
    feed["k"][0, 0, 1, 0], feed["v"][0, 0, 1] = np.inf, np.nan  # scores -inf and inf
    got = run(way, case, np.float32, feed)
    expected = sr.attention(*feed.values(), case.pattern, scale=SCALE)
    for ours, want in zip(got, expected, strict=True):
        np.testing.assert_allclose(ours, want, rtol=1e-6)
    assert np.isfinite(got[0][0, 0, 0]).all()
    assert np.isnan(got[0][0, 0, 1]).all()


@pytest.mark.parametrize("way", list(WAYS)[:2])
def test_scores_too_large_for_the_type_stay_finite_where_hidden(way):
    case = Case(sr.Causal() - sr.Keys([0]), Sizes(1, 1, 1, 3, 3, 1, 2))
    feed = draw(case.size)
    feed["q"][:], feed["k"][0, 0, 0] = 1e20, 1e20
    feed["k"][0, 0, 1:] = 0
    out, _ = run(way, case, np.float32, feed)
    np.testing.assert_allclose(out[0, 0, 2], feed["v"][0, 0, 1:].mean(0), rtol=1e-6)


# onnx's own evaluator cannot run a Loop of no iterations
@pytest.mark.parametrize("way", ["body in ONNX Runtime", "oracle in the evaluator"])
@pytest.mark.parametrize(
    "size",
    [Sizes(1, 2, 1, 0, 5, 3, 4), Sizes(2, 2, 2, 5, 0, 3, 4), Sizes(0, 2, 1, 5, 7, 3, 4)],
    ids=["no queries", "no keys", "no batch"],
)
def test_nothing_to_attend_from_or_to(way, size):
    out, lse = WAYS[way](model(sr.Causal(), size), draw(size))
    np.testing.assert_array_equal(out, np.zeros((size.b, 2, size.m, 4)))
    np.testing.assert_array_equal(lse, np.full((size.b, 2, size.m), -np.inf))


def test_lists_that_end_before_the_queries_do_are_an_error():
    size = Sizes(1, 2, 1, 33, 33, 3, 4)
    with pytest.raises(Exception, match="Gather"):
        by_runtime(model(WINDOW, size), draw(size._replace(m=70)))


@pytest.mark.parametrize("opset", [19, 21, 23])
def test_later_opsets(opset):
    size = Sizes(1, 2, 2, 33, 33, 5, 3)
    feed = draw(size)
    got = by_runtime(model(WINDOW, size, opset=opset), feed)
    assert_within_bound(got, *feed.values(), WINDOW, np.float32, scale=SCALE)
