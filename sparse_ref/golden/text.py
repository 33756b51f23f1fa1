"""Masks and numbers as the golden files write them, for people and for programs without NumPy."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

RUN = re.compile(r"([1-9]\d{0,6})?([.#b-z])")
TIMES = {".": 0, "#": 1} | {chr(ord("a") + i - 1): i for i in range(2, 27)}


def counts(rows: Sequence[str], width: int) -> NDArray[np.uint8]:
    """How often each key counts, from text: '.' never, '#' once, 'b' twice, 'c' three times, ...

    A number repeats the character after it.

    >>> counts(["#.b", "2#."], 3)
    array([[1, 0, 2],
           [1, 1, 0]], dtype=uint8)
    """
    found = np.zeros((len(rows), width), np.uint8)
    for i, row in enumerate(rows):
        runs = RUN.findall(row)
        times = [int(number or 1) for number, _ in runs]
        if "".join(a + b for a, b in runs) != row or sum(times) != width:
            raise ValueError(f"mask must have rows of {width} keys, got {row[:60]!r}")
        found[i] = np.repeat([TIMES[sign] for _, sign in runs], times)
    return found


def numbers(text: str, count: int) -> NDArray[np.float64]:
    """Numbers in hexadecimal, as C's printf writes them with %a, and nan, inf, -inf.

    >>> numbers("0x1.8p+0 -0x1p-6 nan", 3).tolist()
    [1.5, -0.015625, nan]
    """
    words = text.split()
    if len(words) != count:
        raise ValueError(f"values must be {count} numbers, got {len(words)}")
    try:
        values = [float.fromhex(word) for word in words]
    except (ValueError, OverflowError) as error:
        raise ValueError(f"values must be hexadecimal numbers, got {text[:60]!r}") from error
    return np.array(values, np.float64)


def drawn(times: NDArray[Any], *, runs: bool = False) -> list[str]:
    """The text of a mask: what `counts` reads.

    >>> drawn(np.array([[1, 1, 0], [0, 2, 2]])), drawn(np.array([[1, 1, 0]]), runs=True)
    (['##.', '.bb'], ['2#.'])
    """
    signs = {number: sign for sign, number in TIMES.items()}
    rows = ["".join(signs[int(x)] for x in row) for row in times]
    if runs:
        rows = [re.sub(r"((.)\2+)", lambda m: f"{len(m[1])}{m[2]}", row) for row in rows]
    return rows


def hexadecimal(values: NDArray[Any]) -> str:
    """The text of numbers: what `numbers` reads, exactly.

    >>> hexadecimal(np.array([1.5, -1 / 64, -np.inf]))
    '0x1.8p+0 -0x1p-6 -inf'
    """
    words = (float(x).hex() for x in np.ravel(values))
    return " ".join(re.sub(r"\.?0+p", "p", word) for word in words)
