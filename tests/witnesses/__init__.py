"""What independent implementations say of the same patterns; each file is one family of them."""

import numpy as np

import sparse_ref as sr


def inputs(b=2, h=4, g=2, m=13, n=19, d=8, e=8, seed=0):
    """q, k, v in float32 with exact values, and head counts that differ."""
    rng = np.random.default_rng(seed)
    shapes = (b, h, m, d), (b, g, n, d), (b, g, n, e)
    return [(rng.integers(-96, 97, s) / 64).astype(np.float32) for s in shapes]


def agrees(got, q, k, v, pattern, **options):
    """Assert that an output is within the error bound of the oracle, zero rows exactly zero."""
    want = sr.attention(q, k, v, pattern, **options).out
    bound = sr.error_bound(q, k, v, pattern, **options).out
    got = np.asarray(got)
    assert got.shape == want.shape
    assert (np.isnan(got) == np.isnan(want)).all()
    worst = np.abs(got - want) - bound
    assert (worst <= 0).all(), f"{int((worst > 0).sum())} elements beyond the bound"
