"""Hypothesis strategies for patterns: every constructor, combined in every lawful way."""

import numpy as np
from hypothesis import strategies as st

import sparse_ref as sr

few = st.integers(0, 9)
seeds = st.integers(0, 2**32 - 1)
sizes = st.integers(1, 7)
tokens = st.one_of(
    st.sets(st.integers(0, 30), max_size=5),
    st.builds(range, few, st.integers(0, 30), st.integers(1, 4)),
)


def patterns(covers=24, *, heads=True, multisets=True):
    """Any pattern that is defined on the positions below `covers`, at least.

    `heads`, `multisets`: whether it may hold a `PerHead`, a `Multi`.
    """
    one = sets(covers)
    kinds = [one]
    if multisets:
        many = st.builds(sr.Multi, st.lists(one, min_size=1, max_size=3))
        cut = st.builds(lambda m, s: m & s, many, one)
        kinds += [cut, st.builds(sr.Blocked, many, sizes)]
    if heads:
        inner = st.one_of(kinds)
        families = st.builds(sr.PerHead, st.lists(inner, min_size=1, max_size=3))
        kinds += [families, st.builds(lambda f, s: f & s, families, one)]
    return st.one_of(kinds)


def sets(covers=24):
    """Patterns of one head that allow a key at most once."""
    return st.recursive(leaves(covers), lambda inner: combined(inner, covers), max_leaves=4)


def combined(inner, covers):
    """The combinators, over any patterns."""
    return st.one_of(
        st.builds(lambda a, b: a & b, inner, inner),
        st.builds(lambda a, b: a | b, inner, inner),
        st.builds(lambda a, b: a - b, inner, inner),
        st.builds(lambda a: ~a, inner),
        st.builds(sr.Blocked, inner, sizes),
        st.builds(sr.WithinDocument, inner, ids(covers)),
        st.builds(sr.Permuted, inner, orders(covers)),
    )


def leaves(covers=24):
    """Every constructor that takes no pattern."""
    return st.one_of(positional(), chosen(), listed(covers), lattices(covers))


def positional():
    """Patterns of positions alone."""
    reach = st.none() | few
    return st.one_of(
        st.builds(sr.Full),
        st.builds(sr.Causal),
        st.builds(sr.SlidingWindow, reach, reach, st.integers(1, 4)),
        chunks(),
        st.integers(1, 9).flatmap(lambda s: st.builds(sr.Strided, st.just(s), residue(s))),
        st.builds(sr.Offsets, st.sets(st.integers(-12, 12), max_size=5)),
        st.builds(sr.Offsets, st.builds(range, st.integers(-90, 0), few, st.integers(1, 2))),
        st.builds(sr.PrefixLM, few),
        st.builds(sr.Sink, few),
        st.builds(sr.Xor, st.sets(st.integers(0, 20), max_size=4)),
    )


@st.composite
def chunks(draw):
    """A `Chunked` whose bounds are in order."""
    back = draw(st.none() | st.integers(-2, 3))
    ahead = draw(st.none() | st.integers(-2 if back is None else -back, 3))
    return sr.Chunked(draw(sizes), back, ahead, draw(st.integers(-5, 5)))


def chosen():
    """Patterns of chosen tokens."""
    stride = st.integers(1, 9).flatmap(
        lambda p: st.tuples(st.just(p), st.sets(residue(p), max_size=3))
    )
    return st.one_of(
        st.builds(sr.Keys, tokens),
        st.builds(sr.Rows, tokens),
        st.builds(sr.Global, tokens),
        stride.map(lambda args: sr.KeyStride(*args)),
        stride.map(lambda args: sr.RowStride(*args)),
    )


def listed(covers):
    """Patterns of tables over the positions."""
    other = st.none() | ids(covers)
    excluded = st.none() | positional()
    return st.one_of(
        st.builds(sr.Document, ids(covers), other),
        masks(covers).map(sr.Tokens),
        blocks(covers),
        st.builds(
            sr.RandomKeys, few, seeds, st.integers(covers, covers + 9),
            exclude=excluded, causal=st.booleans(),
        ),
    )  # fmt: skip


@st.composite
def ids(draw, covers):
    """Document ids in runs, interleaved, or with holes; drawn by a seed, for they are long."""
    rng = np.random.default_rng(draw(seeds))
    length = covers + int(rng.integers(0, 9))
    if draw(st.booleans()):
        return np.cumsum(rng.random(length) < 0.2)
    return rng.integers(-1, 4, length)


@st.composite
def masks(draw, covers):
    """A bool mask of at least `covers` rows."""
    rng = np.random.default_rng(draw(seeds))
    shape = covers + rng.integers(0, 9, 2)
    return rng.random(shape) < draw(st.floats(0, 1))


@st.composite
def blocks(draw, covers):
    """A `BlockPattern` with blocks of any two sizes."""
    size = draw(st.tuples(sizes, sizes))
    rng = np.random.default_rng(draw(seeds))
    shape = -(-covers // size[0]), int(rng.integers(1, 2 + covers // size[1]))
    return sr.BlockPattern(rng.random(shape) < draw(st.floats(0, 1)), size)


@st.composite
def orders(draw, covers):
    """A permutation of at least `covers` tokens."""
    rng = np.random.default_rng(draw(seeds))
    return rng.permutation(covers + int(rng.integers(0, 5)))


@st.composite
def neighborhoods(draw, length):
    """A `Neighborhood` of exactly `length` positions."""
    dilation = draw(st.integers(1, min(3, length)))
    kernel = draw(st.integers(1, min(9, length // dilation)))
    return sr.Neighborhood(
        length, kernel, dilation, draw(st.integers(1, kernel)), draw(st.booleans())
    )


def lattices(covers):
    """Patterns that know the shape of what they cover."""
    length = st.integers(max(covers, 1), covers + 9)
    return st.one_of(length.flatmap(neighborhoods), grids(covers))


@st.composite
def grids(draw, covers):
    """A `Grid` of two or three axes."""
    extents = [draw(st.integers(1, 5)) for _ in range(draw(st.integers(1, 2)))]
    shape = [-(-max(covers, 1) // int(np.prod(extents))), *extents]
    axes = [draw(positional() | neighborhoods(extent)) for extent in shape]
    return sr.Grid(shape, axes)


def residue(period):
    """A remainder of a division by `period`."""
    return st.integers(0, period - 1)
