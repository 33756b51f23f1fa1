"""Mistakes of selectors: other keys than the method would choose."""

from __future__ import annotations

from typing import Any, NamedTuple


class SelectorMistake(NamedTuple):
    """One entry: what is done wrong, in which selectors, and how `selecting.chosen` does it."""

    id: str  # permanent
    story: str
    link: str  # to public code or an issue of this kind; empty where none is known
    selectors: tuple[str, ...]
    wrong: dict[str, Any]


KEYS = ("topk_keys", "lightning_indexer")
OWN = ("moba", "msa", "nsa_blocks")
ALL = (*KEYS, "topk_blocks", *OWN, "qsa")
TRANSFORMERS = "https://github.com/huggingface/transformers/blob/main/src/transformers/models/"

SELECTING = tuple(
    SelectorMistake(*entry)
    for entry in (
        ("future-index", "rows that see fewer than k keys are filled up with keys of the future",
         TRANSFORMERS + "deepseek_v32/modeling_deepseek_v32.py",
         (*KEYS, "topk_blocks", *OWN), {"fill": True}),
        ("dense-when-short", "where k reaches the number of keys all are listed, seen or not",
         "", (*KEYS, "topk_blocks"), {"dense": True}),
        ("tie-to-last", "of equal scores the greater index is taken",
         "https://github.com/pytorch/pytorch/issues/133542", ALL, {"last": True}),
        ("current-block-missing", "the query's own block is not forced, and may be left out",
         "", OWN, {"local": False}),
        ("local-block-extra", "one block more than asked for is forced, at the others' cost",
         "https://github.com/OpenBMB/infllmv2_cuda_impl", OWN, {"more": 1}),
        ("first-block-missing", "the first block is not forced", "", ("nsa_blocks",),
         {"initial": False}),
        ("compressed-early", "a compressed key is seen one token before its window is complete",
         "", ("nsa_blocks",), {"late": -1}),
        ("compressed-late", "a compressed key is seen one token after its window is complete",
         "", ("nsa_blocks",), {"late": 1}),
        ("importance-forward", "Eq. 9 is read with + m + n: a block is scored by what follows it",
         "https://github.com/ohdearquant/lattice/pull/6", ("nsa_blocks",), {"signs": (1, 1)}),
        ("importance-backward", "Eq. 9 is taken from 0 to the letter, though it counts from 1",
         "", ("nsa_blocks",), {"signs": (-1, -1)}),
        ("group-mean", "queries of a group are averaged, instead of their probabilities summed",
         "", ("nsa_blocks",), {"mean_q": True}),
        ("rope-before-pooling", "keys are normalised and rotated before they are pooled",
         "", ("qsa",), {"early": True}),
        ("tail-missing", "the visible keys after the last whole group are left out",
         "", ("qsa",), {"tail": False}),
        ("groups-in-budget", "the budget counts groups, not keys", "", ("qsa",), {"groups": True}),
        ("relu-missing", "scores of index heads are summed as they are, without ReLU",
         "https://github.com/fla-org/flash-linear-attention/blob/main/fla/ops/dsa/naive.py",
         ("lightning_indexer", "qsa"), {"relu": False}),
        ("weights-missing", "index heads count alike", "", ("lightning_indexer",),
         {"weighted": False}),
        ("pooled-future", "a block is scored by all its keys, those of the future among them",
         "", ("topk_blocks", "msa"), {"pool_all": True}),
        ("pooled-other", "blocks are pooled by the mean where the greatest is asked for, or back",
         "", ("topk_blocks", "msa", "moba"), {"swap": True}),
    )
)  # fmt: skip
