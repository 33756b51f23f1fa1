"""The bound of the gradients: no right backward pass exceeds it, planted faults do, it is sharp."""

import numpy as np
import pytest

import sparse_ref as sr
from tests import numpy_gradients
from tests.test_bounds import (
    BIAS,
    CUT,
    DISTANCE,
    F16,
    F32,
    FAMILIES,
    SINKS,
    SLOPES,
    D,
    N,
    draw,
    excess,
    inputs,
)

KERNELS = {"naive": numpy_gradients.naive, "from-lse": numpy_gradients.from_lse}
NAMES = ("dq", "dk", "dv")
SETTINGS = pytest.mark.parametrize(
    ("dtype", "weight"), [(F32, F32), (F32, F16), (F16, F32), (F16, F16)],
    ids=["float32", "float16-weights", "float16-input-output", "float16"],
)  # fmt: skip
KERNEL = pytest.mark.parametrize("kernel", KERNELS.values(), ids=KERNELS)


def ratios(seed, elements, kernel, dtype, weight):
    """Error over bound for every element of dq, dk and dv of random cases."""
    rng, found, size = np.random.default_rng(seed), [], 0
    formats = {"arithmetic": np.dtype(weight).name, "output": np.dtype(dtype).name}
    while size < elements:
        for family in FAMILIES:
            n, d = int(rng.choice([1, 2, 3, 17, 64, 129, 301])), int(rng.choice([1, 2, 8, 33, 64]))
            window = sr.Causal() & sr.SlidingWindow(int(rng.integers(n)), 0)
            q, k, v = inputs(rng, family, 1, n, d, dtype)
            dout, dlse = draw(rng, family, (1, n, d)).astype(dtype), rng.standard_normal((1, n))
            want = sr.attention_vjp(q, k, v, window, dout, dlse=dlse)
            bound = sr.error_bound_vjp(q, k, v, window, dout, dlse=dlse, **formats)
            got = kernel(q, k, v, window.mask(n, n), dout, dlse, scale=d**-0.5, weight=weight)
            found += [excess(*x) for x in zip(got[:3], want[:3], bound[:3], strict=True)]
            size += sum(x.size for x in found[-3:])
    return np.concatenate(found)


@SETTINGS
@KERNEL
def test_no_right_kernel_exceeds_the_bound(kernel, dtype, weight):
    assert ratios(1, 4e4, kernel, dtype, weight).max() <= 1


@pytest.mark.slow
@SETTINGS
@KERNEL
def test_no_right_kernel_exceeds_the_bound_in_ten_million_elements(kernel, dtype, weight):
    assert ratios(2, 1e7 / 8, kernel, dtype, weight).max() <= 1


@pytest.mark.slow
@pytest.mark.witness
def test_neither_ours_nor_others_exceed_the_bound_in_thirty_million_elements():
    """Two NumPy kernels, torch and our Numba kernels; six families of inputs."""
    pytest.importorskip("torch")
    from tests import bound_kernels

    found = bound_kernels.backward(7, 3e7)

    assert {kernel for kernel, _ in found} == set(bound_kernels.GRADIENTS)
    assert {key: int((ratio > 1).sum()) for key, ratio in found.items()} == dict.fromkeys(found, 0)
    assert np.quantile(found["naive", "float32"], 0.999) >= 0.02
    assert np.quantile(found["naive", "float16, float32 inside"], 0.999) >= 0.5


@pytest.mark.parametrize(("dtype", "least"), [(F32, 0.015), (F16, 0.5)])
def test_the_bound_is_sharp(dtype, least):
    assert np.quantile(ratios(3, 1e5, numpy_gradients.naive, dtype, F32), 0.999) >= least


RELATIVE = sr.RelativeBias(np.linspace(-2, 1, 10, dtype=F32), left=7)
OPTIONS = {  # what the oracle is told, and how the kernels are told the same
    "plain": ({}, {}),
    "scale": ({"scale": -0.7}, {"scale": -0.7}),
    "softcap": ({"softcap": 1.5}, {"softcap": 1.5}),
    "bias": ({"bias": BIAS}, {"bias": BIAS}),
    "bias-minus-infinity": ({"bias": CUT}, {"bias": CUT}),
    "relative": (
        {"bias": RELATIVE},
        {"bias": RELATIVE.at(np.arange(N) - np.arange(N)[:, None], 0)},
    ),
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
@KERNEL
@pytest.mark.parametrize("option", OPTIONS)
def test_covers_every_option_and_gradient(option, kernel, dtype, weight):
    """Four query heads over two of keys."""
    ours, theirs = OPTIONS[option]
    pattern = sr.Causal() & sr.SlidingWindow(40, 0)
    formats = {"arithmetic": np.dtype(weight).name, "output": np.dtype(dtype).name}
    for seed, family in enumerate(FAMILIES):
        rng = np.random.default_rng(seed)
        q, k, v = inputs(rng, family, 4, N, D, dtype, g=2)
        dout, dlse = draw(rng, family, (4, N, D)).astype(dtype), rng.standard_normal((4, N))
        want = sr.attention_vjp(q, k, v, pattern, dout, dlse=dlse, **ours)
        bound = sr.error_bound_vjp(q, k, v, pattern, dout, dlse=dlse, **ours, **formats)
        got = theirs_of(kernel, q, k, v, pattern, dout, dlse, weight, ours, theirs)
        for name, mine in got.items():
            ratio = excess(mine, getattr(want, name), getattr(bound, name))
            assert ratio.max() <= 1, (name, family)


def theirs_of(kernel, q, k, v, pattern, dout, dlse, weight, ours, theirs):
    """The kernel's gradients, summed over shared heads and over the axes a bias was spread on."""
    wide = [np.repeat(x, 2, axis=0).astype(F32) for x in (k, v)]
    dq, dk, dv, dscore, dsink = kernel(
        q.astype(F32), *wide, pattern.mask(N, N), dout, dlse, weight=weight,
        **{"scale": D**-0.5, **theirs},
    )  # fmt: skip
    got = {"dq": dq.astype(q.dtype)}
    for name, x in (("dk", dk), ("dv", dv)):
        got[name] = x.reshape(2, 2, N, D).sum(axis=1).astype(q.dtype)
    bias = ours.get("bias")
    if isinstance(bias, sr.RelativeBias):
        i, j = np.nonzero(pattern.mask(N, N)[0])
        at = bias.index(j - i, 0)
        got["dbias"] = np.bincount(at, dscore.sum(axis=0)[i, j], bias.table.size)
    elif bias is not None:
        spread = (0,) if bias.ndim == 3 else (0, 1)
        got["dbias"] = dscore.sum(axis=spread).reshape(bias.shape)
    if dsink is not None:
        got["dsink_logits"] = np.where(np.isinf(SINKS), 0, dsink)
    return got


def test_covers_keys_that_count_twice():
    twice = sr.Multi([sr.Causal(), sr.SlidingWindow(4, 0)])
    more = np.log(np.maximum(twice.counts(N, N), 1))
    for seed, family in enumerate(FAMILIES):
        rng = np.random.default_rng(seed)
        q, k, v = inputs(rng, family, 2, N, D, F32)
        dout, dlse = draw(rng, family, (2, N, D)), np.zeros((2, N))
        want = sr.attention_vjp(q, k, v, twice, dout)
        bound = sr.error_bound_vjp(q, k, v, twice, dout)
        mask = twice.mask(N, N)
        got = numpy_gradients.from_lse(q, k, v, mask, dout, dlse, scale=D**-0.5, bias=more)
        for ours in zip(got[:3], want[:3], bound[:3], strict=True):
            assert excess(*ours).max() <= 1


FAULTS = ["mean", "lse", "slope", "scale", "wide", "key", "head"]


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("dtype", [F32, F16])
def test_planted_faults_exceed_the_bound(dtype, fault):
    rng, n, d = np.random.default_rng(4), 131, 17
    q, k, v = inputs(rng, "normal", 2, n, d, dtype)
    dout, dlse = draw(rng, "normal", (2, n, d)).astype(dtype), rng.standard_normal((2, n))
    pattern, options = sr.Causal() & sr.SlidingWindow(64, 0), {"softcap": 3.0, "scale": d**-0.5}
    formats = {"arithmetic": np.dtype(dtype).name, "output": np.dtype(dtype).name}
    want = sr.attention_vjp(q, k, v, pattern, dout, dlse=dlse, **options)
    bound = sr.error_bound_vjp(q, k, v, pattern, dout, dlse=dlse, **options, **formats)

    def worst(got):
        found = zip(got[:3], want[:3], bound[:3], strict=True)
        return max(excess(*x).max() for x in found)

    mask = pattern.mask(n, n)
    right = numpy_gradients.from_lse(q, k, v, mask, dout, dlse, **options, weight=dtype)
    assert worst(right) <= 1
    assert worst(faulty(fault, right, q, k, v, mask, dout, dlse, options)) > 1


def faulty(fault, right, q, k, v, mask, dout, dlse, options):
    """The gradients above with one mistake."""
    dq, dk, dv = right[:3]
    if fault == "head":
        return dq, dk[::-1], dv
    if fault == "key":
        return dq, np.roll(dk, 1, axis=1), dv
    if fault == "scale":
        return dq, dk / options["scale"], dv
    if fault == "slope":
        options = {**options, "softcap": None}
    if fault == "lse":
        dlse = 0 * dlse
    if fault == "wide":
        mask = (sr.Causal() & sr.SlidingWindow(65, 0)).mask(131, 131)
    if fault == "mean":  # as a mean over the row, what a softmax without its sum would give
        dout = dout - dout.mean(axis=-1, keepdims=True)
    return numpy_gradients.naive(q, k, v, mask, dout, dlse, **options)


def test_is_zero_where_nothing_is_summed_and_nan_where_the_oracle_is():
    q, k, v = inputs(np.random.default_rng(0), "normal", 1, 5, 3, F32)
    bound = sr.error_bound_vjp(q, k, v, sr.Causal() - sr.SlidingWindow(1, 0), v)
    assert not bound.dq[0, :2].any()
    assert not bound.dk[0, 3:].any()
    assert (bound.dq[0, 2:] > 0).all()
    assert (bound.dv[0, :3] > 0).all()
    k[0, 3, 0] = np.nan
    with np.errstate(invalid="ignore"):
        want = sr.attention_vjp(q, k, v, sr.Causal(), v)
    bound = sr.error_bound_vjp(q, k, v, sr.Causal(), v)
    for exact, limit in zip(want[:3], bound[:3], strict=True):
        np.testing.assert_array_equal(np.isnan(limit), np.isnan(exact))


def test_answers_empty_shapes_and_leading_axes():
    q, k, v = np.ones((2, 3, 2, 0, 4)), np.ones((2, 3, 1, 5, 4)), np.ones((2, 3, 1, 5, 7))
    bound = sr.error_bound_vjp(q, k, v, sr.Full(), np.ones((2, 3, 2, 0, 7)))
    assert [x.shape for x in bound[:3]] == [q.shape, k.shape, v.shape]
    assert not bound.dk.any()
    assert bound.dbias is bound.dsink_logits is None


@pytest.mark.witness
@pytest.mark.parametrize("dtype", ["float64", "float32", "bfloat16", "float16"])
def test_torch_stays_within_the_bound(dtype):
    torch = pytest.importorskip("torch")
    attend = torch.nn.functional.scaled_dot_product_attention
    for seed, family in enumerate(FAMILIES):
        rng = np.random.default_rng(seed)
        for n in (17, 131):
            arrays = [*inputs(rng, family, 2, n, 33, F32), draw(rng, family, (2, n, 33))]
            tensors = [torch.tensor(x).to(getattr(torch, dtype)) for x in arrays]
            exact = [x.double().numpy() for x in tensors]
            window = sr.Causal() & sr.SlidingWindow(n // 2, 0)
            asked = {
                window: {"attn_mask": torch.tensor(window.mask(n, n))},
                sr.Causal(): {"is_causal": True},
            }
            for pattern, how in asked.items():
                leaves = [x[None].clone().requires_grad_() for x in tensors[:3]]
                attend(*leaves, **how).backward(tensors[3][None])
                want = sr.attention_vjp(*exact[:3], pattern, exact[3])
                bound = sr.error_bound_vjp(
                    *exact[:3], pattern, exact[3], arithmetic=dtype, output=dtype
                )
                for leaf, right, limit in zip(leaves, want[:3], bound[:3], strict=True):
                    got = leaf.grad[0].double().numpy()
                    assert excess(got, right, limit).max() <= 1
