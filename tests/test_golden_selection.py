"""Golden cases of keys chosen by content, against golden/SPEC.md section 7 written out in loops."""

import json

import numpy as np
import pytest

import sparse_ref as sr
from sparse_ref.golden import GoldenError, load
from tests.golden_sets import GOLDEN, seal_sums
from tools.golden.selected import SELECTORS


@pytest.fixture(scope="module")
def cases():
    return [case for case in load(GOLDEN) if case.selection is not None]


def batch_row(case, name, i, default):
    value = case.attributes.get(name, default)
    return value[i] if np.ndim(value) > np.ndim(default) else value


def chosen(selection, scores, position, keys):
    """The positions that one query chooses, of those it could see: {position: score}."""
    count = selection["count"]
    if selection["selector"] == "topk_keys":
        return set(sorted(keys, key=lambda k: (-scores[k], k))[:count])
    size, blocks = selection["block_size"], {}
    for key in keys:
        blocks.setdefault(key // size, []).append(scores[key])
    value = {
        block: max(x) if selection.get("pool") == "max" else sum(x) / len(x)
        for block, x in blocks.items()
    }
    own = position // size if selection["selector"] == "moba" else None
    order = sorted(value, key=lambda block: (block != own, -value[block], block))
    return {key for key in keys if key // size in order[:count]}


def test_every_case_is_what_loops_choose(cases):
    for case in cases:
        s, visible = case.sizes, sr.from_dict(case.selection["visible"])
        q, k = (case.tensors[name].astype(float).tolist() for name in "qk")
        counts = np.broadcast_to(case.counts, (s.b, s.h, s.m, s.n))
        for i in range(s.b):
            start = batch_row(case, "q_start", i, s.n - s.m)
            slots = batch_row(case, "kv_positions", i, np.arange(s.n)).tolist()
            slot_of = {slot: j for j, slot in enumerate(slots) if slot >= 0}
            for head in range(s.h):
                group = k[i][head * s.g // s.h]
                for row in range(s.m):
                    here = start + row
                    seen = [x for x in slot_of if visible(here, x)]
                    dots = {
                        x: sum(
                            a * b for a, b in zip(q[i][head][row], group[slot_of[x]], strict=True)
                        )
                        for x in seen
                    }
                    want = {slot_of[x] for x in chosen(case.selection, dots, here, seen)}
                    got = set(np.flatnonzero(counts[i, head, row]).tolist())
                    assert got == want, (case.id, i, head, row)


def test_every_case_is_what_the_selectors_choose(cases):
    """And attention over the lists is attention over the selection."""
    for case in cases[::5]:
        given = dict(case.selection)
        select = SELECTORS[given.pop("selector")]
        visible = sr.from_dict(given.pop("visible"))
        call = case.call("float32")
        made = select(call.q, call.k, visible=visible, **given, **call.attributes)
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
        assert (scores[0] == scores[1]).all()


@pytest.mark.parametrize("hunted", ["ties", "all", "none", "forced", "cut", "padding"])
def test_what_selectors_get_wrong_is_asked(cases, hunted):
    """Each in at least three cases."""

    def asks(case):
        s, selection = case.sizes, case.selection
        seen = np.broadcast_to(case.counts, (s.b, s.h, s.m, s.n)) > 0
        return {
            "ties": "SelectionTies" in case.flags and 0 < selection["count"] < s.n,
            "all": selection["count"] >= s.n,
            "none": not seen.any(),
            "forced": selection["selector"] == "moba" and selection["count"] < 3,
            "cut": s.n % selection.get("block_size", 1) > 0,
            "padding": "kv_positions" in case.attributes,
        }[hunted]

    assert sum(asks(case) for case in cases) >= 3


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
