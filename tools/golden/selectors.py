"""The selectors of the golden cases: names, numbers, and what they are for."""

from __future__ import annotations

import sparse_ref as sr

from .selected import Selector

TIES = "SelectionTies"  # with the probes that make them
FORCED = ("Selection", "SelectionForced")
INDEXED = ("Selection", "SelectionIndexer")
EVICTED = ("Selection", "SelectionEviction")
NAMED = {
    "topk-keys-3": Selector(
        "topk_keys", {"count": 3}, "of the keys up to its own, the 3 of greatest q . k",
        ("Selection",),
    ),
    "topk-keys-64": Selector(
        "topk_keys", {"count": 64}, "of the keys up to its own, the 64 of greatest q . k: all",
        ("Selection",),
    ),
    "topk-keys-both": Selector(
        "topk_keys", {"count": 4}, "of all keys, the 4 of greatest q . k", ("Selection",),
        sr.Full(),
    ),
    "topk-keys-window": Selector(
        "topk_keys", {"count": 2}, "of its own key and the 5 before, the 2 of greatest q . k",
        ("Selection",), sr.Causal() & sr.SlidingWindow(5, 0),
    ),
    "topk-keys-0": Selector("topk_keys", {"count": 0}, "no key", ("Selection",)),
    "topk-blocks-mean": Selector(
        "topk_blocks", {"count": 2, "block_size": 4, "pool": "mean"},
        "up to its own key, the 2 blocks of 4 keys whose mean q . k is greatest",
        ("Selection", "SelectionBlocks"),
    ),
    "topk-blocks-max": Selector(
        "topk_blocks", {"count": 2, "block_size": 3, "pool": "max"},
        "up to its own key, the 2 blocks of 3 keys with the greatest q . k",
        ("Selection", "SelectionBlocks"),
    ),
    "topk-blocks-9": Selector(
        "topk_blocks", {"count": 9, "block_size": 4, "pool": "max"},
        "up to its own key, the 9 blocks of 4 keys with the greatest q . k: all",
        ("Selection", "SelectionBlocks"),
    ),
    "moba-1": Selector(
        "moba", {"count": 1, "block_size": 4}, "up to its own key, its own block of 4 keys",
        (*FORCED, "SelectionBlocks"),
    ),
    "moba-2": Selector(
        "moba", {"count": 2, "block_size": 4},
        "up to its own key, its own block of 4 keys, and the other of greatest mean q . k",
        (*FORCED, "SelectionBlocks"),
    ),
    "moba-9": Selector(
        "moba", {"count": 9, "block_size": 4},
        "up to its own key, the 9 blocks of 4 keys of greatest mean q . k, its own first: all",
        (*FORCED, "SelectionBlocks"),
    ),
    "dsa-3": Selector(
        "lightning_indexer", {"count": 3},
        "of the keys up to its own, the 3 that the lightning indexer scores most", INDEXED, index=3,
    ),
    "dsa-64": Selector(
        "lightning_indexer", {"count": 64},
        "of the keys up to its own, the 64 that the lightning indexer scores most: all", INDEXED,
        index=3,
    ),
    "dsa-window": Selector(
        "lightning_indexer", {"count": 2},
        "of its own key and the 5 before, the 2 that the lightning indexer scores most", INDEXED,
        sr.Causal() & sr.SlidingWindow(5, 0), index=2,
    ),
    "msa-2": Selector(
        "msa", {"count": 2, "block_size": 4, "local": 1},
        "up to its own key, its own block of 4 keys, and the other with the greatest index score",
        (*INDEXED, "SelectionBlocks", "SelectionForced"), index=0,
    ),
    "msa-2-free": Selector(
        "msa", {"count": 2, "block_size": 3, "local": 0},
        "up to its own key, the 2 blocks of 3 keys with the greatest index score",
        (*INDEXED, "SelectionBlocks"), index=0,
    ),
    "msa-3-local-2": Selector(
        "msa", {"count": 3, "block_size": 2, "local": 2},
        "up to its own key, its own block of 2 keys, the one before, and the other with the "
        "greatest index score", (*INDEXED, "SelectionBlocks", "SelectionForced"), index=0,
    ),
    "msa-9": Selector(
        "msa", {"count": 9, "block_size": 4, "local": 1},
        "up to its own key, the 9 blocks of 4 keys with the greatest index score, its own "
        "first: all", (*INDEXED, "SelectionBlocks", "SelectionForced"), index=0,
    ),
    "qsa-4": Selector(
        "qsa", {"budget": 4, "ratio": 2},
        "of the keys up to its own, cut into pairs, the 2 pairs of greatest score, and what is "
        "left over", (*INDEXED, "SelectionTail"), index=3,
    ),
    "qsa-8-of-4": Selector(
        "qsa", {"budget": 8, "ratio": 4},
        "of the keys up to its own, cut into fours, the 2 fours of greatest score, and what is "
        "left over", (*INDEXED, "SelectionTail"), index=2,
    ),
    "qsa-0": Selector(
        "qsa", {"budget": 0, "ratio": 4},
        "of the keys up to its own, cut into fours, what is left over", (*INDEXED, "SelectionTail"),
        index=2,
    ),
    "qsa-64": Selector(
        "qsa", {"budget": 64, "ratio": 4},
        "all keys up to its own: 16 fours, and what is left over", (*INDEXED, "SelectionTail"),
        index=2,
    ),
    "nsa-3": Selector(
        "nsa_blocks",
        {"count": 3, "block_size": 4, "window": 4, "stride": 2, "initial": 1, "local": 1},
        "up to its own key, the first block of 4 keys, its own, and the most important other",
        (*FORCED, "SelectionBlocks", "SelectionCompressed"),
    ),
    "nsa-2-wide": Selector(
        "nsa_blocks",
        {"count": 2, "block_size": 2, "window": 6, "stride": 2, "initial": 0, "local": 1},
        "up to its own key, its own block of 2 keys, and the most important other",
        (*FORCED, "SelectionBlocks", "SelectionCompressed"),
    ),
    "nsa-9": Selector(
        "nsa_blocks",
        {"count": 9, "block_size": 4, "window": 4, "stride": 4, "initial": 1, "local": 2},
        "up to its own key, the 9 most important blocks of 4 keys: all",
        (*FORCED, "SelectionBlocks", "SelectionCompressed"),
    ),
    "h2o-2-3": Selector(
        "h2o", {"heavy": 2, "recent": 3, "prompt": 1},
        "itself, the last 3 keys of the cache, and its 2 heavy hitters", EVICTED, text=True,
    ),
    "h2o-3-0": Selector(
        "h2o", {"heavy": 3, "recent": 0, "prompt": 1}, "itself, and the 3 heavy hitters", EVICTED,
        text=True,
    ),
    "h2o-1-2-prompt": Selector(
        "h2o", {"heavy": 1, "recent": 2, "prompt": 5},
        "the first 5 queries all keys up to their own; then itself, the last 2 keys of the cache, "
        "and its heavy hitter", EVICTED, text=True,
    ),
    "h2o-9-9": Selector(
        "h2o", {"heavy": 9, "recent": 9, "prompt": 1},
        "all keys up to its own: the cache is never full", EVICTED, text=True,
    ),
}  # fmt: skip
