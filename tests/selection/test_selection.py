"""Selection: a table of chosen blocks, wherever a pattern goes."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import sparse_ref as sr
from sparse_ref import Causal, Selection, SlidingWindow

RNG = np.random.default_rng(0)


def arrays(b, h, g, m, n, d=4, e=3):
    return [RNG.standard_normal(s) for s in ((b, h, m, d), (b, g, n, d), (b, g, n, e))]


def table(b, s, rows, k, blocks, seed=0):
    """Random indices, some rows shorter."""
    rng = np.random.default_rng(seed)
    order = np.argsort(rng.random((b, s, rows, blocks)), axis=-1)[..., :k]
    return np.where(rng.random(order.shape) < 0.8, order, -1)


def by_loops(selection, m, n, batch, head, start):
    """The definition: which keys a head of a batch row sees, (m, n)."""
    mask = np.zeros((m, n), dtype=bool)
    b, s = selection.indices.shape[:2]
    for t in range(m):
        row = selection.indices[min(batch, b - 1), head * s // selection.heads]
        listed = set(row[t // selection.query_block].tolist())
        for j in range(n):
            chosen = j // selection.key_block in listed
            if selection.always is not None:
                chosen = chosen or selection.always.at(head)(start + t, j)
            mask[t, j] = chosen and selection.visible.at(head)(start + t, j)
    return mask


def test_a_picture():
    selection = Selection([[[[0], [0], [1], [2], [0]]]], key_block=2)

    assert selection.mask(5, 5)[0].astype(int).tolist() == [
        [1, 0, 0, 0, 0],
        [1, 1, 0, 0, 0],
        [0, 0, 1, 0, 0],
        [0, 0, 0, 0, 0],
        [1, 1, 0, 0, 0],
    ]


def test_indices_are_sorted_and_padding_goes_to_the_end():
    selection = Selection([[[[5, -1, 2], [-1, -1, -1]]]])

    assert selection.indices.tolist() == [[[[2, 5, -1], [-1, -1, -1]]]]
    assert selection.indices.dtype == np.int32
    assert not selection.indices.flags.writeable
    assert selection.counts.tolist() == [[[2, 0]]]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"indices": [[[[1, 1]]]]}, "indices must be unique in every row, got 1 twice"),
        ({"indices": [[[[-2]]]]}, "indices must be >= -1, got -2"),
        ({"indices": [[[1]]]}, r"indices must have 4 dimension\(s\), got shape \(1, 1, 1\)"),
        ({"indices": [[[[1]], [[2]]]], "heads": 3}, "kv_heads must divide the 3 heads, got 2"),
        (
            {"indices": [[[[1]], [[2]]]], "heads": 4, "kv_heads": 1},
            r"indices must have 1, kv_heads \(1\) or heads \(4\) lists, got 2",
        ),
        ({"indices": [[[[1]]]], "key_block": 0}, "key_block must be >= 1, got 0"),
        ({"indices": [[[[1]]]], "always": sr.Multi([Causal()])}, "always must be a set"),
    ],
)
def test_what_is_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        Selection(**arguments)


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((3, 2, 7, 1), "selection must be for a batch of 2, got one for 3"),
        ((2, 3, 7, 1), "selection must have 1, 2 or 4 lists of keys a query, got 3"),
        ((2, 2, 5, 1), "selection must have 7 rows for 7 queries in blocks of 1, got 5"),
    ],
)
def test_an_attention_it_is_not_for_is_refused(shape, message):
    q, k, v = arrays(2, 4, 2, 7, 7)
    selection = Selection(np.zeros(shape, dtype=int))

    with pytest.raises(ValueError, match=message):
        sr.attention(q, k, v, selection)


KINDS = {
    "keys, one list": {"s": 1},
    "keys, a list a group": {"s": 2},
    "keys, a list a head": {"s": 4},
    "blocks": {"s": 2, "key_block": 3},
    "blocks of both": {"s": 1, "key_block": 4, "query_block": 5},
    "and a window": {"s": 4, "key_block": 3, "always": SlidingWindow(1, 0)},
    "of other visible keys": {"s": 2, "key_block": 3, "visible": SlidingWindow(6, 2)},
    "visible by heads": {"s": 1, "key_block": 3, "visible": sr.PerHead([Causal(), sr.Full()])},
    "a list for all batch rows": {"s": 2, "b": 1},
}


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize(("m", "n"), [(7, 7), (5, 13), (11, 7)])
def test_it_means_the_same_wherever_it_goes(name, m, n):
    """By loops, as a mask, CSR, blocks, in the oracle and in the kernels."""
    kernels = pytest.importorskip("sparse_ref.kernels", reason="Numba is not installed")
    options, (h, g), start = dict(KINDS[name]), (4, 2), n - m
    s, b = options.pop("s"), options.pop("b", 2)
    rows = -(-m // options.get("query_block", 1))
    indices = table(b, s, rows, 2, -(-n // options.get("key_block", 1)))
    selection = Selection(indices, heads=h, kv_heads=g, **options)
    q, k, v = arrays(2, h, g, m, n)
    masks = np.array(
        [[by_loops(selection, m, n, i, head, start) for head in range(h)] for i in range(2)]
    )

    for i in range(2):
        assert (selection.mask(m, n, batch=i) == masks[i]).all()
        blocks = sr.to_blocks(selection, m, n, block_size=(3, 4), heads=h, batch=i)
        assert (blocks.to_mask() == masks[i]).all()
        for head in range(h):
            csr = sr.to_csr(selection, m, n, head=head, batch=i)
            assert (csr.toarray() == masks[i, head]).all()
    bias = np.where(masks, 0.0, -np.inf)
    want = sr.attention(q, k, v, sr.Full(), bias=bias)
    got = sr.attention(q, k, v, selection)
    fast = kernels.attention(q, k, v, selection)
    bound = sr.error_bound(q, k, v, selection, arithmetic="float64", output="float64")
    assert (abs(got.out - want.out) <= 1e-14).all()
    assert (got.lse == want.lse).all()
    assert (abs(fast.out - got.out) <= bound.out).all()


def test_gradients_and_weights_follow_it():
    kernels = pytest.importorskip("sparse_ref.kernels", reason="Numba is not installed")
    q, k, v = arrays(1, 4, 2, 9, 9)
    selection = Selection(table(1, 2, 9, 2, 3), heads=4, key_block=3)
    mask, dout = selection.mask(9, 9), RNG.standard_normal((1, 4, 9, 3))
    bias = np.where(mask, 0.0, -np.inf)

    want = sr.attention_vjp(q, k, v, sr.Full(), dout, bias=bias)
    got = sr.attention_vjp(q, k, v, selection, dout)
    fast = kernels.attention_vjp(q, k, v, selection, dout)
    for name in ("dq", "dk", "dv"):
        np.testing.assert_allclose(getattr(got, name), getattr(want, name), atol=1e-14)
        np.testing.assert_allclose(getattr(fast, name), getattr(want, name), atol=1e-13)
    probabilities = sr.weights(q, k, selection, head=3).toarray()
    assert ((probabilities > 0) == mask[3]).all()


def test_blocks_are_of_positions_not_of_slots():
    """Left padding: row by row what the sequence without padding sees."""
    plain = Selection(table(1, 1, 9, 1, 3), key_block=3)
    padded = {"q_start": 0, "kv_positions": np.arange(11) - 2}

    got = plain.mask(9, 11, **padded)

    assert (got[:, :, 2:] == plain.mask(9, 9)).all()
    assert not got[:, :, :2].any()
    q, k, v = arrays(1, 1, 1, 9, 11)
    out = sr.attention(q, k, v, plain, **padded).out
    np.testing.assert_array_equal(out, sr.attention(q, k[:, :, 2:], v[:, :, 2:], plain).out)


def test_and_narrows_what_is_visible():
    selection = Selection(table(1, 2, 9, 2, 3), key_block=3)
    window = SlidingWindow(2, 0)

    narrowed = selection & window

    assert (narrowed.mask(9, 9) == (selection.mask(9, 9) & window.mask(9, 9))).all()
    assert narrowed.indices is selection.indices
    with pytest.raises(TypeError, match="the right side of & must be a pattern, got 3"):
        selection & 3


def test_counted_means_listed_already():
    listed = Selection([[[[0], [0], [0]]]], always=Causal(), counted=True)

    assert listed.mask(3, 3).sum() == 3
    assert Selection([[[[0], [0], [0]]]], always=Causal()).mask(3, 3).sum() == 6


def test_one_pattern_of_one_head():
    """What exporters and pictures take."""
    selection = Selection([[[[0], [1]]], [[[1], [0]]]])

    pattern = selection.pattern(batch=1)

    assert isinstance(pattern, sr.Pattern)
    assert (pattern.mask(2, 2) == selection.mask(2, 2, batch=1)).all()
    with pytest.raises(ValueError, match="batch must be <= 1, got 2"):
        selection.pattern(batch=2)
    with pytest.raises(ValueError, match="head must be <= 0, got 1"):
        selection.pattern(head=1)


@pytest.mark.parametrize(("b", "m", "n"), [(0, 3, 3), (1, 0, 3), (1, 3, 0)])
def test_empty_problems_are_answered(b, m, n):
    q, k, v = arrays(b, 2, 1, m, n)
    selection = Selection(np.zeros((b, 1, m, 0), dtype=int))

    result = sr.attention(q, k, v, selection)

    assert (result.out == 0).all()
    assert (result.lse == -np.inf).all()
    assert b == 0 or selection.mask(m, n).shape == (1, m, n)


@given(st.integers(0, 2**32 - 1), st.integers(1, 6), st.integers(1, 4), st.integers(1, 23))
def test_random_tables_mean_what_their_loops_say(seed, size, k, n):
    blocks = -(-n // size)
    selection = Selection(table(1, 2, n, min(k, blocks), blocks, seed), key_block=size)

    for head in range(2):
        want = by_loops(selection, n, n, 0, head, 0)
        assert (selection.mask(n, n)[head] == want).all()
