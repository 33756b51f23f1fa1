"""Judging selectors: what another implementation chooses, row by row, and which mistake it makes.

The cases are small and dyadic, so that scores are exact in float32 and ties are ties.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np

from sparse_ref import selection

from .catalogue.selecting import ALL, SELECTING
from .choosing import chosen, rotated

Sets = list[frozenset[int]]


class SelectorCase(NamedTuple):
    """One question to a selector: its arrays and options, what it is for."""

    id: str
    selector: str
    arrays: tuple[Any, ...]
    options: dict[str, Any]

    def expected(self) -> selection.Selection:
        """What `sparse_ref.selection` chooses."""
        made: selection.Selection = getattr(selection, self.selector)(*self.arrays, **self.options)
        return made


class Wrong(NamedTuple):
    """A row in which other keys or blocks were chosen."""

    case: str
    row: tuple[int, int, int]  # batch row, list, query
    missing: list[int]
    extra: list[int]

    def __str__(self) -> str:
        return f"{self.case}: row {self.row} lacks {self.missing}, and has {self.extra} instead"


class SelectorReport(NamedTuple):
    """The verdict on a selector."""

    selector: str
    cases: int
    wrong: tuple[Wrong, ...]  # the first row of each case that fails
    diagnoses: tuple[str, ...]  # mistakes that choose the same in every case

    @property
    def passed(self) -> bool:
        return not self.wrong

    def __str__(self) -> str:
        if self.passed:
            return f"{self.selector}: {self.cases} cases, all rows as they should be"
        known = {mistake.id: mistake.story for mistake in SELECTING}
        names = [f"{name}: {known[name]}" for name in self.diagnoses] or ["no known mistake"]
        lines = [f"{self.selector}: {len(self.wrong)} of {self.cases} cases fail", *names]
        return "\n  ".join([*lines, *map(str, self.wrong[:3])])


def check_selector(
    fn: Callable[..., Any], selector: str, cases: list[SelectorCase] | None = None
) -> SelectorReport:
    """Judge fn(*arrays, **options), which chooses as `sparse_ref.selection.<selector>` is to.

    Parameters
    ----------
    fn : callable
        Takes what the selector takes, and answers a Selection or indices (b, s, rows, k), -1
        padded, in any order.
    selector : str
        One of topk_keys, topk_blocks, lightning_indexer, qsa, msa, moba, nsa_blocks.
    cases : list of SelectorCase, optional
        Default, `selector_cases(selector)`.

    >>> from sparse_ref import kernels, selection
    >>> print(check_selector(selection.moba, "moba"))
    moba: 6 cases, all rows as they should be
    >>> late = lambda q, k, *, count, **more: selection.moba(q, k, count=count + 1, **more)
    >>> check_selector(late, "moba").passed
    False
    """
    cases = selector_cases(selector) if cases is None else cases
    wrong, possible = [], [one for one in SELECTING if selector in one.selectors]
    for case in cases:
        answer = fn(*case.arrays, **case.options)
        got = sets(answer.indices if isinstance(answer, selection.Selection) else answer)
        want = case.expected().indices
        wrong += [bad] if (bad := _first_wrong(case.id, got, sets(want), want.shape)) else []
        possible = [one for one in possible if sets(chosen(case, **one.wrong)) == got]
    found = tuple(one.id for one in possible) if wrong else ()
    return SelectorReport(selector, len(cases), tuple(wrong), found)


def selector_cases(selector: str) -> list[SelectorCase]:
    """The cases of a selector: ties, few visible keys, ragged blocks, padding, a decode step."""
    if selector not in ALL:
        raise ValueError(f"selector must be one of {', '.join(ALL)}, got {selector!r}")
    return list(_cases(selector))


def sets(indices: Any) -> Sets:
    """Every row of indices as a set, without padding."""
    table = np.asarray(indices)
    rows = table.reshape(-1, table.shape[-1]).tolist() if table.size else []
    rows = rows or [[]] * int(np.prod(table.shape[:-1]))
    return [frozenset(i for i in row if i >= 0) for row in rows]


def _first_wrong(case: str, got: Sets, want: Sets, shape: tuple[int, ...]) -> Wrong | None:
    if len(got) != len(want):
        return Wrong(case, (len(got), len(want), 0), [], [])
    for i, (mine, right) in enumerate(zip(got, want, strict=True)):
        if mine != right:
            row = tuple(int(x) for x in np.unravel_index(i, shape[:-1]))
            return Wrong(case, row, sorted(right - mine), sorted(mine - right))  # type: ignore[arg-type]
    return None


def _cases(selector: str) -> Iterator[SelectorCase]:
    sizes = {"plain": (29, 29, 8), "ties": (31, 31, 2), "zeros": (29, 29, 0), "decode": (3, 37, 4)}
    sizes |= {"all": (17, 17, 8), "padded": (23, 23, 8)}
    for name, (m, n, spread) in sizes.items():
        rng = np.random.default_rng([*name.encode(), *selector.encode()])
        arrays, options = _drawn(rng, selector, m, n, spread)
        if name == "all":
            key = "budget" if selector == "qsa" else "count"
            options[key] = 64
        if selector == "msa":
            options["local"] = {"ties": 2, "decode": 0, "padded": 0}.get(name, 1)
        if name == "padded":
            options |= {"q_start": -5, "kv_positions": np.arange(n) - 5}
        yield SelectorCase(f"{selector}/{name}", selector, arrays, options)


def _drawn(
    rng: np.random.Generator, selector: str, m: int, n: int, spread: int
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Dyadic arrays, and the options of the selector."""

    def draw(*shape: int) -> Any:
        return (rng.integers(-spread, spread + 1, shape) / 4).astype(np.float32)

    if selector in ("lightning_indexer", "msa", "qsa"):
        heads = 2 if selector == "msa" else 3
        arrays: tuple[Any, ...] = (draw(2, heads, m, 4), draw(2, n, 4))
        more: dict[str, dict[str, Any]] = {
            "lightning_indexer": {"count": 5},
            "qsa": {"budget": 8, "prepare": rotated},
        }
        if selector == "lightning_indexer":
            arrays = (*arrays, draw(2, m, heads))
        return arrays, more.get(selector, {"count": 3, "block_size": 4, "local": 1})
    arrays = draw(2, 4, m, 4), draw(2, 2, n, 4)
    options: dict[str, dict[str, Any]] = {
        "topk_keys": {"count": 5},
        "topk_blocks": {"count": 2, "block_size": 4, "pool": "max"},
        "moba": {"count": 3, "block_size": 4},
        "nsa_blocks": {"count": 3, "block_size": 4, "window": 8, "stride": 2, "local": 1},
    }
    return arrays, dict(options[selector])
