"""Patterns to look at: text pictures, and the comparison of two patterns in words."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from sparse_ref._arrays import Bools, array, integer

from .pattern import Pattern


def draw(pattern: Pattern | object, q_len: int, kv_len: int | None = None) -> str:
    """The pattern as text, a line a query: `#` attends, `.` does not.

    Parameters
    ----------
    pattern : Pattern, or a bool mask (q_len, kv_len) or (heads, q_len, kv_len)
    q_len, kv_len : int
        Numbers of queries and keys; kv_len defaults to q_len. The queries are the last positions.

    Several heads are drawn below each other, each under its number.

    >>> from sparse_ref import Causal, SlidingWindow
    >>> print(draw(Causal() & SlidingWindow(2, 0), 5))
    # . . . .
    # # . . .
    # # # . .
    . # # # .
    . . # # #
    """
    heads = _mask(pattern, q_len, q_len if kv_len is None else kv_len)
    pictures = ["\n".join(" ".join(row) for row in np.where(head, "#", ".")) for head in heads]
    if len(pictures) == 1:
        return pictures[0]
    return "\n".join(f"head {h}\n{picture}" for h, picture in enumerate(pictures))


@dataclass(frozen=True)
class Comparison:
    """How b differs from a: `str()` of it is the picture and the words.

    >>> from sparse_ref import Causal, Full
    >>> found = compare(Causal(), Full(), 3)
    >>> found.only_b, found.first, found.equal
    (3, (0, 0, 1), False)
    """

    only_a: int
    only_b: int
    both: int
    first: tuple[int, int, int] | None
    sentence: str
    picture: str

    @property
    def equal(self) -> bool:
        """Whether the two allow the same pairs."""
        return self.first is None

    def __str__(self) -> str:
        counts = f"both {self.both}, only a {self.only_a}, only b {self.only_b}"
        lines = [self.picture, counts]
        if self.first is not None:
            lines.append(f"first difference at (head, query, key) = {self.first}")
        return "\n".join([*lines, self.sentence])


def compare(
    a: Pattern | object, b: Pattern | object, q_len: int, kv_len: int | None = None
) -> Comparison:
    """Where and how two patterns (or bool masks) differ.

    In the picture `#` is allowed by both, `-` by a only, `+` by b only, `.` by none.

    >>> from sparse_ref import SlidingWindow
    >>> print(compare(SlidingWindow(1, 0), SlidingWindow(2, 0), 4))
    # . . .
    # # . .
    + # # .
    . + # #
    both 7, only a 0, only b 2
    first difference at (head, query, key) = (0, 2, 0)
    b sees 1 more key on the left
    """
    kv_len = q_len if kv_len is None else kv_len
    masks = [_mask(x, q_len, kv_len) for x in (a, b)]
    heads = math.lcm(*(len(mask) for mask in masks))
    left, right = (np.tile(mask, (heads // len(mask), 1, 1)) for mask in masks)
    differ = np.argwhere(left != right)
    first = None if not len(differ) else tuple(int(x) for x in differ[0])
    signs = np.array([".", "-", "+", "#"])[left.astype(int) + 2 * right]
    pictures = ["\n".join(" ".join(row) for row in head) for head in signs]
    if heads > 1:
        pictures = [f"head {h}\n{picture}" for h, picture in enumerate(pictures)]
    return Comparison(
        only_a=int((left & ~right).sum()),
        only_b=int((right & ~left).sum()),
        both=int((left & right).sum()),
        first=first,  # type: ignore[arg-type]
        sentence=_relation(left, right),
        picture="\n".join(pictures),
    )


def _mask(pattern: object, q_len: int, kv_len: int) -> Bools:
    if isinstance(pattern, Pattern):
        return pattern.mask(q_len, kv_len)
    mask = array("mask", pattern)
    shape = (integer("q_len", q_len), integer("kv_len", kv_len))
    if mask.dtype != bool or mask.ndim not in (2, 3) or mask.shape[-2:] != shape:
        raise ValueError(
            f"mask must be bool of shape {shape} or (heads, *{shape}), "
            f"got {mask.dtype} {mask.shape}"
        )
    return mask.reshape(-1, *shape)


def _relation(a: Bools, b: Bools) -> str:
    """One sentence on how b differs from a, the commonest mistakes by name."""
    if (a == b).all():
        return "a and b are the same"
    for shift in (1, -1):
        side = "right" if shift > 0 else "left"
        inner = np.s_[..., 1:] if shift > 0 else np.s_[..., :-1]  # the border uncovers a column
        if (_shifted(a, shift) == b)[inner].all():
            return f"b is a shifted by one key to the {side}"
        for far in range(1, 4):
            keys = f"{far} {{}} key{'s' * (far > 1)} on the {side}"
            grown = [a, b]
            for i in range(2):
                for _ in range(far):
                    grown[i] = grown[i] | _shifted(grown[i], shift)
            if (_edge(grown[0], b) == b).all() and not (a & ~b).any():
                return f"b sees {keys.format('more')}"
            if (_edge(grown[1], a) == a).all() and not (b & ~a).any():
                return f"b sees {keys.format('fewer')}"
    if not (a & ~b).any():
        return "b allows all that a does, and more"
    if not (b & ~a).any():
        return "b allows less than a"
    return "each allows pairs that the other does not"


def _shifted(mask: Bools, by: int) -> Bools:
    out = np.zeros_like(mask)
    if by > 0:
        out[..., by:] = mask[..., :-by]
    else:
        out[..., :by] = mask[..., -by:]
    return out


def _edge(grown: Bools, target: Bools) -> Bools:
    """`grown`, without rows where the target is empty (a grown window may have nothing to see)."""
    return grown & target.any(axis=-1, keepdims=True)
