"""OPERATOR.md: its code runs and is the operator, and it names what the schema has."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings

import sparse_ref as sr

pytest.importorskip("onnxruntime")

from exporters.onnx import schema
from tests.exporters.any_lists import SCALE, oracle, problems

PAGE = Path(schema.__file__).with_name("OPERATOR.md").read_text()


@given(problem=problems())
@settings(max_examples=40)
def test_the_code_of_the_page_is_the_operator(problem):
    feed, (bq, bk), cap = problem
    (code,) = re.findall(r"```python\n(.*?)```", PAGE, flags=re.DOTALL)
    known: dict[str, Any] = {"np": np}
    exec(code, known)
    with np.errstate(all="ignore"):
        got = known["sparse_attention"](
            **{name: x.astype(float) if x.dtype == np.float32 else x for name, x in feed.items()},
            q_block_size=bq, k_block_size=bk, scale=SCALE, softcap=cap,
        )  # fmt: skip
        arguments, rest = oracle(feed, cap)
        expected = sr.attention(*arguments, **rest)
    for ours, want in zip(got, expected, strict=True):
        np.testing.assert_allclose(ours, want, rtol=1e-12, atol=1e-12)


def test_the_page_names_what_the_schema_has():
    for name, (letter, rank, _) in schema.INPUTS.items():
        (shape,) = re.findall(rf"^\| \d \| `{name}` \| (?:\w+) \| `\[(.*?)\]`", PAGE, re.MULTILINE)
        assert len(shape.split(",")) == rank
        assert (kind := re.search(rf"`{name}` \| (\w+) ", PAGE)) is not None
        assert kind[1] == {"T": "T", "I": "int32", "M": "uint8"}[letter]
    for name in (*schema.OUTPUTS, *schema.ATTRIBUTES):
        assert f"`{name}`" in PAGE
