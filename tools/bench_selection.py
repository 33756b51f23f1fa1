"""What choosing costs: a selector and its attention, over a score product and that attention."""

from __future__ import annotations

import statistics
from collections.abc import Iterator
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

import sparse_ref as sr

from . import measure
from .limit import Limit, row
from .peers import needed
from .race import Row, Settings, WrongError

ROWS = 512  # queries of a product
ASKED = 5  # queries that the oracle is asked about, the last ones
SAME = 0.99  # of the choices: scores that are equal but for rounding may change places
RUNS = 3

Arrays = tuple[NDArray[np.float32], ...]


def selection(settings: Settings) -> Iterator[Row]:
    """DSA and MSA at 16,384 tokens, random inputs: an eighth of the keys, at least, is chosen."""
    n = settings.tokens or (2048 if settings.quick else 16_384)
    rng = np.random.default_rng(0)
    index = _drawn(rng, (1, 64, n, 128), (1, n, 128), (1, n, 64))
    # absorbed heads of DeepSeek-V3.2, an eighth of them
    arrays = _drawn(rng, (1, 16, n, 576), (1, 1, n, 576), (1, 1, n, 512))
    what = "DSA, 64 index heads of 128, 16 heads of 576 and 512"
    yield _row(what, "lightning_indexer", max(1, n // 8), index, arrays, settings)
    index = _drawn(rng, (1, 2, n, 128), (1, n, 128))
    arrays = _drawn(rng, (1, 16, n, 128), (1, 2, n, 128), (1, 2, n, 128))
    what = "MSA, 2 index heads of 128, 16 heads of 128 in 2 groups"
    yield _row(what, "msa", max(1, n // 1024), index, arrays, settings)


def _drawn(rng: np.random.Generator, *shapes: tuple[int, ...]) -> Arrays:
    return tuple(rng.standard_normal(shape, np.float32) for shape in shapes)


def _row(
    what: str, name: str, count: int, index: Arrays, arrays: Arrays, settings: Settings
) -> Row:
    """One method, whose parts are timed in turn."""
    ours = needed("sparse_ref.kernels", "numba")
    choose = partial(getattr(ours, name), count=count)
    chosen = choose(*index)
    attend = partial(ours.attention, *arrays, chosen)
    _judge(partial(getattr(sr.selection, name), count=count), index, chosen, arrays, attend().out)
    calls = {
        "choose": partial(choose, *index),
        "attend": attend,
        "product": partial(_product, *index[:2]),
    }
    times = measure.in_turn(calls, min(RUNS, settings.runs))
    took = {part: statistics.median(each) for part, each in times.items()}
    value = (took["choose"] + took["attend"]) / (took["product"] + took["attend"])
    what = f"{what}, n = {index[0].shape[2]:,}: all of it over the score product and the attention"
    return row(what, value, "", 2, seconds=took)


def _product(q: NDArray[np.float32], k: NDArray[np.float32]) -> None:
    """The scores of all heads, the causal half of them, by NumPy's product."""
    n = q.shape[2]
    room = np.empty(ROWS * n, dtype=np.float32)
    for start in range(0, n, ROWS):
        stop = min(start + ROWS, n)
        out = room[: (stop - start) * stop].reshape(stop - start, stop)
        for head in q[0]:
            np.matmul(head[start:stop], k[0, :stop].T, out=out)


def _judge(
    readable: Any, index: Arrays, chosen: sr.Selection, arrays: Arrays, out: NDArray[Any]
) -> None:
    """The last queries are asked of the readable selector and of the oracle."""
    queries, keys, *weights = index
    want = readable(queries[:, :, -ASKED:], keys, *(x[:, -ASKED:] for x in weights))
    mine = sr.Selection(
        chosen.indices[:, :, -ASKED:], heads=chosen.heads, kv_heads=chosen.kv_heads,
        key_block=chosen.key_block, visible=chosen.visible,
    )  # fmt: skip
    n = keys.shape[1]
    both = np.count_nonzero(mine.mask(ASKED, n) & want.mask(ASKED, n))
    if both < SAME * np.count_nonzero(want.mask(ASKED, n)):
        raise WrongError(f"only {both} choices of the last {ASKED} queries are the readable ones")
    q, k, v = arrays
    want_out, bound = (
        answer(q[:, :, -ASKED:], k, v, mine).out for answer in (sr.attention, sr.error_bound)
    )
    if not (np.abs(out[:, :, -ASKED:] - want_out) <= bound).all():
        raise WrongError("the attention over them is not within sr.error_bound")


SELECTION_LIMITS = (Limit("selection", "DSA and MSA: choosing and attending", selection),)
