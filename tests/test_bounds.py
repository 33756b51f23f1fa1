"""The error bound: no right kernel exceeds it, every planted fault does, and it is not loose."""

import numpy as np
import pytest

import sparse_ref as sr
from sparse_ref.arithmetic import FORMATS, PRESETS
from tests import numpy_kernels

KERNELS = {
    "naive": numpy_kernels.naive, "online": numpy_kernels.online, "blocked": numpy_kernels.blocked,
}  # fmt: skip
FAMILIES = ["normal", "large logits", "heavy tails", "five decades", "cancelling", "uniform"]
F32, F16 = np.float32, np.float16


def draw(rng, family, shape):
    x = rng.standard_normal(shape)
    if family == "large logits":
        return 2 * x
    if family == "heavy tails":
        return np.clip(rng.standard_t(3, shape), -60, 60)
    if family == "five decades":
        return x * 10.0 ** rng.integers(-3, 2, shape)
    return rng.random(shape) if family == "uniform" else x


def inputs(rng, family, h, n, d, dtype, g=None):
    q, k, v = (draw(rng, family, (heads, n, d)) for heads in (h, g or h, g or h))
    if family == "cancelling":
        v = np.sign(v) * (1 + 1e-3 * k)
    return tuple(x.astype(dtype) for x in (q, k, v))


def excess(got, want, bound):
    """Error in units of the bound, element by element; nothing where the answer is exact."""
    got = np.asarray(got, np.float64)
    exact = got == want
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(exact, 0, np.abs(got - want) / bound).ravel()


def ratios(seed, elements, kernel, dtype, weight=F32, families=FAMILIES):
    """Error over bound for every out and lse of random cases: arrays of at least `elements`."""
    rng, outs, lses, size = np.random.default_rng(seed), [], [], 0
    arithmetic, output = np.dtype(weight).name, np.dtype(dtype).name
    while size < elements:
        for family in families:
            n, d = int(rng.choice([1, 2, 3, 17, 64, 129, 301])), int(rng.choice([1, 2, 8, 33, 64]))
            window = sr.Causal() & sr.SlidingWindow(int(rng.integers(n)), 0)
            q, k, v = inputs(rng, family, 1, n, d, dtype)
            want = sr.attention(q, k, v, window)
            bound = sr.error_bound(q, k, v, window, arithmetic=arithmetic, output=output)
            out, lse = kernel(q, k, v, window.mask(n, n), scale=d**-0.5, weight=weight)
            outs.append(excess(out, want.out, bound.out))
            lses.append(excess(lse, want.lse, bound.lse))
            size += outs[-1].size + lses[-1].size
    return np.concatenate(outs), np.concatenate(lses)


SETTINGS = pytest.mark.parametrize(
    ("dtype", "weight"), [(F32, F32), (F32, F16), (F16, F32), (F16, F16)],
    ids=["float32", "float16-weights", "float16-input-output", "float16"],
)  # fmt: skip


@SETTINGS
@pytest.mark.parametrize("kernel", KERNELS.values(), ids=KERNELS)
def test_no_right_kernel_exceeds_the_bound(kernel, dtype, weight):
    out, lse = ratios(1, 1e5, kernel, dtype, weight)
    assert out.max() <= 1
    assert lse.max() <= 1


@pytest.mark.slow
@SETTINGS
@pytest.mark.parametrize("kernel", KERNELS.values(), ids=KERNELS)
def test_no_right_kernel_exceeds_the_bound_in_ten_million_elements(kernel, dtype, weight):
    out, lse = ratios(2, 1e7 / 12, kernel, dtype, weight)
    assert out.max() <= 1
    assert lse.max() <= 1


@pytest.mark.slow
@pytest.mark.witness
def test_neither_ours_nor_others_exceed_the_bound_in_a_hundred_million_elements():
    """Naive, online, blocked, torch, ONNX Runtime and our Numba kernels; six families of inputs."""
    pytest.importorskip("torch")
    pytest.importorskip("onnxruntime")
    from tests import bound_kernels

    found = bound_kernels.forward(7, 1e8)

    assert sum(ratio.size for ratio in found.values()) >= 1e8
    assert {kernel for kernel, _ in found} == set(bound_kernels.KERNELS)
    assert {key: int((ratio > 1).sum()) for key, ratio in found.items()} == dict.fromkeys(found, 0)
    assert np.quantile(found["naive", "float32"], 0.999) >= 0.02
    assert np.quantile(found["naive", "float16, float32 inside"], 0.999) >= 0.5


@pytest.mark.parametrize(("dtype", "least"), [(F32, 0.02), (F16, 0.5)])
def test_the_bound_is_sharp(dtype, least):
    out, lse = ratios(3, 2e5, numpy_kernels.naive, dtype)
    assert np.quantile(out, 0.999) >= least
    assert np.quantile(lse, 0.999) >= 0.05


N, D = 67, 5
BIAS = np.random.default_rng(5).standard_normal((1, N, N)).astype(F32)
SLOPES = np.array([0.5, 0.25, 0.125, 0.0625])
DISTANCE = np.abs(np.arange(N)[:, None] - np.arange(N))
TABLE = sr.RelativeBias(np.linspace(-2, 1, 10, dtype=F32), left=7)
SINKS = np.array([0.5, -np.inf, 3.0, 8.0])
CUT = np.where(np.arange(N) % 3, F32(0.5), F32(-np.inf))
TWICE = sr.Multi([sr.Causal(), sr.SlidingWindow(4, 0)])
LOG_TIMES = np.log(np.maximum(TWICE.counts(N, N), 1))
OPTIONS = {  # what the oracle is told, and how the kernels are told the same
    "scale": ({"scale": 0.7}, {"scale": 0.7}),
    "softcap": ({"softcap": 1.5}, {"softcap": 1.5}),
    "bias": ({"bias": BIAS}, {"bias": BIAS}),
    "bias-minus-infinity": ({"bias": CUT}, {"bias": CUT}),
    "relative-bias": ({"bias": TABLE}, {"bias": TABLE.at(np.arange(N) - np.arange(N)[:, None], 0)}),
    "alibi": ({"alibi_slopes": SLOPES}, {"bias": -SLOPES[:, None, None] * DISTANCE}),
    "sinks": ({"sink_logits": SINKS}, {"sink": SINKS[:, None, None]}),
    "everything": (
        {"softcap": 4.0, "bias": BIAS, "alibi_slopes": SLOPES, "sink_logits": SINKS},
        {
            "softcap": 4.0, "bias": BIAS - SLOPES[:, None, None] * DISTANCE,
            "sink": SINKS[:, None, None],
        },
    ),
}  # fmt: skip


@SETTINGS
@pytest.mark.parametrize("kernel", KERNELS.values(), ids=KERNELS)
@pytest.mark.parametrize(("ours", "theirs"), OPTIONS.values(), ids=OPTIONS)
def test_covers_every_term_of_the_score(ours, theirs, kernel, dtype, weight):
    window = sr.Causal() & sr.SlidingWindow(40, 0)
    assert_within(window, window.mask(N, N), ours, theirs, kernel, dtype, weight)


@SETTINGS
@pytest.mark.parametrize("kernel", KERNELS.values(), ids=KERNELS)
def test_covers_keys_that_count_twice(kernel, dtype, weight):
    assert_within(TWICE, TWICE.mask(N, N), {}, {"bias": LOG_TIMES}, kernel, dtype, weight)


def assert_within(pattern, mask, ours, theirs, kernel, dtype, weight):
    """Four query heads over two of keys, all families."""
    arithmetic, output = np.dtype(weight).name, np.dtype(dtype).name
    for seed, family in enumerate(FAMILIES):
        q, k, v = inputs(np.random.default_rng(seed), family, 4, N, D, dtype, g=2)
        want = sr.attention(q, k, v, pattern, **ours)
        bound = sr.error_bound(q, k, v, pattern, **ours, arithmetic=arithmetic, output=output)
        repeated = (np.repeat(x, 2, axis=0) for x in (k, v))
        out, lse = kernel(q, *repeated, mask, weight=weight, **{"scale": D**-0.5, **theirs})
        assert excess(out, want.out, bound.out).max() <= 1
        assert excess(lse, want.lse, bound.lse).max() <= 1


EAGER = {  # (score, weight, output)
    "float16": ("float16", "float16", "float16"),
    "bfloat16": ("bfloat16", "bfloat16", "bfloat16"),
    "fp8": ("float32", "float8_e4m3", "bfloat16"),
    "fp8-wide": ("float32", "float8_e5m2", "float16"),
}


@pytest.mark.parametrize("kernel", KERNELS.values(), ids=KERNELS)
@pytest.mark.parametrize("formats", EAGER.values(), ids=EAGER)
def test_covers_scores_and_weights_in_small_formats(formats, kernel):
    ml_dtypes = pytest.importorskip("ml_dtypes")
    types = {
        "float32": F32, "float16": F16, "bfloat16": ml_dtypes.bfloat16,
        "float8_e4m3": ml_dtypes.float8_e4m3fn, "float8_e5m2": ml_dtypes.float8_e5m2,
    }  # fmt: skip
    score, weight, output = formats
    arithmetic = sr.Arithmetic(score, "float32", weight, "float32", output)
    pattern = sr.Causal() & sr.SlidingWindow(60, 0)
    for seed, family in enumerate(FAMILIES):
        # the softcap keeps the scores where half precision still has digits
        q, k, v = inputs(np.random.default_rng(seed), family, 3, 131, 7, types[weight])
        q, k, v = (x.astype(np.float64) for x in (q, k, v))
        options = {"softcap": 5.0, "scale": 0.5}
        want = sr.attention(q, k, v, pattern, **options)
        bound = sr.error_bound(q, k, v, pattern, **options, arithmetic=arithmetic)
        out, lse = kernel(
            q, k, v, pattern.mask(131, 131), **options,
            score=types[score], weight=types[weight], dtype=types[output],
        )  # fmt: skip
        assert excess(out, want.out, bound.out).max() <= 1
        assert excess(lse, want.lse, bound.lse).max() <= 1


@pytest.mark.parametrize(("name", "largest"), [("float8_e4m3", 448), ("float8_e5m2", 57344)])
def test_covers_eight_bits_with_scales(name, largest):
    """q, k and v are 8-bit numbers times a scale for every head; weights go in times a scale too.

    The bound is told the numbers that are meant: scale times the 8-bit ones.
    """
    ml_dtypes = pytest.importorskip("ml_dtypes")
    eight = {"float8_e4m3": ml_dtypes.float8_e4m3fn, "float8_e5m2": ml_dtypes.float8_e5m2}[name]
    pattern, worst = sr.Causal() & sr.SlidingWindow(60, 0), 0.0
    for seed, family in enumerate(FAMILIES):
        given = inputs(np.random.default_rng(seed), family, 3, 131, 7, F32)
        scales = [F32(np.abs(x).max((1, 2), keepdims=True) / largest) for x in given]
        q, k, v = (
            (x / scale).astype(eight).astype(F32) for x, scale in zip(given, scales, strict=True)
        )
        meant = [scale.astype(np.float64) * x for scale, x in zip(scales, (q, k, v), strict=True)]
        want = sr.attention(*meant, pattern)
        bound = sr.error_bound(*meant, pattern, arithmetic=name)
        s = q @ np.swapaxes(k, 1, 2) * (scales[0] * scales[1]) * F32(7**-0.5)
        peak, e, total = numpy_kernels.exponentials(
            np.where(pattern.mask(131, 131), s, F32(-np.inf)), None
        )
        weights = (F32(256) * e).astype(eight).astype(F32)
        out = scales[2] * (weights @ v) / (F32(256) * total)
        ratio = excess(out, want.out, bound.out)
        assert ratio.max() <= 1
        worst = max(worst, ratio.max())
        lse = numpy_kernels.log_sum(total, peak)[..., 0]
        assert excess(lse, want.lse, bound.lse).max() <= 1
        assert excess(F32(2) * out, want.out, bound.out).max() > 1
    assert worst >= 0.2


def test_covers_tf32_products():
    """Products as tensor cores do them: both inputs cut to 11 bits, sums in float32."""
    pattern = sr.Causal()
    for seed, family in enumerate(FAMILIES):
        q, k, v = inputs(np.random.default_rng(seed), family, 2, 131, 7, F32)
        want = sr.attention(q, k, v, pattern)
        bound = sr.error_bound(q, k, v, pattern, arithmetic="tf32")
        mask, cut = pattern.mask(131, 131), [to_bits(x, 11) for x in (q, k, v)]
        out, lse = numpy_kernels.naive(*cut, mask, scale=7**-0.5)
        assert excess(out, want.out, bound.out).max() <= 1
        assert excess(lse, want.lse, bound.lse).max() <= 1
        in_float32 = sr.error_bound(q, k, v, pattern)
        assert excess(out, want.out, in_float32.out).max() > 1


def to_bits(x, bits):
    mantissa, exponent = np.frexp(x)
    return np.ldexp(np.rint(mantissa * 2.0**bits), exponent - bits).astype(F32)


@pytest.mark.parametrize("unit", [2.0**-24, 2.0**-11, 2.0**-8])
@pytest.mark.parametrize("family", FAMILIES)
def test_holds_when_every_score_is_wrong_the_worst_way(family, unit):
    """Rounding is kind; here each score errs by all it may, so as to move one output up."""
    name = {2.0**-24: "float32", 2.0**-11: "float16", 2.0**-8: "bfloat16"}[unit]
    arithmetic = sr.Arithmetic(name, "float64", "float64", "float64", "float64")
    q, k, v = inputs(np.random.default_rng(1), family, 1, 53, 2, np.float64)
    want = sr.attention(q, k, v, sr.Full())
    bound = sr.error_bound(q, k, v, sr.Full(), arithmetic=arithmetic)
    scale = 2**-0.5
    wrong = 4 * unit * scale * np.abs(q) @ np.swapaxes(np.abs(k), 1, 2)
    sign = np.sign(v[:, None, :, 0] - want.out[:, :, None, 0])
    got = sr.attention(q, k, v, sr.Full(), bias=wrong * sign)
    ratio = excess(got.out[..., 0], want.out[..., 0], bound.out[..., 0])
    assert ratio.max() <= 1
    assert ratio.max() >= 0.1
    got = sr.attention(q, k, v, sr.Full(), bias=wrong)
    ratio = excess(got.lse, want.lse, bound.lse)
    assert ratio.max() <= 1
    assert ratio.max() >= 0.9


@pytest.mark.parametrize("arithmetic", ["float64", "float32"])
def test_a_wider_arithmetic_has_a_smaller_bound(arithmetic):
    q, k, v = inputs(np.random.default_rng(0), "normal", 1, 31, 5, F32)
    coarse = {"float64": "float32", "float32": "tf32"}[arithmetic]
    fine = sr.error_bound(q, k, v, sr.Causal(), arithmetic=arithmetic, output=arithmetic)
    loose = sr.error_bound(q, k, v, sr.Causal(), arithmetic=coarse)
    assert (fine.out < loose.out).all()
    assert (fine.lse < loose.lse).all()


WINDOW = 64
FAULTS = ["wide", "narrow", "scale", "block", "base", "rescale"]


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("dtype", [F32, F16])
def test_planted_faults_exceed_the_bound(dtype, fault):
    q, k, v = inputs(np.random.default_rng(4), "normal", 2, 257, 33, dtype)
    pattern = sr.Causal() & sr.SlidingWindow(WINDOW, 0)
    name = np.dtype(dtype).name
    want = sr.attention(q, k, v, pattern)
    bound = sr.error_bound(q, k, v, pattern, arithmetic=name, output=name)
    right = numpy_kernels.naive(q, k, v, pattern.mask(257, 257), scale=33**-0.5, weight=dtype)
    assert excess(right[0], want.out, bound.out).max() <= 1
    out, lse = faulty(fault, q, k, v, dtype)
    worst = excess(out, want.out, bound.out).max(), excess(lse, want.lse, bound.lse).max()
    assert max(worst) > 1


def faulty(fault, q, k, v, dtype):
    """The attention above with one mistake."""
    left = WINDOW + {"wide": 1, "narrow": -1}.get(fault, 0)
    mask = (sr.Causal() & sr.SlidingWindow(left, 0)).mask(257, 257)
    if fault == "block":
        mask[..., 128:144, 112:128] = False
    scale = (34 if fault == "scale" else 33) ** -0.5
    out, lse = numpy_kernels.naive(q, k, v, mask, scale=scale, weight=dtype)
    if fault == "base":
        return out, lse / np.log(2)
    if fault == "rescale":  # two halves of the keys, each relative to its own maximum
        s = numpy_kernels.scores(q, k, mask, scale, None, None, F32)
        halves = (slice(0, 128), slice(128, None))
        parts = [numpy_kernels.exponentials(s[..., half], None) for half in halves]
        sums = sum(
            e @ v[:, half].astype(F32) for (_, e, _), half in zip(parts, halves, strict=True)
        )
        return sums / sum(total for _, _, total in parts), lse
    return out, lse


def test_is_zero_where_the_answer_is_exact():
    q, k, v = inputs(np.random.default_rng(0), "normal", 1, 5, 3, F32)
    bound = sr.error_bound(q, k, v, sr.Causal() - sr.SlidingWindow(1, 0))
    assert (bound.out[0, :2] == 0).all()
    assert (bound.lse[0, :2] == 0).all()
    assert (bound.out[0, 2:] > 0).all()
    assert (bound.lse[0, 2:] > 0).all()
    hidden = sr.error_bound(q, k, v, sr.Full(), bias=np.full(5, -np.inf))
    assert not hidden.out.any()
    assert not hidden.lse.any()
    only_sinks = sr.error_bound(q, k, v, ~sr.Full(), sink_logits=np.array([0.5]))
    assert not only_sinks.out.any()
    assert (only_sinks.lse > 0).all()


def test_is_nan_where_the_oracle_is_not_finite():
    q, k, v = inputs(np.random.default_rng(0), "normal", 1, 5, 3, F32)
    k[0, 2, 0] = v[0, 3, 1] = np.nan
    for pattern in (sr.SlidingWindow(0, 0), sr.Causal()):
        want, bound = sr.attention(q, k, v, pattern), sr.error_bound(q, k, v, pattern)
        assert (np.isnan(bound.out) == np.isnan(want.out)).all()
        assert (np.isnan(bound.lse) == np.isnan(want.lse)).all()
    v[0, 3, 1] = np.inf
    bound = sr.error_bound(q, k, v, sr.SlidingWindow(0, 0))
    assert np.isnan(bound.out[0, 3]).tolist() == [False, True, False]


def test_claims_nothing_where_the_arithmetic_may_overflow():
    q, k = np.ones((2, 1, 1, 3))
    large = np.full((1, 1, 2), 65500.0)
    bound = sr.error_bound(q, k, large, sr.Full(), arithmetic="float16", output="float16")
    assert np.isinf(bound.out).all()
    assert np.isfinite(sr.error_bound(q, k, large, sr.Full()).out).all()
    half = sr.Arithmetic("float16", "float32", "float32", "float32", "float32")
    assert np.isinf(sr.error_bound(300 * q, 300 * k, q, sr.Full(), arithmetic=half).lse).all()
    values = sr.error_bound(q, k, 2 * large, sr.Full(), arithmetic="float16")
    assert np.isinf(values.out).all()  # such values do not exist in the type they are to enter


def test_values_finer_than_the_weights_cost_their_rounding():
    q = k = np.ones((1, 1, 3))
    coarse, fine = np.full((1, 1, 1), 1.5), np.full((1, 1, 1), 1.5 + 2.0**-20)
    short, long = (
        sr.error_bound(q, k, v, sr.Full(), arithmetic="bfloat16").out.item() for v in (coarse, fine)
    )
    assert long - short == pytest.approx(1.5 * 2.0**-8, rel=0.02)


def test_answers_empty_shapes_and_leading_axes():
    q, k, v = np.ones((2, 3, 2, 0, 4)), np.ones((2, 3, 1, 5, 4)), np.ones((2, 3, 1, 5, 7))
    bound = sr.error_bound(q, k, v, sr.Full())
    assert bound.out.shape == (2, 3, 2, 0, 7)
    assert bound.lse.shape == (2, 3, 2, 0)
    none = sr.error_bound(np.ones((1, 2, 4)), k[0, 0, :, :0], v[0, 0, :, :0], sr.Full())
    assert none.out.tolist() == [[[0] * 7] * 2]


@pytest.mark.parametrize(
    ("name", "unit", "least", "greatest"),
    [
        ("float64", 2.0**-53, 5e-324, np.finfo(np.float64).max),
        ("float32", 2.0**-24, 2.0**-149, np.finfo(F32).max),
        ("float16", 2.0**-11, 2.0**-24, 65504),
        ("float8_e4m3", 2.0**-4, 2.0**-9, 448),
        ("float8_e5m2", 2.0**-3, 2.0**-16, 57344),
    ],
)
def test_formats_know_their_numbers(name, unit, least, greatest):
    given = FORMATS[name]
    assert given.unit == unit
    if name != "float64":
        assert 2 * given.tiny(flush=False) == least
    assert given.max == greatest
    inside = np.array([0, 1, 1 + 2 * unit, least, greatest, -3 * least, np.inf])
    assert given.holds(inside).tolist() == [True] * 6 + [False]
    outside = np.array([1 + unit, 1.5 * least, np.nan]) if name != "float64" else np.array([np.nan])
    assert not given.holds(outside).any()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"arithmetic": "int8"},
            "arithmetic must be an Arithmetic or one of float64, .*got 'int8'",
        ),
        ({"arithmetic": None}, "arithmetic must be an Arithmetic or one of float64, .*got None"),
        ({"output": "double"}, "output must be one of float64, .*got 'double'"),
    ],
)
def test_refuses_unknown_formats(change, message):
    x = np.ones((1, 1, 1))
    with pytest.raises(ValueError, match=message):
        sr.error_bound(x, x, x, sr.Full(), **change)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"score": "half"}, ValueError, "score must be one of float64, .*got 'half'"),
        ({"accumulate": F32}, ValueError, "accumulate must be one of float64"),
        ({"exp_ulps": -1}, ValueError, "exp_ulps must be finite and >= 0, got -1"),
        ({"exp_ulps": np.nan}, ValueError, "exp_ulps must be finite and >= 0, got nan"),
        ({"exp_ulps": "2"}, TypeError, "exp_ulps must be a number, got '2'"),
        ({"flush": 1}, TypeError, "flush must be a bool, got 1"),
    ],
)
def test_arithmetic_refuses_what_it_cannot_say(change, error, message):
    formats = dict.fromkeys(("score", "exp", "weight", "accumulate", "output"), "float32")
    with pytest.raises(error, match=message):
        sr.Arithmetic(**{**formats, **change})


def test_presets_are_arithmetics_of_their_name():
    assert list(PRESETS) == list(FORMATS)


@pytest.mark.witness
@pytest.mark.parametrize("dtype", ["float64", "float32", "bfloat16", "float16"])
def test_torch_stays_within_the_bound(dtype):
    torch = pytest.importorskip("torch")
    attend = torch.nn.functional.scaled_dot_product_attention
    for seed, family in enumerate(FAMILIES):
        rng = np.random.default_rng(seed)
        for n in (17, 259):
            tensors = [
                torch.tensor(x).to(getattr(torch, dtype))
                for x in inputs(rng, family, 2, n, 33, F32)
            ]
            window = sr.Causal() & sr.SlidingWindow(n // 2, 0)
            arrays = [x.double().numpy() for x in tensors]
            asked = {
                window: {"attn_mask": torch.tensor(window.mask(n, n))},
                sr.Causal(): {"is_causal": True},
                sr.Full(): {},
            }
            for pattern, how in asked.items():
                got = attend(*(x[None] for x in tensors), **how)[0].double().numpy()
                want = sr.attention(*arrays, pattern)
                bound = sr.error_bound(*arrays, pattern, arithmetic=dtype, output=dtype)
                assert excess(got, want.out, bound.out).max() <= 1
