"""NATTEN: neighborhood attention on one, two and three axes (its CPU path, flex-fna)."""

import itertools

import numpy as np
import pytest

import sparse_ref as sr
from tests.witnesses import agrees, inputs, picture

torch = pytest.importorskip("torch", reason="torch is not installed")
functional = pytest.importorskip("natten.functional", reason="natten is not installed")
pytestmark = [
    pytest.mark.witness,
    # NATTEN 0.21 asks FlexAttention for the lse in the older of its two ways.
    pytest.mark.filterwarnings("ignore:return_lse is deprecated:FutureWarning"),
]
D = 8  # the head size of q, k and v; a multiple of 8 there


def attend(q, k, v, shape, **options):
    """`na1d`, `na2d` or `na3d` on row-major tokens: out (b, h, n, d) and lse (b, h, n)."""
    function = [functional.na1d, functional.na2d, functional.na3d][len(shape) - 1]
    grids = [
        torch.from_numpy(x.transpose(0, 2, 1, 3).reshape(len(x), *shape, -1, D).copy())
        for x in (q, k, v)
    ]
    out, lse = function(*grids, backend="flex-fna", return_lse=True, **options)
    b, h, n, _ = q.shape
    return (
        out.numpy().reshape(b, n, h, D).transpose(0, 2, 1, 3),
        lse.numpy().reshape(b, n, h).transpose(0, 2, 1),
    )


def grid(*shape, g=3):
    n = int(np.prod(shape))
    return inputs(g=g, m=n, n=n, d=D, e=D)


@pytest.mark.parametrize("causal", [False, True], ids=["shifted", "causal"])
@pytest.mark.parametrize("kernel", [2, 3, 4, 7])
def test_one_axis(kernel, causal):
    q, k, v = grid(23)
    for dilation, stride in itertools.product((1, 2, 3), range(1, min(kernel, 4) + 1)):
        given = {"dilation": dilation, "stride": stride}
        out, lse = attend(q, k, v, (23,), kernel_size=kernel, is_causal=causal, **given)

        pattern = sr.recipes.natten(23, kernel, causal=causal, **given)
        agrees(out, q, k, v, pattern, lse=lse)


def test_a_kernel_as_long_as_the_axis_sees_all():
    q, k, v = grid(11)
    out, lse = attend(q, k, v, (11,), kernel_size=11)

    agrees(out, q, k, v, sr.conventions.natten(11, 11), lse=lse)
    agrees(out, q, k, v, sr.Full(), lse=lse)


TWO_AXES = [
    {"kernel_size": (3, 4), "is_causal": (False, True)},
    {"kernel_size": (2, 5), "stride": (1, 3)},
    {"kernel_size": (2, 3), "dilation": (2, 3), "stride": (2, 1)},
    {"kernel_size": (4, 3), "dilation": (1, 3), "is_causal": (True, True), "stride": (4, 2)},
]


@pytest.mark.parametrize("options", TWO_AXES, ids=str)
def test_two_axes(options):
    q, k, v = grid(5, 11)
    out, lse = attend(q, k, v, (5, 11), **options)

    agrees(out, q, k, v, natten((5, 11), **options), lse=lse)


def test_three_axes():
    """Video: causal in time only."""
    q, k, v = grid(3, 5, 7)
    options = {"kernel_size": (2, 3, 4), "stride": (1, 2, 1), "is_causal": (True, False, False)}
    out, lse = attend(q, k, v, (3, 5, 7), **options)

    agrees(out, q, k, v, natten((3, 5, 7), **options), lse=lse)


def natten(shape, kernel_size, is_causal=False, **options):
    return sr.recipes.natten(shape, kernel_size, causal=is_causal, **options)


def test_an_even_kernel_reaches_further_to_the_left():
    """Drawn by hand, for the three of us."""
    drawn = picture("""
        # # # # . . .
        # # # # . . .
        # # # # . . .
        . # # # # . .
        . . # # # # .
        . . . # # # #
        . . . # # # #
    """)
    q, k, v = grid(7)
    out, lse = attend(q, k, v, (7,), kernel_size=4)

    assert (sr.Neighborhood(7, 4).mask(7, 7)[0] == drawn).all()
    agrees(out, q, k, v, sr.Tokens(drawn), lse=lse)


def test_additional_keys_are_merged_by_lse():
    """What NATTEN calls cross-attention: `merge` of the neighborhood and of the other keys."""
    q, k, v = grid(23)
    _, more_k, more_v = inputs(m=1, n=5, d=D, e=D, seed=1)
    others = [torch.from_numpy(x.transpose(0, 2, 1, 3).copy()) for x in (more_k, more_v)]
    out, lse = attend(
        q, k, v, (23,), kernel_size=4, additional_keys=others[0], additional_values=others[1],
        attention_kwargs={"backend": "flex-fmha"},
    )  # fmt: skip

    merged = sr.merge(
        sr.attention(q, k, v, sr.Neighborhood(23, 4)),
        sr.attention(q, more_k, more_v, sr.Full()),
    )
    np.testing.assert_allclose(out, merged.out, rtol=0, atol=2e-6)
    np.testing.assert_allclose(lse, merged.lse, rtol=0, atol=2e-6)
