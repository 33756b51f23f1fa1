"""What independent implementations say of the same patterns; each file is one family of them.

Where a witness is wrong, a test says so and a third derivation says who is right: a picture drawn
by hand, or the loops of `tests/definition.py`.
"""

import numpy as np

import sparse_ref as sr
from tests import definition


def inputs(b=2, h=6, g=3, m=13, n=19, d=5, e=7, seed=0):
    """q, k, v in float32 with exact values; pairwise different extents where the witness allows."""
    rng = np.random.default_rng(seed)
    shapes = (b, h, m, d), (b, g, n, d), (b, g, n, e)
    return [(rng.integers(-96, 97, s) / 64).astype(np.float32) for s in shapes]


def agrees(got, q, k, v, pattern, *, lse=None, arithmetic="float32", **options):
    """Assert that an output, and an lse, are within the error bound of the oracle.

    Rows without a key must be exactly 0, and -inf.
    """
    want = sr.attention(q, k, v, pattern, **options)
    formats = {"arithmetic": arithmetic, "output": arithmetic}
    bound = sr.error_bound(q, k, v, pattern, **options, **formats)
    within("out", got, want.out, bound.out)
    if lse is not None:
        within("lse", lse, want.lse, bound.lse)


def within(name, got, want, bound):
    got = np.asarray(got)
    assert got.shape == want.shape
    with np.errstate(invalid="ignore"):  # -inf - -inf
        fits = (got == want) | (abs(got - want) <= bound)
    assert fits.all(), f"{int((~fits).sum())} elements of {name} beyond the bound"


def by_loops(q, k, v, allowed):
    """Attention of one batch row by definition, for a mask (h, m, n): nothing of ours but loops."""
    h, g = len(q), len(k)
    out = [
        definition.attention(
            q[i].tolist(), k[i * g // h].tolist(), v[i * g // h].tolist(), allowed[i].tolist(),
            scale=q.shape[-1] ** -0.5,
        )[0]
        for i in range(h)
    ]  # fmt: skip
    return np.array(out)


def picture(text):
    """A mask drawn by hand."""
    return np.array([[mark == "#" for mark in line.split()] for line in text.strip().splitlines()])
