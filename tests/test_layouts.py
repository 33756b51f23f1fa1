"""Layouts against the dense mask: all small ones, by Hypothesis, and in cost when large."""

import itertools
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import sparse_ref as sr
from sparse_ref.patterns.descent import cover
from sparse_ref.patterns.drift import Drift
from sparse_ref.patterns.relation import KeyRows, Relation
from sparse_ref.patterns.spans import Span
from tests.strategies import patterns

RNG = np.random.default_rng(0)
N = 24  # positions that the table patterns below cover
FAMILIES = [
    sr.Full(),
    ~sr.Full(),
    sr.Causal(),
    sr.SlidingWindow(3, 1),
    sr.SlidingWindow(None, 2),
    sr.SlidingWindow(1, 2, dilation=3),
    sr.Chunked(3),
    sr.Chunked(4, back=1, origin=2),
    sr.Chunked(3, back=None, ahead=-1),
    sr.Causal() & sr.Strided(3),
    sr.Causal() & (sr.SlidingWindow(2, 0) | sr.Sink(2)),
    sr.Offsets([-2, 0, 5]),
    sr.Keys([0, 3, 7]) | sr.Rows(range(1, 9, 3)),
    sr.Global([2]) - sr.Strided(2),
    sr.KeyStride(5, [4]) & sr.RowStride(2, [0]),
    sr.Xor([0, 1, 4]),
    sr.PrefixLM(3),
    sr.Document(np.arange(N) // 5),
    sr.Document([0, -1, 1, 0, 2, 2, -1, 1] * 3),
    sr.Neighborhood(N, 5, stride=2),
    sr.Neighborhood(N, 4, dilation=2, causal=True),
    sr.RandomKeys(3, 1, N),
    ~sr.RandomKeys(2, 3, N, exclude=sr.Causal()),
    sr.BlockPattern(RNG.random((6, 8)) < 0.4, (4, 3)),
    sr.Tokens(RNG.random((N, N)) < 0.2),
    sr.Blocked(sr.SlidingWindow(1, 0) | sr.RandomKeys(1, 0, N), 3),
    sr.Grid((4, 6), (sr.Neighborhood(4, 3), sr.SlidingWindow(1, 1))),
    sr.Permuted(sr.SlidingWindow(1, 1), RNG.permutation(N)),
    sr.WithinDocument(sr.Causal() & sr.SlidingWindow(2, 0), np.arange(N) // 7),
    sr.Multi([sr.Causal(), sr.SlidingWindow(2, 2), sr.RandomKeys(2, 0, N)]),
    sr.PerHead([sr.Causal(), sr.Multi([sr.Strided(2), sr.Full()])]) & sr.Chunked(6),
]
SHAPES = [*itertools.product(range(8), range(8)), (1, 23), (11, 13), (13, 11), (17, 19), (19, 17)]
BLOCKS = [1, 2, 3, (2, 5), (4, 3), 7, 16]
STARTS = [None, 0, 3, -2, -9, 5, 1]


@pytest.mark.parametrize("pattern", FAMILIES, ids=repr)
def test_every_small_case_equals_the_dense_mask(pattern):
    """31 patterns x 69 shapes x 7 starts x 7 block sizes: 104,811 layouts."""
    for (m, n), start in itertools.product(SHAPES, STARTS):
        want = pattern.counts(m, n, q_start=start)
        for head, counts in enumerate(want):
            csr = sr.to_csr(pattern, m, n, head=head, q_start=start)
            assert (csr.toarray() == counts).all(), (m, n, start)
            assert csr.has_canonical_format
        for block in BLOCKS:
            blocks = sr.to_blocks(
                pattern, m, n, block_size=block, heads=pattern.heads, q_start=start
            )
            assert (blocks.to_counts() == want).all(), (m, n, start, block)
            assert blocks.nnz == (want > 0).sum()


lengths = st.integers(0, 40)


@settings(max_examples=5000)
@given(
    pattern=patterns(covers=40), m=lengths, n=lengths, block=st.tuples(*[st.integers(1, 9)] * 2),
    start=st.none() | st.integers(-20, 20),
)  # fmt: skip
def test_any_pattern_equals_its_dense_mask(pattern, m, n, block, start):
    want = pattern.counts(m, n, q_start=start)
    blocks = sr.to_blocks(pattern, m, n, block_size=block, heads=pattern.heads, q_start=start)

    assert (blocks.to_counts() == want).all()
    for head in range(pattern.heads):
        csr = sr.to_csr(pattern, m, n, head=head, q_start=start)
        assert (csr.toarray() == want[head]).all()
    canonical(blocks, want)


def canonical(blocks, want):
    """Columns ascend, no empty tile, full where all is one, tiles unique, first use first."""
    bq, bk = blocks.block_size
    assert (blocks.tile_masks[0] == 1).all()
    assert len({t.tobytes() for t in blocks.tile_masks}) == len(blocks.tile_masks)
    used = [int(i) for i in dict.fromkeys(blocks.tile_ids.tolist()) if i]
    assert used == list(range(1, len(blocks.tile_masks)))
    for layout, bounds in enumerate(blocks.indptr):
        head = int(np.flatnonzero(blocks.head_layout == layout)[0])
        for row, (a, b) in enumerate(itertools.pairwise(bounds)):
            assert (np.diff(blocks.indices[a:b]) > 0).all()
            for column, tile in zip(blocks.indices[a:b], blocks.tile_ids[a:b], strict=True):
                part = want[head, row * bq : (row + 1) * bq, column * bk : (column + 1) * bk]
                assert part.any()
                assert (tile == 0) == (part == 1).all()


@pytest.mark.parametrize("pattern", FAMILIES, ids=repr)
def test_key_slots_may_hold_any_positions(pattern):
    """Ring caches, left padding, duplicates, empty slots: rows equal the mask on positions."""
    positions = np.array([7, 3, -1, 0, 23, 3, 11, -5, 12, 1])
    for start, stop in ((0, 5), (-2, 3), (13, 20)):
        mask = pattern.mask(stop - start, 10, q_start=start, kv_positions=positions)
        for head, want in enumerate(mask):
            found = pattern.at(head).rows(start, stop, positions)
            assert found.indices.tolist() == np.nonzero(want)[1].tolist()
            assert np.diff(found.indptr).tolist() == want.sum(axis=1).tolist()


@settings(max_examples=300)
@given(pattern=patterns(covers=60), start=st.integers(-15, 15), size=st.integers(1, 12))
def test_spans_are_sound(pattern, start, size):
    """What a span says must hold for all pairs does; what it says may not, never does."""
    one = pattern.at(0)
    lo = np.arange(start, start + 36, size)
    q, k = (x.ravel() for x in np.meshgrid(lo, lo, indexing="ij"))
    verdict = one(Span(q, q + size - 1), Span(k, k + size - 1))
    step = np.arange(size)
    truth = one(q[:, None, None] + step[:, None], k[:, None, None] + step)
    truth = np.broadcast_to(truth, (len(q), size, size))

    assert truth.all(axis=(1, 2))[np.broadcast_to(verdict.must, q.shape)].all()
    assert not truth.any(axis=(1, 2))[~np.broadcast_to(verdict.may, q.shape)].any()


@settings(max_examples=300)
@given(pattern=patterns(covers=200), q=st.integers(-20, 40), k=st.integers(-20, 40))
def test_a_pattern_repeats_after_its_drift(pattern, q, k):
    one = pattern.at(0)
    every = one(Drift(), Drift()).every

    assert every >= 0
    if every:
        assert one(q, k) == one(q + every, k + every) == one(q - 3 * every, k - 3 * every)


@given(st.data())
def test_a_relation_counts_every_rectangle(data):
    dense = RNG.random((7, 11)) < data.draw(st.floats(0, 1))
    row, key = np.nonzero(dense)
    relation = Relation(KeyRows.of(row, key, 7))
    q, k = (sorted(data.draw(st.lists(st.integers(-3, 14), min_size=2, max_size=2))) for _ in "qk")
    inside = dense[max(q[0], 0) : max(q[1] + 1, 0), max(k[0], 0) : max(k[1] + 1, 0)]

    assert relation.count(*q, *k) == inside.sum()


def test_intervals_are_tight_on_what_people_use():
    """Descent keeps exactly the non-empty blocks: nothing is evaluated in vain."""
    n, b = 777, 32
    ids = np.where(RNG.random(n) < 0.5, -1, np.arange(n) // 90)
    for pattern in [
        sr.SlidingWindow(50, 10), sr.Causal(), sr.Chunked(70), sr.PrefixLM(100), sr.Document(ids),
        sr.Global(range(5)) | sr.SlidingWindow(20, 20), sr.Xor([0, *(1 << i for i in range(10))]),
        sr.Neighborhood(n, 129), sr.RandomKeys(2, 0, n),
    ]:  # fmt: skip
        kept = cover(pattern, np.arange(n), np.arange(n), (b, b))
        dense = np.zeros((800, 800), dtype=bool)
        dense[:n, :n] = pattern.mask(n, n)[0]
        some = dense.reshape(25, b, 25, b).any(axis=(1, 3))
        assert len(kept.row) == some.sum(), pattern


def test_a_million_tokens_in_bounded_memory():
    pattern = sr.Causal() & (sr.SlidingWindow(511, 0) | sr.Sink(4))
    tracemalloc.start()
    blocks = sr.to_blocks(pattern, 1 << 20, 1 << 20)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()

    rows = 1 << 14
    assert len(blocks.indices) == 9 * rows - 36 + rows - 9  # the window's blocks, then the sink's
    assert len(blocks.tile_masks) == 5  # full, diagonal, far edge, sink, and both where they meet
    assert peak < 1e9


def test_heads_with_equal_patterns_share_a_layout():
    pattern = sr.PerHead([sr.Causal(), sr.SlidingWindow(3, 3), sr.Causal()])
    blocks = sr.to_blocks(pattern, 50, 50, block_size=16, heads=7)

    assert blocks.head_layout.tolist() == [0, 1, 0, 0, 1, 0, 0]
    assert blocks.indptr.shape == (2, 5)


def test_density_and_fill():
    blocks = sr.to_blocks(sr.Causal(), 6, 6, block_size=4, heads=3)

    assert blocks.nnz == 3 * 21
    assert blocks.density == 21 / 36
    assert blocks.fill == 21 / (16 + 8 + 4)
    assert blocks.full.tolist() == [False, True, False]


def test_an_explicit_pattern_of_a_million_rows_is_near_linear():
    """Blocks of a permuted window come from its rows; descent would ask 2.7e8 blocks."""
    order = np.random.default_rng(0).permutation(1 << 12)
    blocks = sr.to_blocks(sr.Permuted(sr.SlidingWindow(1, 1), order), 1 << 12, 1 << 12)

    assert blocks.nnz == 3 * (1 << 12) - 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"q_len": -1}, "q_len must be >= 0, got -1"),
        ({"kv_len": 2.0}, "kv_len must be an integer, got 2.0"),
        ({"q_len": True}, "q_len must be an integer, got True"),
        ({"block_size": 0}, "block_size must be >= 1 or a pair of them, got 0"),
        ({"block_size": (4, 0)}, r"block_size[1] must be >= 1, got 0"),
        ({"block_size": (4,)}, "block_size must be an integer or a pair, got (4,)"),
        ({"heads": 0}, "heads must be >= 1, got 0"),
        ({"q_start": 1.5}, "q_start must be an integer, got 1.5"),
        ({"pattern": "causal"}, "pattern must be a pattern, got 'causal'"),
        ({"pattern": sr.Document([0, 0])}, "covers, got a query at position 4"),
    ],
)
def test_bad_input_is_refused(arguments, message):
    with pytest.raises((TypeError, ValueError)) as caught:
        sr.to_blocks(**{"pattern": sr.Causal(), "q_len": 5, "kv_len": 5, **arguments})

    assert message in str(caught.value)
