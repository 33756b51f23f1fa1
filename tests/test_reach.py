"""Reach: Child et al.'s criterion, against closed forms and against boolean matrix powers."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import sparse_ref as sr
from sparse_ref import recipes
from tests.strategies import patterns

CAUSAL = sr.Causal()


@pytest.mark.parametrize("n", [1, 2, 16, 47])
def test_full_and_causal_need_one_layer(n):
    assert sr.reach(sr.Full(), n) == (n > 1)
    assert sr.reach(CAUSAL, n) == (n > 1)
    assert sr.reach(CAUSAL, 0) == 0


@pytest.mark.parametrize("w", [1, 2, 5, 20, 46, 60])
def test_a_window_of_w_past_keys_needs_n_over_w_layers(w):
    n = 47

    assert sr.reach(sr.SlidingWindow(w, 0), n) == -(-(n - 1) // w)
    assert sr.reach(sr.SlidingWindow(w, w), n) == -(-(n - 1) // w)
    assert sr.reach(sr.SlidingWindow(0, 0), n) is None


def test_sparse_transformers_reach_everything_in_two_layers():
    parts = [recipes.sparse_transformer_strided(8, heads=part) for part in ("local", "strided")]
    heads = recipes.sparse_transformer_strided(8, heads=2)

    assert sr.reach(parts, 64) == 2
    assert sr.reach(parts[::-1], 64) == 2
    assert sr.reach(recipes.sparse_transformer_strided(8), 64) == 2
    assert sr.reach(heads, 64) == 2
    assert sr.reach(recipes.sparse_transformer_fixed(8, 2), 64) == 2
    assert sr.reach([sr.SlidingWindow(7, 0)] * 2, 64) == 9


def test_chunks_never_meet_unless_a_layer_joins_them():
    chunked = recipes.llama4(8)

    assert sr.reach(chunked, 8) == 1
    assert sr.reach(chunked, 9) is None
    assert sr.reach([recipes.llama4(8, layer=layer) for layer in range(4)], 64) == 4
    assert sr.reach([chunked, CAUSAL & sr.Chunked(8, origin=4)], 16) == 3


def test_looking_ahead_widens_what_is_wanted():
    """One query that looks ahead: from then on every key must reach every query."""
    assert sr.reach([CAUSAL, sr.SlidingWindow(0, 1)], 5) is not None
    assert sr.reach(CAUSAL | (sr.Rows([1]) & sr.Keys([2])), 5) is None
    assert sr.reach(recipes.swin((4, 4), 2), 16) is None
    both = [recipes.axial((4, 6), 0), recipes.axial((4, 6), 1)]
    assert sr.reach(both, 24) == 2


def definition(patterns, n):
    """Dense: multiply until nothing grows through a whole cycle of layers."""
    steps = [p.mask(n, n).any(axis=0) | np.eye(n, dtype=bool) for p in patterns]
    ahead = any(np.triu(step, 1).any() for step in steps)
    wanted = np.ones((n, n), dtype=bool) if ahead else np.tri(n, dtype=bool)
    seen = np.eye(n, dtype=bool)
    for layer in range(len(steps) * (n * n + 1)):
        if (seen == wanted).all():
            return layer
        seen = steps[layer % len(steps)].astype(int) @ seen > 0
    return None


@given(st.lists(patterns(9), min_size=1, max_size=3), st.integers(1, 8))
def test_equals_boolean_matrix_powers(several, n):
    assert sr.reach(several, n) == definition(several, n)


def test_wrong_arguments():
    with pytest.raises(ValueError, match="patterns must hold at least one pattern"):
        sr.reach([], 4)
    with pytest.raises(TypeError, match=r"patterns\[1\] must be a pattern, got 3"):
        sr.reach([CAUSAL, 3], 4)
    with pytest.raises(ValueError, match="n must be >= 0, got -1"):
        sr.reach(CAUSAL, -1)
