"""Golden cases of keys chosen by content, against golden/SPEC.md section 7 written out in loops."""

import json
import math
from typing import NamedTuple

import numpy as np
import pytest

import sparse_ref as sr
from sparse_ref.conformance import choosing
from sparse_ref.conformance.catalogue.selecting import SELECTING
from sparse_ref.golden import GoldenError, load
from tests.golden_sets import GOLDEN, seal_sums
from tools.golden.selected import SELECTORS


@pytest.fixture(scope="module")
def cases():
    return [case for case in load(GOLDEN) if case.selection is not None]


def batch_row(case, name, i, default):
    value = case.attributes.get(name, default)
    return value[i] if np.ndim(value) > np.ndim(default) else value


def best(score, count, first=()):
    """The `count` of greatest score, those that come first before all; ties to the smaller."""
    order = sorted(score, key=lambda x: (x not in first, -score[x], x))
    return set(order[:count])


def dot(a, b):
    return sum(x * y for x, y in zip(a, b, strict=True))


def softmax(scores):
    """{key: probability}, of {key: score}."""
    peak = max(scores.values(), default=0.0)
    weights = {x: math.exp(s - peak) for x, s in scores.items()}
    return {x: w / sum(weights.values()) for x, w in weights.items()}


def by_keys(ask):
    return best(ask.scores, ask.given["count"])


def by_blocks(ask):
    """topk_blocks, moba and msa: blocks by the mean or the greatest of their keys."""
    size, name, blocks = ask.given["block_size"], ask.given["selector"], {}
    for key in ask.seen:
        blocks.setdefault(key // size, []).append(ask.scores[key])
    greatest = name == "msa" or ask.given.get("pool") == "max"
    score = {x: max(own) if greatest else sum(own) / len(own) for x, own in blocks.items()}
    local = ask.given.get("local", int(name == "moba"))
    own = ask.position // size
    kept = best(score, ask.given["count"], range(own - local + 1, own + 1))
    return {key for key in ask.seen if key // size in kept}


def by_groups(ask):
    """qsa, and the keys that make no whole group."""
    ratio, seen = ask.given["ratio"], sorted(ask.seen)
    whole = len(seen) // ratio * ratio
    groups = [seen[i : i + ratio] for i in range(0, whole, ratio)]
    score = {}
    for i, group in enumerate(groups):
        mean = [sum(x) / ratio for x in zip(*(ask.keys[key] for key in group), strict=True)]
        score[i] = sum(max(dot(q, mean), 0) for q in ask.queries)
    kept = best(score, ask.given["budget"] // ratio)
    return {key for i in kept for key in groups[i]} | {*seen[whole:]}


def importance(ask):
    """nsa: of each block, by the softmax over compressed keys."""
    window, stride = ask.given["window"], ask.given["stride"]
    size, seen = ask.given["block_size"], {*ask.seen}
    total = dict.fromkeys(sorted({key // size for key in seen}), 0.0)
    for q in ask.queries:
        scores = {}
        for c in range(max(ask.keys, default=0) // stride + 1):
            part = range(c * stride, c * stride + window)
            if seen.issuperset(part):
                mean = [sum(x) / window for x in zip(*(ask.keys[key] for key in part), strict=True)]
                scores[c] = dot(q, mean) / math.sqrt(len(q))
        p = softmax(scores)
        for block in total:
            for m in range(size // stride):
                for n in range(window // stride):
                    total[block] += p.get(size // stride * block + m - n, 0.0)
    return total


def by_importance(ask):
    size, own = ask.given["block_size"], ask.position // ask.given["block_size"]
    first = {*range(ask.given["initial"]), *range(own - ask.given["local"] + 1, own + 1)}
    score = importance(ask)
    kept = best(score, ask.given["count"], first)
    ask.margins += margins(score, kept, first)
    return {key for key in ask.seen if key // size in kept}


def margins(score, kept, first=()):
    """How much more, in parts of it, the last one kept scores than the first one that is not."""
    last = min((score[x] for x in kept if x not in first), default=None)
    best_other = max((s for x, s in score.items() if x not in kept), default=None)
    return [] if None in (last, best_other) else [(last - best_other) / max(last, 1e-300)]


RULES = {
    "topk_keys": by_keys, "lightning_indexer": by_keys, "topk_blocks": by_blocks,
    "moba": by_blocks, "msa": by_blocks, "qsa": by_groups, "nsa_blocks": by_importance,
}  # fmt: skip


class Ask:
    """One query of one head of a case: the keys that it could see, by position, and scores."""

    def __init__(self, case, arrays, i, head, row):
        s, self.given, self.margins = case.sizes, case.selection, []
        self.position = batch_row(case, "q_start", i, s.n - s.m) + row
        slots = batch_row(case, "kv_positions", i, np.arange(s.n)).tolist()
        self.slot_of = {slot: j for j, slot in enumerate(slots) if slot >= 0}
        visible = sr.from_dict(self.given["visible"])
        self.seen = [x for x in self.slot_of if visible(self.position, x)]
        group, each = head * s.g // s.h, s.h // s.g
        if "index_q" in arrays:
            heads = arrays["index_q"][i]
            self.queries = [one[row] for one in ([heads[group]] if self.given["selector"] == "msa"
                                                 else heads)]  # fmt: skip
            table = arrays["index_k"][i]
        else:
            which = range(group * each, group * each + each)
            which = which if self.given["selector"] == "nsa_blocks" else [head]
            self.queries = [arrays["q"][i][one][row] for one in which]
            table = arrays["k"][i][group]
        self.keys = {x: table[j] for x, j in self.slot_of.items()}
        self.scores = {x: dot(self.queries[0], self.keys[x]) for x in self.seen}
        if "index_weights" in arrays:
            weights = arrays["index_weights"][i][row]
            self.scores = {
                x: sum(w * max(dot(q, self.keys[x]), 0)
                       for w, q in zip(weights, self.queries, strict=True))
                for x in self.seen
            }  # fmt: skip


def evicted(case, q, k, *, anew=False, ranked=False):
    """h2o: what each query of one head sees, a set each; and the margins of what stays.

    Wrongly so if scores start `anew` with every query, or if recent keys are `ranked` too.
    """
    heavy, recent = case.selection["heavy"], case.selection["recent"]
    cache, score, rows, found = [], dict.fromkeys(range(len(k)), 0.0), [], []
    for t in range(len(q)):
        cache = [*range(t + 1)] if t < case.selection["prompt"] else [*cache, t]
        rows.append({*cache})
        score = dict.fromkeys(score, 0.0) if anew else score
        for x, p in softmax({x: dot(q[t], k[x]) / math.sqrt(len(q[t])) for x in cache}).items():
            score[x] += p
        if t + 1 < case.selection["prompt"]:
            continue
        late = cache[len(cache) - min(recent, len(cache)) :]
        others = {x: score[x] for x in cache if ranked or x not in late}
        kept = best(others, heavy)
        found += margins(others, kept)
        cache = sorted(kept | {*late})
    return rows, found


def test_every_case_is_what_loops_choose(cases):
    """And where scores are rounded, what is chosen scores the same, or far more than the rest."""
    apart = []
    for case in cases:
        s = case.sizes
        names = [x for x in ("q", "k", "index_q", "index_k", "index_weights") if x in case.tensors]
        arrays = {name: case.tensors[name].astype(float).tolist() for name in names}
        counts = np.broadcast_to(case.counts, (s.b, s.h, s.m, s.n))
        for i in range(s.b):
            for head in range(s.h):
                rows = None
                if case.selection["selector"] == "h2o":
                    group = head * s.g // s.h
                    rows, found = evicted(case, arrays["q"][i][head], arrays["k"][i][group])
                    apart += found
                for row in range(s.m):
                    if rows is None:
                        ask = Ask(case, arrays, i, head, row)
                        chosen = RULES[case.selection["selector"]](ask)
                        want = {ask.slot_of[x] for x in chosen}
                        apart += ask.margins
                    else:
                        want = rows[row]
                    got = set(np.flatnonzero(counts[i, head, row]).tolist())
                    assert got == want, (case.id, i, head, row)
    assert len(apart) > 500
    assert all(x == 0 or x > 2.0**-12 for x in apart)


def test_every_case_is_what_the_selectors_choose(cases):
    """And attention over the lists is attention over the selection."""
    for case in cases[::5]:
        given = dict(case.selection)
        select = SELECTORS[given.pop("selector")]
        visible = sr.from_dict(given.pop("visible"))
        call = case.call("float32")
        arrays = [case.tensors[x] for x in ("index_q", "index_k", "index_weights")
                  if x in case.tensors] or [call.q, call.k]  # fmt: skip
        if case.selection["selector"] != "h2o":
            given["visible"] = visible
        made = select(*arrays, **given, **call.attributes)
        got = sr.attention(call.q, call.k, call.v, made, **call.attributes)

        np.testing.assert_allclose(got.out, case.want.out, rtol=0, atol=1e-14, err_msg=case.id)
        np.testing.assert_allclose(got.lse, case.want.lse, rtol=0, atol=1e-13, err_msg=case.id)


def test_scores_are_exact_in_float32(cases):
    for case in cases:
        scores = []
        for kind in (np.float32, np.float64):
            q, k = (case.tensors[name].astype(kind) for name in "qk")
            repeated = np.repeat(k, case.sizes.h // case.sizes.g, axis=1)
            scores.append(q @ repeated.swapaxes(2, 3))
            if "index_q" in case.tensors:
                q, k = (case.tensors[f"index_{name}"].astype(kind) for name in "qk")
                scores[-1] = np.maximum(q @ k[:, None].swapaxes(2, 3), 0)
            if "index_weights" in case.tensors:
                weights = case.tensors["index_weights"].astype(kind)
                scores[-1] = np.einsum("bmh,bhmn->bmn", weights, scores[-1])
        assert (scores[0] == scores[1]).all()


BLOCKS = {"topk_blocks", "moba", "msa", "nsa_blocks"}
HUNTED = {  # to those of whom it is asked
    "ties": {*SELECTORS}, "all": {*SELECTORS}, "none": {"topk_keys"}, "cut": {*BLOCKS, "qsa"},
    "forced": {"moba", "msa", "nsa_blocks"}, "padding": {*SELECTORS} - {"h2o"},
}  # fmt: skip


@pytest.mark.parametrize(
    ("hunted", "selector"), [(x, each) for x, those in HUNTED.items() for each in sorted(those)]
)
def test_what_selectors_get_wrong_is_asked(cases, hunted, selector):
    """Each in at least three cases of every selector that may get it wrong."""

    def asks(case):
        s, given = case.sizes, case.selection
        most = given.get(
            "count", given.get("budget", given.get("heavy", 0) + given.get("recent", 0))
        )
        return {
            "ties": "SelectionTies" in case.flags and 0 < most < s.n,
            "all": most * given.get("block_size", 1) >= s.n,
            "none": not case.counts.any(),
            "forced": "SelectionForced" in case.flags and most < 4,
            "cut": s.n % given.get("block_size", given.get("ratio", 1)) > 0,
            "padding": "kv_positions" in case.attributes,
        }[hunted]

    assert sum(asks(case) for case in cases if case.selection["selector"] == selector) >= 3


class Asked(NamedTuple):
    """A case as `choosing.chosen` takes it."""

    selector: str
    arrays: list
    options: dict


PLANTED = [
    (one, selector)
    for one in SELECTING
    for selector in one.selectors
    if one.id != "rope-before-pooling"  # there is no rotation here
]


@pytest.mark.parametrize(("one", "selector"), PLANTED, ids=[f"{x.id}-{s}" for x, s in PLANTED])
def test_a_planted_mistake_chooses_otherwise_in_some_case(cases, one, selector):
    differs = 0
    for case in cases:
        given = dict(case.selection)
        if given.pop("selector") != selector or case.attributes or case.sizes.m > case.sizes.n:
            continue
        if given.pop("visible") != {"kind": "Causal"}:
            continue
        names = ["q", "k"]
        if "index_q" in case.tensors:
            names = [x for x in ("index_q", "index_k", "index_weights") if x in case.tensors]
        given |= {"prepare": lambda means, positions: means} if selector == "qsa" else {}
        asked = Asked(selector, [case.tensors[x] for x in names], given)
        right, wrong = (choosing.chosen(asked, **how) for how in ({}, one.wrong))
        differs += right.shape != wrong.shape or (np.sort(right) != np.sort(wrong)).any()
    assert differs > 0


@pytest.mark.parametrize("wrong", ["anew", "ranked"])
def test_a_planted_mistake_of_a_cache_evicts_otherwise_in_some_case(cases, wrong):
    asked = [case for case in cases if case.selection["selector"] == "h2o"]
    differs = 0
    for case in asked:
        q, k = (case.tensors[name][0, 0].astype(float).tolist() for name in "qk")
        differs += evicted(case, q, k)[0] != evicted(case, q, k, **{wrong: True})[0]
    assert differs > 0


def test_ties_go_to_the_smaller_position(cases):
    """By hand: with q = 0 all scores are 0, so the first three keys are chosen."""
    case = next(c for c in cases if c.id == "selection/topk-keys-3/b1h2g1-13x13-d5e3/even")

    rows = [set(np.flatnonzero(row).tolist()) for row in case.counts[0, 0]]
    assert rows == [set(range(min(i + 1, 3))) for i in range(13)]


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"selector": 3}, "selector of selection of .* must be a JSON str"),
        ({"visible": "Causal"}, "visible of selection of .* must be a JSON dict"),
        ({"count": -1}, "must have a selector, numbers below"),
        ({"count": 2.5}, "must have a selector, numbers below"),
        ({"count": 2**40}, "must have a selector, numbers below"),
    ],
)
def test_a_selection_of_the_wrong_form_is_refused(wrong, said, tmp_path):
    manifest = json.loads((GOLDEN / "manifest.json").read_text())
    case = next(c for c in manifest["cases"] if "selection" in c)
    case["selection"] |= wrong
    manifest |= {"cases": [case], "count": 1}
    blob = f"{case['family']}.safetensors"
    manifest["blobs"] = {blob: manifest["blobs"][blob]}
    (tmp_path / blob).write_bytes((GOLDEN / blob).read_bytes())
    (tmp_path / "manifest.json").write_text(json.dumps(manifest))
    seal_sums(tmp_path)

    with pytest.raises(GoldenError, match=said):
        load(tmp_path)
