"""The X-ray: every number that is planted comes back, and so do the mistakes."""

import json

import numpy as np
import pytest

import sparse_ref as sr
from sparse_ref.conformance.seen import seen_in
from sparse_ref.conformance.xray import xray
from tests import numpy_kernels
from tests.conformance.test_checking import KERNELS, candidate

WINDOW = sr.Causal() & sr.SlidingWindow(2, 0)
F16 = np.float16


def oracle(pattern=WINDOW, dtype=np.float32, **options):
    """A kernel of one pattern with its options built in."""

    def fn(q, k, v):
        given = [x.astype(dtype) for x in (q, k, v)]
        return sr.attention(*given, pattern, **options).out.astype(dtype)

    return fn


def read(fn, m=7, n=7, **sizes):
    return xray(fn, m, n, **{"head_dim": 8, **sizes})


def picture(text):
    return np.array([[x == "#" for x in line.split()] for line in text.strip().split("\n")])


def test_the_report_is_the_whole_story():
    def mine(q, k, v):
        return sr.attention(q, k, v, WINDOW, scale=0.3, sink_logits=[0.5, -2.0, 0.5, 4.0]).out

    assert str(read(mine, 3, 5, heads=4, kv_heads=2)) == (
        "read with 3 queries and 5 keys\n"
        "causal window of 3 keys: hf sliding_window=3, flash_attn window_size=(2, 0), "
        "onnx25 left_window_size=0, right_window_size=2, ...\n"
        "  the last query stands at the last key (bottom-right)\n"
        "  scale 0.3, no softcap\n"
        "  sink logit 0.5, -2, 0.5, 4\n"
        "    # # # . .\n"
        "    . # # # .\n"
        "    . . # # #\n"
        "key/value heads: 2 query heads in a row share each of 2\n"
        "precision: not read: a softcap, a sink or a bias is in the way, "
        "or no query sees two keys"
    )


@pytest.mark.parametrize(
    ("scale", "size"), [(0.3, 8), (1.0, 7), (0.0625, 5), (1 / np.sqrt(6), 8), (3.5, 8)]
)
def test_the_scale_is_the_one_planted(scale, size):
    one = read(oracle(scale=scale), head_dim=size).heads[0]
    assert one.scale == pytest.approx(scale, rel=1e-6)
    assert one.softcap is one.sink is one.empty is one.uneven is None
    half = read(oracle(scale=scale, dtype=F16), head_dim=size).heads[0]
    assert half.scale == pytest.approx(scale, rel=3e-3)


def test_the_default_scale_is_recognised_exactly():
    for size, dtype in ((6, np.float32), (7, F16), (64, np.float32)):
        assert read(oracle(dtype=dtype), head_dim=size).heads[0].scale == size**-0.5


@pytest.mark.parametrize("cap", [0.5, 2.0, 5.0, 30.0, 50.0, 200.0])
@pytest.mark.parametrize("scale", [0.3, None])
def test_the_softcap_is_the_one_planted(cap, scale):
    one = read(oracle(softcap=cap, scale=scale)).heads[0]
    assert one.softcap == cap
    assert one.scale == pytest.approx(scale or 8**-0.5, rel=1e-5)


@pytest.mark.parametrize("cap", [5.0, 30.0])
def test_a_softcap_shows_in_half_precision(cap):
    one = read(oracle(softcap=cap, dtype=F16)).heads[0]
    assert one.softcap == pytest.approx(cap, rel=0.02)
    assert one.scale == pytest.approx(8**-0.5, rel=0.02)


@pytest.mark.parametrize("cap", [None, 20.0])
@pytest.mark.parametrize("sinks", [[0.0, 1.5, -3.25, 12.0], [-14.0, 0.125, -np.inf, 3.0]])
def test_sinks_are_those_planted_head_by_head(sinks, cap):
    got = read(oracle(sink_logits=sinks, softcap=cap), heads=4, kv_heads=2)
    want = [None if sink == -np.inf else sink for sink in sinks]
    assert [one.sink for one in got.heads] == want


def test_a_sink_is_read_below_and_above_what_equal_scores_show():
    far = [-40.0, 35.0, -np.inf]
    got = read(oracle(sink_logits=far), heads=3)
    assert [one.sink for one in got.heads] == [-40.0, 35.0, None]


def test_a_softmax_with_one_more_in_its_denominator_has_a_sink_of_0():
    def softmax1(q, k, v):
        s = q @ k.swapaxes(-1, -2) * 0.25
        most = np.maximum(s.max(-1, keepdims=True), 0)
        e = np.exp(s - most)
        return e / (np.exp(-most) + e.sum(-1, keepdims=True)) @ v

    one = read(softmax1, 5, 7).heads[0]
    assert (one.sink, one.scale) == (0.0, 0.25)


@pytest.mark.parametrize(
    ("order", "words"),
    [
        ((0, 0, 1, 1), "2 query heads in a row share each of 2"),
        ((0, 1, 0, 1), "query head h reads h mod 2: tiled, where grouped-query attention repeats"),
        ((1, 1, 0, 0), "1 1 0 0"),
    ],
)
@pytest.mark.parametrize("sinks", [None, [0.0, 1.0, 2.0, 3.0]])
def test_the_map_of_heads_is_the_one_planted(order, words, sinks):
    def fn(q, k, v):
        return sr.attention(q, k[:, order], v[:, order], WINDOW, sink_logits=sinks).out

    got = read(fn, heads=4, kv_heads=2)
    assert tuple(got.key_heads) == order
    assert f"key/value heads: {words}" in str(got)


def test_many_key_heads_are_told_apart_in_half_precision():
    got = read(oracle(dtype=F16, softcap=9.0), 2, 3, heads=34, kv_heads=17, head_dim=3)
    assert tuple(got.key_heads) == tuple(np.arange(34) // 2)


@pytest.mark.parametrize("dtype", [np.float32, F16])
def test_a_soft_mask_is_named_with_what_it_keeps(dtype):
    def soft(q, k, v):
        hidden = np.where(np.tri(9, dtype=bool), 0.0, -10.0)
        return sr.attention(q, k, v, sr.Full(), bias=hidden).out.astype(dtype)

    one = read(soft, 9, 9).heads[0]
    assert one.leak == -10
    assert one.uneven == "hidden keys keep weight e^-10"
    assert one.seen.words == "causal"
    np.testing.assert_array_equal(one.mask, np.tri(9, dtype=bool))


def test_biases_and_counts_are_named():
    slopes = np.array([0.5, 0.25])
    alibi = read(oracle(sr.Causal(), alibi_slopes=slopes), heads=2)
    assert [one.uneven for one in alibi.heads] == [
        "a bias that falls by 0.5 a key (ALiBi)", "a bias that falls by 0.25 a key (ALiBi)",
    ]  # fmt: skip
    twice = read(oracle(sr.Multi([sr.Causal(), WINDOW, sr.Sink(1)])), 9, 9).heads[0]
    assert (twice.times, twice.uneven) == (3, "keys count up to 3 times")
    bias = np.random.default_rng(0).standard_normal((7, 7))
    other = read(oracle(sr.Full(), bias=bias), 7, 7).heads[0]
    least = (bias - bias.max(1, keepdims=True)).min()
    assert other.uneven == f"a bias: keys weigh from 1 down to e^{least:.3g} of the heaviest"


def dense(hidden, after=lambda w: w):
    """Softmax with a causal window written as numbers; its first query sees nothing."""
    mask = np.tri(9, k=-1, dtype=bool) & ~np.tri(9, k=-4, dtype=bool)

    def fn(q, k, v):
        s = q @ k.swapaxes(-1, -2) * np.float32(0.25) + np.where(mask, 0, hidden).astype(np.float32)
        with np.errstate(invalid="ignore"):
            e = np.exp(s - s.max(-1, keepdims=True))
            return after(e / e.sum(-1, keepdims=True)) @ v

    return fn, mask


@pytest.mark.parametrize(
    ("hidden", "empty"),
    [(-np.inf, "NaN"), (np.finfo(np.float32).min, "the mean of V"), (-1e9, "the mean of V")],
)
def test_what_a_query_without_keys_gets(hidden, empty):
    fn, mask = dense(hidden)
    one = read(fn, 9, 9).heads[0]
    assert one.empty == empty
    np.testing.assert_array_equal(one.mask, mask)
    assert one.scale == 0.25
    fixed, _ = dense(hidden, after=lambda w: np.where(mask, w, 0))
    assert read(fixed, 9, 9).heads[0].empty == "0"


def test_no_query_is_empty_where_all_see_themselves():
    assert read(oracle()).heads[0].empty is None


def test_a_mask_after_the_softmax_is_found():
    mask = np.tri(9, dtype=bool)
    late, _ = dense(0, after=lambda w: np.where(mask, w, 0))
    got = read(late, 9, 9)
    assert got.heads[0].lost
    assert got.heads[0].sink is None
    assert "weights do not add up to 1: keys are hidden after the softmax" in str(got)


TOP, BOTTOM = "the first query stands at the first key", "the last query stands at the last key"


@pytest.mark.parametrize(
    ("m", "n", "start", "words"),
    [
        (5, 9, 0, f"{TOP} (top-left)"),
        (5, 9, 4, f"{BOTTOM} (bottom-right)"),
        (5, 6, 1, f"{BOTTOM} (bottom-right)"),  # where a window of 1 on each side is top-left
        (5, 9, 2, "the first query stands at key 2: neither top-left nor bottom-right"),
        (9, 5, 0, f"{TOP} (top-left)"),
        (9, 5, -4, f"{BOTTOM} (bottom-right)"),
        (7, 7, 0, None),
    ],
)
@pytest.mark.parametrize("pattern", [sr.Causal(), WINDOW], ids=repr)
def test_the_alignment_is_the_one_planted(m, n, start, words, pattern):
    def fn(q, k, v):
        return sr.attention(q, k, v, pattern, q_start=start).out

    one = read(fn, m, n).heads[0]
    assert one.seen.alignment == words
    assert one.seen.words == ("causal" if pattern == sr.Causal() else "causal window of 3 keys")


@pytest.mark.parametrize(
    ("pattern", "words", "spelled"),
    [
        (sr.Full(), "every key", ("sdpa", "is_causal=False")),
        (sr.Causal(), "causal", ("sdpa", "is_causal=True")),
        (sr.SlidingWindow(3, 3), "window of 3 keys on each side", ("longformer",
                                                                    "attention_window=6")),
        (sr.SlidingWindow(3, 1), "window of 3 keys before and 1 keys after",
         ("flash_attn", "window_size=(3, 1)")),
        (sr.conventions.hf(1), "causal window of 1 key", ("hf", "sliding_window=1")),
        (sr.conventions.llama4(4), "causal chunks of 4 keys", ("llama4", "attention_chunk_size=4")),
        (sr.conventions.natten(5, 13), "window of 5 keys that shifts at both ends",
         ("natten", "kernel_size=5")),
        (sr.PrefixLM(4), "causal, and the first 4 keys for all", ("attention_gym_prefix",
                                                                   "prefix_length=4")),
        (sr.conventions.duo_attention(2, 3), "causal window of 3 keys, and the first 2",
         ("duo_attention", "sink_size=2, recent_size=3")),
    ],
)  # fmt: skip
def test_masks_are_named_and_spelled(pattern, words, spelled):
    one = read(oracle(pattern), 13, 13).heads[0]
    assert one.seen.words == words
    assert one.seen.spelled[spelled[0]] == spelled[1]
    np.testing.assert_array_equal(one.mask, pattern.mask(13, 13)[0])


def test_masks_of_no_name_are_told_by_what_they_have():
    strided = (sr.Causal() & sr.Strided(3)).mask(10, 10)[0]
    assert seen_in(strided).words == "the distances 0, 3, ..., 9"
    padded = np.zeros((9, 9), bool)
    padded[2:, 2:] = np.tri(7)
    assert seen_in(padded).words == ("causal; 2 of 9 keys, at the ends, are seen by nobody")
    odd = picture("# # . .\n. # . .\n. # # .\n# # . #")
    assert seen_in(odd).words == "no known form: 1 to 3 keys a query, keys 1 for all"
    assert seen_in(np.zeros((2, 3), bool)).words == "no key"


def test_heads_that_differ_are_told_apart_and_equal_ones_together():
    got = read(oracle(sr.PerHead([WINDOW, sr.Causal(), WINDOW])), 5, 5, heads=3)
    lines = str(got).split("\n")
    assert [line.partition(":")[0] for line in lines if line.startswith("head")] == [
        "heads 0, 2", "head 1",
    ]  # fmt: skip


def test_what_is_asked_for_is_compared():
    def wide(q, k, v, pattern):
        return sr.attention(q, k, v, sr.SlidingWindow(3, 0)).out

    def right(q, k, v, pattern):
        return sr.attention(q, k, v, pattern).out

    wrong = read(wide, pattern=WINDOW)
    assert not wrong.ok
    assert "b sees 1 more key on the left" in str(wrong)
    good = read(right, pattern=WINDOW)
    assert good.ok
    assert str(good).endswith("mask: as asked for")


@pytest.mark.parametrize("kernel", KERNELS.values(), ids=KERNELS)
def test_numpy_kernels_are_what_they_are(kernel):
    def fn(q, k, v):
        return candidate(kernel)(q, k, v, sr.Causal(), softcap=3.0, scale=0.5)

    one = read(fn, heads=2, kv_heads=1).heads[1]
    assert (one.scale, one.softcap, one.sink, one.uneven) == (0.5, 3.0, None, None)
    assert one.seen.words == "causal"


def test_precision_is_read_through_the_mask():
    def fn(q, k, v, **more):
        return candidate(numpy_kernels.naive, **more)(q, k, v, WINDOW)

    assert read(fn).precision == {"scores": 24, "weights": 24, "values": 24, "flushes": False}
    half = read(lambda q, k, v: fn(q, k, v, weight=F16)).precision
    assert (half["scores"], half["weights"], half["values"]) == (24, 11, 11)
    low = read(lambda q, k, v: fn(q, k, v, score=F16)).precision
    assert (low["scores"], low["weights"], low["values"]) == (11, 24, 24)


@pytest.mark.slow
def test_sums_are_read_where_a_query_sees_enough():
    def fn(q, k, v):
        return candidate(numpy_kernels.naive)(q, k, v, sr.Full())

    assert read(fn, 2, 70).precision["sums"] == 24


def test_it_is_plain_data_too():
    said = json.loads(json.dumps(read(oracle(scale=0.3), 3, 3).to_dict()))
    (head,) = said["heads"]
    assert head["rows"] == ["#..", "##.", "###"]
    assert (head["scale"], head["key_head"], said["ok"]) == (0.3, 0, True)


@pytest.mark.parametrize(
    ("sizes", "sentence"),
    [
        ({"q_len": 0, "kv_len": 3}, "q_len must be >= 1, got 0"),
        ({"q_len": 3, "kv_len": 3, "head_dim": 1}, "head_dim must be >= 2, got 1"),
        ({"q_len": 3, "kv_len": 3, "kv_heads": 0}, "kv_heads must be >= 1, got 0"),
    ],
)
def test_sizes_are_checked(sizes, sentence):
    with pytest.raises(ValueError, match=sentence):
        xray(oracle(), **sizes)
