"""Random keys against the twelve lines that define them, one Python integer at a time."""

import numpy as np
import pytest

import sparse_ref as sr

WORD = 2**64 - 1


def mix(x):
    x = (x + 0x9E3779B97F4A7C15) & WORD
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & WORD
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & WORD
    return x ^ (x >> 31)


def keys_of(p, count, seed, length, exclude, causal):
    limit = p + 1 if causal else length
    base, chosen = mix(mix(seed) ^ p), []
    for t in range(8 * count + 64):
        key = mix((base + t) & WORD) % limit
        if (
            len(chosen) < count
            and key not in chosen
            and not (exclude is not None and exclude(p, key))
        ):
            chosen.append(key)
    if len(chosen) < count:
        left = [k for k in range(limit) if not (exclude is not None and exclude(p, k))]
        chosen = sorted(left, key=lambda k: (mix((base + 2**32 + k) & WORD), k))[:count]
    return sorted(chosen)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("exclude", [None, sr.SlidingWindow(2, 1), ~sr.SlidingWindow(3, 3)])
@pytest.mark.parametrize(("count", "seed"), [(0, 0), (1, 7), (5, 2**64 - 1), (29, 3), (40, 1)])
def test_equals_the_scalar_definition(count, seed, exclude, causal):
    length = 31
    pattern = sr.RandomKeys(count, seed, length, exclude=exclude, causal=causal)
    mask = pattern.mask(length, length)[0]

    got = [np.flatnonzero(row).tolist() for row in mask]
    assert got == [keys_of(p, count, seed, length, exclude, causal) for p in range(length)]


def test_a_decode_step_draws_what_the_whole_sequence_drew():
    pattern = sr.RandomKeys(4, 0, 50, causal=True)
    whole = pattern.mask(50, 50)[0]

    for n in (1, 7, 50):
        assert (pattern.mask(1, n)[0, 0] == whole[n - 1, :n]).all()


def test_few_draws_are_enough_for_almost_every_row():
    """The exhaustive path is for rows with hardly more candidates than keys."""
    pattern = sr.RandomKeys(8, 0, 2**16)
    csr = sr.to_csr(pattern, 2**16, 2**16)

    assert (np.diff(csr.indptr) == 8).all()
    columns = np.bincount(csr.indices, minlength=2**16)
    assert abs(columns.mean() - 8) < 1e-9
    assert columns.var() == pytest.approx(8, rel=0.05)  # Poisson: no key is favoured
