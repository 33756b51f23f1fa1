"""Gradients are judged where they are offered, and the mistakes of backward passes are named."""

from itertools import pairwise

import numpy as np
import pytest

import sparse_ref as sr
from sparse_ref.conformance.case import Call
from sparse_ref.conformance.catalogue import CATALOGUE, GRADIENTS
from tests.conformance.test_catalogue import report_on

F32 = np.float32
FIVE = ("causal", "strictly-causal", "window", "per-head", "rows-and-keys")
ASKED = [
    case for case in sr.cases(quick=True, dtypes=("float32",), gradients=True)
    if case.sizes.n == 13 and case.probe == "random" and "+nan" not in case.id
    and case.name in FIVE and (case.gradients or not case.options)
]  # fmt: skip


class Oracle:
    """The oracle with gradients; with a mistake, wherever it can be made."""

    def __init__(self, mistake=None):
        self.mistake = mistake

    def answer(self, call):
        with np.errstate(all="ignore"):
            found = None if self.mistake is None else self.mistake.outcome(call)
        return tuple(
            None if x is None else np.asarray(x).astype(F32)
            for x in (call.oracle() if found is None else found[0])
        )

    def __call__(self, q, k, v, pattern, **attributes):
        return self.answer(Call(q, k, v, pattern, attributes))

    def vjp(self, q, k, v, pattern, dout, **attributes):
        return self.answer(Call(q, k, v, pattern, attributes, dout))


def test_they_are_asked_for_where_they_are_offered():
    few = {"quick": True, "only": "full/", "options": False}
    assert not any(case.gradients for case in sr.cases(**few))
    ids = [case.id for case in sr.cases(**few, gradients=True) if case.gradients]
    assert ids == [
        "full/b1h6g2-13x13-d5e7/random/float32/vjp", "full/b2h6g2-7x19-d5e3/random/float32/vjp"
    ]  # fmt: skip

    def forward(q, k, v, pattern):
        return sr.attention(q, k, v, pattern).out.astype(F32)

    one = sr.cases(**few, gradients=True)
    report = sr.check(forward, one)
    assert report.counts == {"PASS": len(one) - 2, "UNSUPPORTED": 2}
    forward.vjp = lambda q, k, v, pattern, dout: sr.attention_vjp(q, k, v, pattern, dout)[:3]
    assert sr.check(forward, one).counts == {"PASS": len(one)}


def test_right_gradients_pass():
    assert sum(case.gradients for case in ASKED) >= 20
    report = report_on(Oracle(), ASKED)
    assert report.counts == {"PASS": len(ASKED)}, str(report)


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (lambda dq, dk, dv: dq, "vjp must answer (dq, dk, dv) or more, got ndarray"),
        (lambda dq, dk, dv: (dq, dv, dk), "dk must have shape (1, 2, 13, 5), got (1, 2, 13, 7)"),
        (lambda dq, dk, dv: (dq, dk, dv.astype(np.float16)),
         "dv must have the type of q, float32, got float16"),
    ],
)  # fmt: skip
def test_what_are_no_gradients_fails_in_a_sentence(spoil, reason):
    class Spoilt(Oracle):
        def vjp(self, *given, **more):
            return spoil(*super().vjp(*given, **more)[:3])

    case = next(case for case in ASKED if case.gradients)
    assert sr.check(Spoilt(), [case]).results[0].reason == reason


def test_the_report_says_which_keys_are_wrong():
    class Late(Oracle):
        def vjp(self, *given, **more):
            dq, dk, dv = super().vjp(*given, **more)[:3]
            dk[0, 1, 4, 2] += 1
            return dq, dk, dv

    (case,) = [case for case in ASKED if case.id.startswith("window/b1") and case.gradients]
    text = str(sr.check(Late(), [case]))
    assert "dk is wrong in 1 of 130 entries" in text
    assert "first at batch 0, key/value head 1, key 4, column 2" in text
    assert "only key/value heads 1 of 2" in text
    assert "only keys 4 of 13" in text


SAMPLE = {"vjp-mean-lost", "vjp-group-lost"}
ALSO = {"window-left+1", "heads-tiled", "heads-shifted", "queries-reversed", "values-shifted",
        "last-entry-lost", "scale-2d", "softcap-lost", "sink-lost"}  # fmt: skip


@pytest.mark.parametrize(
    "mistake",
    [
        pytest.param(m, id=m.id, marks=() if m.id in SAMPLE else pytest.mark.slow)
        for m in CATALOGUE if m in GRADIENTS or m.id in ALSO
    ],
)  # fmt: skip
def test_each_mistake_is_caught_and_named_first(mistake):
    report = report_on(Oracle(mistake), ASKED)

    assert report.failures, "not caught"
    assert any(result.case.gradients for result in report.failures)
    found = report.diagnoses
    assert found, str(report)
    assert mistake.id in found[0].ids, str(report)
    assert found[0].explains == found[0].of
    assert len(found[0].ids) <= 3


@pytest.mark.witness
def test_torch_gives_gradients_by_itself():
    torch = pytest.importorskip("torch")
    fn = sr.Candidate(
        torch.nn.functional.scaled_dot_product_attention, arrays="torch", spell="sdpa"
    )
    report = sr.check(fn, [case for case in ASKED if case.gradients])
    assert set(report.counts) == {"PASS", "UNSUPPORTED"}, str(report)
    assert report.counts["PASS"] >= 5


@pytest.mark.witness
def test_a_slope_detached_in_torch_is_found():
    torch = pytest.importorskip("torch")

    def detached(q, k, v, attn_mask=None, is_causal=False, scale=None, enable_gqa=True):
        sdpa = torch.nn.functional.scaled_dot_product_attention
        return sdpa(q, k.detach() + 0 * k, v, attn_mask, 0.0, is_causal, scale=scale,
                    enable_gqa=True)  # fmt: skip

    fn = sr.Candidate(detached, arrays="torch", spell="sdpa")
    (case,) = [case for case in ASKED if case.id.startswith("window/b1") and case.gradients]
    (result,) = sr.check(fn, [case]).results
    assert [wrong.name for wrong in result.wrong] == ["dk"]


@pytest.mark.witness
def test_jax_gives_gradients_by_itself():
    jax = pytest.importorskip("jax")
    fn = sr.Candidate(jax.nn.dot_product_attention, layout="bshd", arrays="jax", spell="jax_nn")
    square = [sr.conformance.Sizes(1, 4, 2, 7, 7, 3, 3)]  # it wants values of the keys' size
    some = sr.cases(dtypes=("float32",), sizes=square, options=False, gradients=True,
                    only=["/vjp"])  # fmt: skip
    some = [case for case in some if case.name in ("window", "documents")]
    assert sr.check(fn, some).counts == {"PASS": 2}


def test_gradients_of_packed_sequences_come_back_to_their_places():
    from tests.conformance import published

    class Varlen:
        def __call__(self, *given, **more):
            return published.flash_attn_varlen_func(*given, **more)

        def vjp(self, q, k, v, dout, *, cu_seqlens_q, cu_seqlens_k, causal, window_size, **more):
            pattern, found = published.windowed(causal, window_size), []
            for a, b in pairwise(cu_seqlens_q):
                one = (x[a:b].swapaxes(0, 1) for x in (q, k, v))
                up = dout[a:b].swapaxes(0, 1)
                found.append([x.swapaxes(0, 1) for x in sr.attention_vjp(*one, pattern, up)[:3]])
            return tuple(np.concatenate(x).astype(F32) for x in zip(*found, strict=True))

    fn = sr.Candidate(Varlen(), layout="thd", spell="flash_attn")
    some = [case for case in sr.cases(quick=True, dtypes=("float32",), gradients=True)
            if case.gradients and case.name in ("packed", "documents", "window")
            and case.sizes.n == 13 and not case.options]  # fmt: skip
    assert sr.check(fn, some).counts == {"PASS": 3}
