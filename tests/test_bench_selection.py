"""The benchmark of choosing: what it counts, and that a wrong side has no row."""

import numpy as np
import pytest

import sparse_ref as sr
from tools import bench_limits, bench_selection
from tools.race import Settings, WrongError

kernels = pytest.importorskip("sparse_ref.kernels", reason="Numba is not installed")
TINY = Settings(runs=1, tokens=96)


def test_the_parts_of_its_value():
    for row in bench_limits.LIMITS["selection"].rows(TINY):
        took = row["detail"]["seconds"]
        value = (took["choose"] + took["attend"]) / (took["product"] + took["attend"])

        assert "n = 96" in row["what"]
        assert row["value"] == pytest.approx(value, rel=1e-3)
        assert row["at_most"] == 2


def test_the_product_is_every_score_that_a_query_may_see(monkeypatch):
    seen = []
    multiply = np.matmul
    monkeypatch.setattr(bench_selection, "ROWS", 4)
    monkeypatch.setattr(np, "matmul", lambda a, b, out: seen.append(multiply(a, b, out=out).shape))
    bench_selection._product(np.ones((1, 3, 11, 2)), np.ones((1, 11, 2)))

    assert seen == [(4, 4)] * 3 + [(4, 8)] * 3 + [(3, 11)] * 3


def test_wrong_answers_are_refused(monkeypatch):
    attention, msa = kernels.attention, kernels.msa

    def more(*args):
        return attention(*args)._replace(out=attention(*args).out + 1)

    monkeypatch.setattr(kernels, "attention", more)
    with pytest.raises(WrongError, match="not within"):
        list(bench_selection.selection(TINY))
    monkeypatch.setattr(kernels, "attention", attention)

    def first(*args, **options):
        chosen = msa(*args, **options)
        return sr.Selection(np.zeros_like(chosen.indices), heads=2, key_block=128)

    monkeypatch.setattr(kernels, "msa", first)
    with pytest.raises(WrongError, match="choices"):
        list(bench_selection.selection(Settings(runs=1, tokens=259)))
