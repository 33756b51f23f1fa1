"""What "window = w" means: against the libraries' own mask formulas, and back from any mask."""

import re
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import sparse_ref as sr
from sparse_ref import conventions
from sparse_ref.conventions.forms import CONVENTIONS
from tests.strategies import positional, sets

N = 19
P, T = np.mgrid[:N, :N]  # positions of queries and keys
PAST = T <= P


def tril(k):
    return np.tri(N, k=k, dtype=bool)


# The masks as the libraries write them: each line is their formula, on positions.
FORMULAS = {
    # transformers 5.23, masking_utils: sliding_window_overlay, kv > q - w
    "hf": ((4,), PAST & (T > P - 4)),
    # sliding_window_bidirectional_overlay: abs(q - kv) <= w
    "hf_bidirectional": ((4,), abs(P - T) <= 4),
    # configuration_gemma3: w := w // 2 + 1, then abs(q - kv) < w
    "gemma3_bidirectional": ((5,), abs(P - T) < 5 // 2 + 1),
    # LongformerSelfAttention: one-sided window attention_window // 2
    "longformer": ((4,), abs(P - T) <= 4 // 2),
    "longformer_allenai": ((4,), abs(P - T) <= 4),
    # modeling_modernbert: local_attention // 2, inclusive
    "modernbert": ((4,), abs(P - T) <= 4 // 2),
    # modeling_longt5: block_len = r + 1, abs(relative) < block_len
    "longt5": ((4,), abs(P - T) < 4 + 1),
    # modeling_gpt_neo: bitwise_xor(tril(ones), tril(ones, -w))
    "gpt_neo": ((4,), tril(0) ^ tril(-4)),
    # chunked_overlay: q // c == kv // c
    "llama4": ((4,), PAST & (T // 4 == P // 4)),
    "nsa": ((4,), PAST & (P - T < 4)),
    # duo_attention: sink_size first, recent_size last
    "duo_attention": ((2, 4), PAST & ((T < 2) | (P - T < 4))),
    "child2019_paper": ((4,), (np.maximum(0, P - 4) <= T) & PAST),
    # openai/sparse_attention get_attn_mask: tril(ones) - tril(ones, -bandwidth)
    "child2019_code": ((4,), tril(0) & ~tril(-4)),
    # flash_attn_interface: keys in [i + sk - sq - left, i + sk - sq + right]
    "flash_attn": ((4, 2), (P - 4 <= T) & (T <= P + 2)),
    "ort_gqa": ((4,), PAST & (P - T < 4)),
    "onnx25": ((4, 2), (P - 4 <= T) & (T <= P + 2)),
    "sdpa": ((), tril(0)),
    # xformers attn_bias: q - window_left <= k <= q + window_right
    "xformers": ((4, 2), (P - 4 <= T) & (T <= P + 2)),
    # xformers _materialize_causal_mask: triu(tril(ones), 1 - window_size)
    "xformers_local": ((4,), np.triu(tril(0), 1 - 4)),
    # splash_attention_mask.LocalMask: q - left <= kv <= q + right
    "splash": ((4, 2), (P - 4 <= T) & (T <= P + 2)),
    "megatron": ((4, 2), (P - 4 <= T) & (T <= P + 2)),
    "natten": ((4, N), sr.Neighborhood(N, 4).mask(N, N)[0]),
    # attn_gym sliding_window: q - kv <= window
    "attention_gym": ((4,), PAST & (P - T <= 4)),
    "attention_gym_prefix": ((4,), PAST | (T < 4)),
    # local_attention with exact_windowsize: masked where kv < q - window
    "local_attention": ((4,), PAST & ~(T < P - 4)),
    # and without: the own bucket and look_backward = 1
    "local_attention_buckets": ((4,), PAST & (P // 4 - T // 4 <= 1)),
    "vllm": ((4,), PAST & (P - T < 4)),
    "sglang": ((4,), PAST & (P - T <= 4)),
    # llama.cpp is_masked_swa: p1 - p0 >= n_swa; outside +-(n_swa / 2); p0 < p1 / n_swa * n_swa
    "llama_cpp": ((4,), PAST & ~(P - T >= 4)),
    "llama_cpp_symmetric": ((5,), abs(P - T) <= 5 // 2),
    "llama_cpp_chunked": ((4,), PAST & ~(P // 4 * 4 > T)),
}


@pytest.mark.parametrize("name", CONVENTIONS)
def test_a_convention_is_its_librarys_formula(name):
    arguments, want = FORMULAS[name]

    assert (getattr(conventions, name)(*arguments).mask(N, N)[0] == want).all()


def rebuilt(name, text, n):
    """The pattern of a spelling, read by the numbers in it."""
    numbers = [None if x == "None" else int(x) for x in re.findall(r"-?\b\d+\b|None", text)]
    if name == "sdpa":
        return conventions.sdpa() if text == "is_causal=True" else sr.Full()
    if name == "natten":
        numbers.append(n)
    if name == "onnx25":
        assert text.startswith("left_window_size=")
    return getattr(conventions, name)(*numbers)


def check(mask):
    """Everything that is said of a mask gives that mask; returns what was said."""
    m, n = mask.shape
    found = conventions.describe(mask)
    for name, text in found.items():
        if text is not None:
            start = 0 if CONVENTIONS[name].first else n - m
            got = rebuilt(name, text, n).mask(m, n, q_start=start)[0]
            assert (got == mask).all(), (name, text)
    return {name: text for name, text in found.items() if text is not None}


@given(positional() | sets(24), st.integers(1, 13), st.integers(1, 17), st.booleans())
def test_what_is_said_of_a_mask_gives_the_mask(pattern, m, n, first):
    check(pattern.mask(m, n, q_start=0 if first else None)[0])


@pytest.mark.parametrize("name", CONVENTIONS)
@pytest.mark.parametrize("shape", [(N, N), (5, N), (1, N), (N, 5), (3, 3)])
def test_every_convention_is_found_again_in_its_mask(name, shape):
    arguments, _ = FORMULAS[name]
    m, n = shape
    if name == "natten" and m != n:
        return  # it has one length
    if name == "natten":
        arguments = (min(4, n), n)
    start = 0 if CONVENTIONS[name].first else n - m
    mask = getattr(conventions, name)(*arguments).mask(m, n, q_start=start)[0]

    if name in ("duo_attention", "llama4", "llama_cpp_chunked", "local_attention_buckets",
                "attention_gym_prefix") and shape != (N, N):  # fmt: skip
        check(mask)  # a part of it may show less
    elif mask.any():
        assert name in check(mask)


@pytest.mark.parametrize("name", CONVENTIONS)
def test_every_convention_is_found_again_in_its_pattern(name):
    arguments, _ = FORMULAS[name]
    pattern = getattr(conventions, name)(*arguments)
    text = conventions.describe(pattern)[name]

    assert (rebuilt(name, text, N).mask(N, N) == pattern.mask(N, N)).all()


@given(positional())
def test_what_is_said_of_a_pattern_gives_the_pattern(pattern):
    for name, text in conventions.describe(pattern).items():
        if text is not None:
            assert (rebuilt(name, text, 99).mask(99, 99) == pattern.mask(99, 99)).all(), name


CAUSAL = sr.Causal()
SAID = [
    (sr.SlidingWindow(127, 0), {
        "hf": "sliding_window=128", "flash_attn": "window_size=(127, 0)",
        "onnx25": "left_window_size=127, right_window_size=0", "sglang": "sliding_window_size=127",
        "attention_gym": "window_size=127", "longformer": None, "llama4": None, "sdpa": None,
    }),
    (CAUSAL, {
        "hf": "sliding_window=None", "flash_attn": "window_size=(-1, 0)", "sdpa": "is_causal=True",
        "splash": "window_size=(None, 0)", "ort_gqa": "local_window_size=-1", "xformers": None,
        "llama_cpp": "n_swa=0", "sglang": "sliding_window_size=-1", "gpt_neo": None,
    }),
    (sr.Full(), {"sdpa": "is_causal=False", "flash_attn": "window_size=(-1, -1)", "hf": None}),
    (sr.SlidingWindow(2, 2), {
        "hf_bidirectional": "sliding_window=2", "longformer": "attention_window=4",
        "longformer_allenai": "attention_window=2", "longt5": "local_radius=2", "hf": None,
    }),
    (sr.Causal() & sr.Chunked(6), {"llama4": "attention_chunk_size=6", "hf": None}),
    (sr.recipes.streaming_llm(4, 9), {"duo_attention": "sink_size=4, recent_size=9", "hf": None}),
    (sr.PrefixLM(5), {"attention_gym_prefix": "prefix_length=5"}),
    (CAUSAL | sr.Sink(5), {"attention_gym_prefix": "prefix_length=5"}),
    (sr.Neighborhood(4096, 7), {"natten": "kernel_size=7"}),
    # the same by other means
    (CAUSAL & sr.SlidingWindow(127, 127), {"hf": "sliding_window=128"}),
    (CAUSAL - sr.SlidingWindow(None, -0) | sr.SlidingWindow(3, 0), {"hf": "sliding_window=4"}),
    (~sr.Chunked(4, back=None, ahead=-1) & CAUSAL, {"llama4": "attention_chunk_size=4"}),
    (sr.Blocked(CAUSAL, 1), {"hf": "sliding_window=None"}),
    (sr.Chunked(4) & sr.Chunked(8) & CAUSAL, {"llama4": "attention_chunk_size=4"}),
    (sr.from_mask(np.tri(9, dtype=bool)), {"sdpa": "is_causal=True"}),
    (sr.recipes.gemma3(512), {"hf": "sliding_window=512"}),
    # far beyond what any mask could show
    (sr.SlidingWindow(10**9, 0), {"hf": "sliding_window=1000000001"}),
    (CAUSAL & sr.Chunked(2**15), {"llama_cpp_chunked": "n_swa=32768"}),
]  # fmt: skip


@pytest.mark.parametrize(("pattern", "said"), SAID, ids=lambda x: repr(x)[:60])
def test_patterns_are_described(pattern, said):
    found = conventions.describe(pattern)

    assert {name: found[name] for name in said} == said


@pytest.mark.parametrize("pattern", [
    sr.Strided(3), sr.SlidingWindow(2, 2, dilation=2), sr.Global([0]), sr.Offsets([1, 2]),
    sr.Multi([CAUSAL]), sr.PerHead([CAUSAL, sr.Full()]), sr.PerBatch([CAUSAL]), sr.Keys([2]),
    sr.Chunked(3) | sr.SlidingWindow(3, 0), sr.RandomKeys(2, 0, 30), ~sr.Full(), CAUSAL - CAUSAL,
    sr.Document(sr.Runtime("ids")), sr.PrefixLM(sr.Runtime("prefix")), sr.Blocked(CAUSAL, 4),
    CAUSAL & sr.Chunked(6, origin=1), sr.Neighborhood(9, 3, dilation=2), CAUSAL | sr.Keys([9]),
    sr.SlidingWindow(5, 0) - sr.SlidingWindow(2, 0), sr.from_mask(np.eye(9, k=1, dtype=bool)),
], ids=repr)  # fmt: skip
def test_what_nobody_can_spell_is_not_spelled(pattern):
    assert set(conventions.describe(pattern).values()) == {None}


def test_alignment_is_respected():
    """Two queries, five keys: bottom-right for flash-attn and HF, top-left for torch and ONNX."""
    last, first = np.tri(2, 5, k=3, dtype=bool), np.tri(2, 5, dtype=bool)

    of_last, of_first = conventions.describe(last), conventions.describe(first)
    assert of_last["flash_attn"] == "window_size=(-1, 0)"
    assert of_last["sdpa"] is None
    assert of_last["onnx25"] == "left_window_size=-1, right_window_size=3"
    assert of_first["flash_attn"] is None
    assert of_first["hf"] is None
    assert of_first["sdpa"] == "is_causal=True"
    assert of_first["onnx25"] == "left_window_size=-1, right_window_size=0"


def test_off_by_one_masks_are_told_apart():
    """The bug that everybody has: 128 or 129 keys."""
    behind = P - T
    for keys in (7, 8, 9):
        found = conventions.describe(PAST & (behind < keys))
        assert found["hf"] == f"sliding_window={keys}"
        assert found["flash_attn"] == f"window_size=({keys - 1}, 0)"
        assert found["attention_gym"] == f"window_size={keys - 1}"


WRONG = {
    "w must be >= 1 (it counts the query itself; with 0 Hugging Face's mask shows no key at all), "
    "got 0": lambda: conventions.hf(0),
    "w must be >= 1 (it counts the query itself; with 0 ORT shows no key at all, with -1 all), "
    "got -2": lambda: conventions.ort_gqa(-2),
    "left must be >= 0, or -1 for unbounded (flash-attn takes every negative number for it), "
    "got -2": lambda: conventions.flash_attn(-2, 0),
    "right must be >= 0, or -1 for unbounded, got -5": lambda: conventions.onnx25(0, -5),
    "left must be >= 0, got -1": lambda: conventions.xformers(-1, 0),
    "w must be an integer or None, got 1.5": lambda: conventions.vllm(1.5),
    "w must be an integer, got None": lambda: conventions.gpt_neo(None),
    "w must be >= 2, got 0": lambda: conventions.longformer(0),
    "w must be even (half of it on each side), got 5": lambda: conventions.longformer(5),
    "w must be >= 0, got -2": lambda: conventions.hf_bidirectional(-2),
    "r must be >= 0, got -1": lambda: conventions.longt5(-1),
    "l must be >= 1, got 0": lambda: conventions.child2019_code(0),
    "recent must be >= 1, got 0": lambda: conventions.duo_attention(4, 0),
    "mask must be bool (q_len, kv_len), both >= 1, got float64 (2, 2)": (
        lambda: conventions.describe(np.ones((2, 2)))
    ),
    "mask must be bool (q_len, kv_len), both >= 1, got bool (0, 3)": (
        lambda: conventions.describe(np.ones((0, 3), bool))
    ),
}  # fmt: skip


@pytest.mark.parametrize("message", WRONG)
def test_wrong_values_are_refused_and_explained(message):
    with pytest.raises((TypeError, ValueError)) as caught:
        WRONG[message]()

    assert message in str(caught.value)


def test_unbounded_sides():
    assert conventions.hf(None) == conventions.ort_gqa(-1) == conventions.llama_cpp(0) == CAUSAL
    assert conventions.sglang(-1) == conventions.flash_attn(-1, 0) == sr.SlidingWindow(None, 0)
    assert conventions.splash(None, None) == sr.SlidingWindow(None, None)


def test_the_readme_has_the_table():
    """Rendered from the code: paste `sr.conventions.table()` when it changes."""
    text = (Path(__file__).parent.parent / "README.md").read_text(encoding="utf-8")

    assert set(CONVENTIONS) == set(conventions.__all__) - {"describe", "table"}
    assert conventions.table() in text
