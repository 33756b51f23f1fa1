"""`check` of a selection: cases of its lengths, and what is drawn where a kernel is wrong."""

import re
from dataclasses import replace

import numpy as np
import pytest

import sparse_ref as sr
from sparse_ref import Selection, kernels, selection
from sparse_ref.conformance import catalogue

THREE = [[0], [1], [0, 2], [1, 3], [0, 3, 4]]
PICTURE = Selection([[[row + [-1] * (3 - len(row)) for row in THREE]]], heads=2)


def oracle(q, k, v, chosen, **options):
    return sr.attention(q, k, v, chosen, **options)[:2]


def drawn(b=2, h=4, g=2, m=13, n=13, **options):
    rng = np.random.default_rng(3)
    q, k = (rng.standard_normal(shape) for shape in ((b, h, m, 5), (b, g, n, 5)))
    return selection.topk_keys(q, k, count=4, **options)


def without_one(chosen, query):
    """The selection, short of the first block of one query."""
    table = chosen.indices.copy()
    table[:, :, query, 0] = -1
    return replace(chosen, indices=table)


def lines(text, sign):
    return [line.strip() for line in str(text).splitlines() if re.fullmatch(rf"[#. {sign}]+", line)]


def test_a_dropped_key_is_drawn_where_it_is_missing():
    report = sr.check(lambda q, k, v, s: oracle(q, k, v, without_one(s, 2)), pattern=PICTURE)

    assert not report.ok
    assert lines(report, "-") == [
        "# . . . .",
        ". # . . .",
        "- . # . .",
        ". # . # .",
        "# . . # #",
    ]


def test_a_key_of_the_future_is_drawn_where_it_is_too_much():
    def leaky(q, k, v, chosen):
        table = chosen.indices.copy()
        table[:, :, 1, 1] = 3
        wide = replace(chosen, indices=table, visible=sr.Full())
        return oracle(q, k, v, wide)

    report = sr.check(leaky, pattern=PICTURE)

    assert not report.ok
    assert lines(report, "+") == [
        "# . . . .",
        ". # . + .",
        "# . # . .",
        ". # . # .",
        "# . . # #",
    ]


@pytest.mark.parametrize(
    "chosen",
    [
        PICTURE,
        drawn(),
        drawn(b=1, m=5, n=17),
        Selection([[[[0, 2], [1, 2], [0, 3]]]], heads=4, query_block=3, key_block=2,
                  always=sr.Sink(1), visible=sr.SlidingWindow(7, 2)),
        Selection(np.zeros((2, 1, 7, 0), int), heads=3, kv_heads=1),
    ],
    ids=["picture", "batch", "cross", "blocks", "nothing"],
)  # fmt: skip
def test_kernels_and_the_oracle_pass_with_gradients(chosen):
    def fast(q, k, v, pattern, **options):
        return kernels.attention(q, k, v, pattern, **options)

    fast.vjp = kernels.attention_vjp
    report = sr.check(fast, pattern=chosen)

    assert report.ok
    assert report.counts == {"PASS": len(sr.cases(pattern=chosen, gradients=True))}
    assert sr.check(oracle, pattern=chosen).ok


def test_cases_are_of_its_lengths_and_differ_in_the_rest():
    chosen = drawn(b=2, h=4, g=2, m=13, n=13)
    cases = sr.cases(pattern=chosen)

    assert {case.pattern for case in cases} == {chosen}
    assert {case.sizes[:5] for case in cases} == {(2, 4, 2, 13, 13)}
    assert len({case.sizes for case in cases}) == 2
    assert {case.dtype for case in cases} == {"float32", "float16"}
    assert {"scale", "bias", "sink_logits", "kv_lengths"} <= {x for c in cases for x in c.options}
    assert len({case.id for case in cases}) == len(cases)
    assert len(sr.cases(pattern=chosen, quick=True)) < len(cases) / 3
    assert all(case.id.endswith("/vjp") == case.gradients
               for case in sr.cases(pattern=chosen, gradients=True))  # fmt: skip


def test_there_are_as_many_keys_as_queries_or_as_it_lists_or_as_is_said():
    wide = Selection([[[[0, 6]]]], key_block=4)

    assert {case.sizes[3:5] for case in sr.cases(pattern=PICTURE)} == {(5, 5)}
    assert {case.sizes[3:5] for case in sr.cases(pattern=wide)} == {(1, 25)}
    longer = sr.cases(pattern=wide, sizes=[(1, 1, 1, 1, 31, 3, 2)])
    assert {case.sizes for case in longer} == {(1, 1, 1, 1, 31, 3, 2)}
    assert sr.check(oracle, longer).ok


def test_sizes_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="selection must have 7 rows for 7 queries in blocks of 1"):
        sr.cases(pattern=PICTURE, sizes=[(1, 2, 2, 7, 7, 3, 2)])
    with pytest.raises(TypeError, match="pattern must be a pattern, got 3"):
        sr.cases(pattern=3)


def test_the_kernel_gets_the_selection_itself_and_only_the_attributes_of_the_case():
    seen = []

    def mine(q, k, v, pattern, scale=None):
        seen.append(pattern)
        return oracle(q, k, v, pattern, **({} if scale is None else {"scale": scale}))

    report = sr.check(mine, pattern=PICTURE)

    assert report.ok
    assert set(report.counts) == {"PASS", "UNSUPPORTED"}
    assert all(type(one) is Selection for one in seen)


def test_a_kernel_with_the_selection_built_in():
    chosen = drawn(b=1)
    ready = sr.fixed(lambda q, k, v: oracle(q, k, v, chosen))
    wrong = sr.fixed(lambda q, k, v: oracle(q, k, v, without_one(chosen, 7)))

    assert sr.check(ready, pattern=chosen).ok
    report = sr.check(wrong, pattern=chosen)
    assert not report.ok
    assert sum(line.count("-") for line in lines(report, "-")) == 1


def test_a_known_mistake_is_named():
    chosen = drawn()

    def first_head(q, k, v, pattern, **options):
        alone = replace(pattern, indices=pattern.indices[:, :1])
        return oracle(q, k, v, alone, **options)

    assert sr.diagnose(first_head, chosen)[0].ids[0] == "one-pattern-for-all"
    scaled = lambda q, k, v, s: sr.attention(q, k, v, s, scale=1.0)[:2]  # noqa: E731
    assert "scale" in sr.diagnose(scaled, chosen)[0].ids[0]


def test_every_known_mistake_can_be_asked_of_it():
    for case in sr.cases(pattern=drawn(), quick=True):
        call = case.call(0).lowered()
        for mistake in catalogue.CATALOGUE:
            with np.errstate(all="ignore"):
                mistake.outcome(call)


def test_a_wrong_row_of_the_batch_is_the_one_that_is_drawn():
    chosen = Selection([[[[0], [1], [2]]], [[[0], [0], [0]]]])

    def second_row(q, k, v, pattern):
        table = pattern.indices.copy()
        table[table == 0] = -1
        if len(table) == 2:
            table[0] = pattern.indices[0]
        return oracle(q, k, v, replace(pattern, indices=table))

    assert lines(sr.check(second_row, pattern=chosen), "-") == ["- . .", "- . .", "- . ."]


@pytest.mark.slow
def test_in_a_process_of_its_own():
    report = sr.check("sparse_ref:attention", sr.cases(pattern=PICTURE, quick=True), isolate=True)
    assert report.ok


def test_one_row_of_the_batch_is_a_selection_too():
    chosen = drawn(visible=sr.PerBatch([sr.Causal(), sr.SlidingWindow(3, 0)]))

    for row in range(2):
        alone = chosen.for_batch(row)
        assert alone.indices.shape[0] == 1
        assert alone.visible.batches is None
        np.testing.assert_array_equal(alone.mask(13, 13), chosen.mask(13, 13, batch=row))
