"""Mistakes of precision: fewer bits than the type of the call promises."""

from __future__ import annotations

from sparse_ref.arithmetic import Arithmetic
from sparse_ref.conformance.mistakes import Mistake, rounded


def _arithmetic(**changes: str | float) -> Arithmetic:
    steps = ("score", "exp", "weight", "accumulate", "output")
    return Arithmetic(**{**dict.fromkeys(steps, "float32"), **changes})  # type: ignore[arg-type]


ENTRIES = (
    ("tf32-products", "products are computed in TF32", "",
     _arithmetic(score="tf32", weight="tf32")),
    ("float16-weights", "weights are rounded to float16", "", _arithmetic(weight="float16")),
    ("bfloat16-weights", "weights are rounded to bfloat16", "",
     _arithmetic(weight="bfloat16")),
    ("float16-scores", "scores are rounded to float16", "", _arithmetic(score="float16")),
    ("bfloat16-scores", "scores are rounded to bfloat16", "",
     _arithmetic(score="bfloat16")),
    ("float16-sums", "sums are kept in float16", "",
     _arithmetic(accumulate="float16", weight="float16")),
    ("bfloat16-sums", "sums are kept in bfloat16", "",
     _arithmetic(accumulate="bfloat16", weight="bfloat16")),
    ("fast-exp-16", "the exponential is good to 16 bits",
     "1bit-MONSTER/1bit-MONSTER/pull/2325", _arithmetic(exp_ulps=2.0**8)),
    ("fast-exp-12", "the exponential is good to 12 bits",
     "1bit-MONSTER/1bit-MONSTER/pull/2325", _arithmetic(exp_ulps=2.0**12)),
    ("bfloat16-everywhere", "every step is rounded to bfloat16", "",
     _arithmetic(score="bfloat16", exp="bfloat16", weight="bfloat16", accumulate="bfloat16")),
)  # fmt: skip
ARITHMETICS = {name: arithmetic for name, _, _, arithmetic in ENTRIES}
ROUNDING = tuple(
    Mistake(name, story, link and "https://github.com/" + link, rounded(arithmetic))
    for name, story, link, arithmetic in ENTRIES
)
