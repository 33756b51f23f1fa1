"""A mask in words: what it is a case of, how queries and keys are aligned, who spells it how."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from sparse_ref._arrays import Bools
from sparse_ref.conventions.forms import Form
from sparse_ref.conventions.reading import _of_mask as forms_of_mask
from sparse_ref.conventions.reading import describe

FIRST = ("hf", "flash_attn", "sdpa", "onnx25", "llama4", "longformer", "natten", "duo_attention",
         "attention_gym_prefix")  # fmt: skip
SPELLED = 3  # spellings that are said


class Seen(NamedTuple):
    """A mask in words; `spelled` is how each library would be told, `alignment` where it shows."""

    words: str
    alignment: str | None
    spelled: dict[str, str | None]
    form: Form | None = None
    start: int | None = None

    def __str__(self) -> str:
        """The words and the first spellings.

        >>> str(seen_in(np.tri(5, dtype=bool) & ~np.tri(5, k=-3, dtype=bool)))
        'causal window of 3 keys: hf sliding_window=3, flash_attn window_size=(2, 0), ...'
        """
        names = [*FIRST, *(name for name in self.spelled if name not in FIRST)]
        said = [f"{name} {self.spelled[name]}" for name in names if self.spelled.get(name)]
        more = ", ..." if len(said) > SPELLED else ""
        return self.words + (f": {', '.join(said[:SPELLED])}{more}" if said else "")


def seen_in(mask: Bools) -> Seen:
    """The mask (q_len, kv_len) of one head in words.

    >>> seen_in(np.tri(2, 5, dtype=bool)).alignment
    'the first query stands at the first key (top-left)'
    >>> seen_in(np.tri(3, 5, k=2, dtype=bool)).words
    'causal'
    """
    m, n = mask.shape
    if not mask.any():
        return Seen("no key", None, {})
    usual = dict.fromkeys([n - m, 0])
    starts = [*usual, *(start for start in _starts(mask) if start not in usual and m != n)]
    found = [(form, start) for start in starts for form in forms_of_mask(mask, start)[:1]]
    if found:
        form, start = min(found, key=lambda one: _rank(one[0], usual=one[1] in usual))
        shows = any(other != form for other, _ in found) or len(found) < len(starts)
        alignment = _aligned(start, m, n) if m != n and shows else None
        return Seen(_words(form), alignment, describe(mask) if start in usual else {}, form, start)
    return _trimmed(mask) or Seen(_irregular(mask), None, {})


def _rank(form: Form, *, usual: bool) -> int:
    """Which of several readings of a mask is meant: what sees the past only, else what is even."""
    if form.right == 0 or not form.window:
        return 0 if usual else 2
    return 1 if form.left == form.right and usual else 3


def _starts(mask: Bools) -> list[int]:
    """Where the first query may stand if its last key, or its first, moves with it."""
    rows = np.flatnonzero(mask.any(1))
    high = mask.shape[1] - 1 - mask[rows, ::-1].argmax(1)
    moving = rows[high < mask.shape[1] - 1] if len(rows) else rows
    ends = {int(one) for one in (high - rows)[: len(moving)]}
    return [*ends] if len(ends) == 1 else []


def _aligned(start: int, m: int, n: int) -> str:
    if start == n - m:
        return "the last query stands at the last key (bottom-right)"
    if start == 0:
        return "the first query stands at the first key (top-left)"
    return f"the first query stands at key {start}: neither top-left nor bottom-right"


def _words(form: Form) -> str:
    if form.chunk is not None:
        return f"causal chunks of {form.chunk} keys" + (", and the one before" * form.back)
    if form.kernel is not None:
        return f"window of {form.kernel} keys that shifts at both ends"
    if form.prefix is not None:
        return f"causal, and the first {form.prefix} keys for all"
    left, right = form.left, form.right
    if form.sinks is not None and left is not None:
        return f"causal window of {left + 1} keys, and the first {form.sinks}"
    if right == 0:
        return "causal" if left is None else f"causal window of {_keys(left + 1)}"
    if left is None and right is None:
        return "every key"
    if left == right:
        return f"window of {left} keys on each side"
    sides = [("before", left), ("after", right)]
    return "window of " + " and ".join(
        f"{'all' if size is None else size} keys {where}" for where, size in sides
    )


def _keys(count: int) -> str:
    return f"{count} key" + "s" * (count != 1)


def _trimmed(mask: Bools) -> Seen | None:
    """The mask without the keys at its ends that nobody sees, and queries that see nothing."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    inner = mask[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    if inner.shape == mask.shape:
        return None
    start = int(rows[0] - columns[0]) + mask.shape[1] - mask.shape[0]
    forms = forms_of_mask(inner, start)
    if not forms:
        return None
    hidden = [*range(columns[0]), *range(columns[-1] + 1, mask.shape[1])]
    words = _words(forms[0])
    if hidden:
        words += f"; {len(hidden)} of {mask.shape[1]} keys, at the ends, are seen by nobody"
    return Seen(words, None, {}, forms[0], start)


def _irregular(mask: Bools) -> str:
    """A mask of no known form: by distances where these decide, or by counts."""
    m, n = mask.shape
    distance = (np.arange(m)[:, None] + n - m) - np.arange(n)
    shown = np.unique(distance[mask])
    counts = mask.sum(1)
    if not np.isin(distance[~mask], shown).any() and len(shown) <= 64:
        step = np.unique(np.diff(shown))
        if len(step) == 1 and step[0] > 1:
            return f"the distances {shown[0]}, {shown[1]}, ..., {shown[-1]}"
        return f"{len(shown)} distances: {', '.join(map(str, shown[:12]))}" + ", ..." * (
            len(shown) > 12
        )
    everyone = np.flatnonzero(mask.all(0))
    words = f"no known form: {counts.min()} to {counts.max()} keys a query"
    ahead = (distance < 0) & mask
    words += ", none ahead" if not ahead.any() else ""
    return words + (f", keys {_list(everyone)} for all" if len(everyone) else "")


def _list(numbers: object) -> str:
    shown = [str(one) for one in np.asarray(numbers)[:8]]
    return ", ".join(shown) + ", ..." * (len(np.asarray(numbers)) > 8)
