"""LongNet: segments and dilations that grow together."""

from __future__ import annotations

from collections.abc import Sequence

from sparse_ref._arrays import integer, integers
from sparse_ref.patterns import Causal, Chunked, KeyStride, Multi, Pattern, PerHead, RowStride


def longnet(
    segments: Sequence[int], dilations: Sequence[int], heads: int, causal: bool = True
) -> Pattern:
    """Dilated attention: every r-th token of a segment (LongNet, Ding et al., arXiv:2307.02486).

    Queries and keys of a branch are in one segment of w tokens and at the head's place modulo r.
    The branches are joined by their log-sum-exp, which is one softmax where a key counts once
    for each branch that sees it: a `Multi`. Which place a head has differs: torchscale's code
    gives heads 0..H/r - 1 the first place and so on, as here; the paper says head % r. In
    bidirectional mode torchscale also attends to the zeros that pad the last segment.

    Parameters
    ----------
    segments, dilations : ints >= 1, as many of each
        w and r of the branches; a token is covered by all heads only where some r is 1.
    heads : int >= 1
    causal : bool

    >>> longnet([2, 4], [1, 2], heads=2).counts(4, 4)
    array([[[2, 0, 0, 0],
            [1, 1, 0, 0],
            [1, 0, 2, 0],
            [0, 0, 1, 1]],
    <BLANKLINE>
           [[1, 0, 0, 0],
            [1, 2, 0, 0],
            [0, 0, 1, 0],
            [0, 1, 1, 2]]])
    """
    if not isinstance(causal, bool):
        raise TypeError(f"causal must be True or False, got {causal!r}")
    lengths = integers("segments", segments).tolist()
    rates = integers("dilations", dilations).tolist()
    if not lengths:
        raise ValueError("segments must hold at least one length, got none")
    if len(lengths) != len(rates):
        raise ValueError(
            f"dilations must be as many as the {len(lengths)} segments, got {len(rates)}"
        )
    branches = [
        (integer(f"segments[{i}]", w, 1), integer(f"dilations[{i}]", r, 1))
        for i, (w, r) in enumerate(zip(lengths, rates, strict=True))
    ]
    count = integer("heads", heads, 1)
    several = [
        Multi([_branch(w, r, head // -(-count // r)) for w, r in branches]) for head in range(count)
    ]
    pattern = several[0] if count == 1 else PerHead(several)
    return pattern & Causal() if causal else pattern


def _branch(segment: int, dilation: int, place: int) -> Pattern:
    """Tokens of one segment, both at `place` modulo the dilation within it."""
    if dilation == 1:
        return Chunked(segment)
    kept = range(place, segment, dilation)
    return Chunked(segment) & RowStride(segment, kept) & KeyStride(segment, kept)
