"""The greatest of a row of scores by quickselect: no sort, and ties go to the smaller index.

Scores are compared as integers that order as they do, so that a NaN has a place: above all numbers.
"""

# mypy: allow-untyped-defs, allow-untyped-calls
from __future__ import annotations

from ._jit import inner


@inner
def code(score, bits, top):
    """An integer that orders as the score does; `bits` are the score's, `top` the greatest int."""
    if score != score:  # noqa: PLR0124
        return top - 1
    if score == 0:  # also -0.0, whose bits are the least
        return bits ^ bits
    return bits if bits >= 0 else bits ^ top


@inner
def choose(codes, keys, rest, seen, count, out):
    """Write the keys with the `count` greatest of `seen` codes to out, ascending, then -1.

    Keys ascend; `rest` is room for the codes that are still in question.
    """
    if seen <= count:
        for i in range(len(out)):
            out[i] = keys[i] if i < seen else -1
        return
    if count == 0:
        return
    for i in range(seen):
        rest[i] = codes[i]
    least = kth(rest, seen, count)
    spare = count
    for i in range(seen):
        spare -= codes[i] > least
    at = 0
    for i in range(seen):
        if codes[i] > least or (codes[i] == least and spare > 0):
            spare -= codes[i] == least
            out[at] = keys[i]
            at += 1
            if at == count:
                break


@inner
def kth(rest, seen, count):
    """The count-th greatest of rest[:seen], which is left in another order (Hoare's Find)."""
    low, high, wanted = 0, seen - 1, count - 1
    while low < high:
        a, b, c = rest[low], rest[(low + high) // 2], rest[high]
        pivot = max(min(a, b), min(max(a, b), c))
        i, j = low, high
        while i <= j:
            while rest[i] > pivot:
                i += 1
            while rest[j] < pivot:
                j -= 1
            if i <= j:
                rest[i], rest[j] = rest[j], rest[i]
                i += 1
                j -= 1
        if wanted <= j:
            high = j
        elif wanted >= i:
            low = i
        else:
            break
    return rest[wanted]
