"""The judge of selectors is judged: every known mistake is found, and no fault where is none."""

import pytest

import sparse_ref as sr
from sparse_ref.conformance.catalogue.selecting import ALL, SELECTING
from sparse_ref.conformance.choosing import chosen
from sparse_ref.conformance.selecting import check_selector, selector_cases, sets

PAIRS = [(one, selector) for one in SELECTING for selector in one.selectors]


def mutant(selector, wrong):
    """A selector that makes a mistake, called as any other."""
    cases = {id(case.arrays[0]): case for case in selector_cases(selector)}
    asked = list(cases.values())
    return asked, lambda q, *_, **__: chosen(cases[id(q)], **wrong)


@pytest.mark.parametrize("selector", ALL)
def test_the_second_derivation_chooses_the_same(selector):
    for case in selector_cases(selector):
        assert sets(chosen(case)) == sets(case.expected().indices), case.id


@pytest.mark.parametrize("selector", ALL)
def test_no_fault_is_found_where_there_is_none(selector):
    report = check_selector(getattr(sr.selection, selector), selector)

    assert report.passed
    assert not report.diagnoses


@pytest.mark.parametrize(("one", "selector"), PAIRS, ids=[f"{o.id}-{s}" for o, s in PAIRS])
def test_every_mistake_is_caught_and_named(one, selector):
    asked, fn = mutant(selector, one.wrong)

    report = check_selector(fn, selector, asked)

    assert not report.passed
    assert one.id in report.diagnoses
    assert len(report.diagnoses) <= 2
    assert one.id in str(report)


def test_most_mistakes_do_not_show_where_all_keys_are_chosen():
    """k >= n hides what is wrong with scores: cases with k < n are needed."""
    hidden = {
        one.id
        for one, selector in PAIRS
        for case in selector_cases(selector)
        if case.id.endswith("/all") and sets(chosen(case, **one.wrong)) == sets(chosen(case))
    }
    seen = {one.id for one in SELECTING} - hidden

    assert seen <= {"future-index", "dense-when-short", "tail-missing"}


def test_ids_are_unique_and_stories_one_line():
    ids = [one.id for one in SELECTING]

    assert len(set(ids)) == len(ids)
    assert all(len(one.story) < 90 and one.selectors for one in SELECTING)


def test_an_unknown_mistake_is_not_named():
    def reversed_selector(q, k, *, count, **more):
        return sr.selection.topk_keys(-q, k, count=count, **more)

    report = check_selector(reversed_selector, "topk_keys")

    assert not report.passed
    assert not report.diagnoses
    assert "no known mistake" in str(report)


def test_a_selector_without_cases_is_refused():
    with pytest.raises(ValueError, match=r"selector must be one of topk_keys, .*, got 'h2o'"):
        selector_cases("h2o")
