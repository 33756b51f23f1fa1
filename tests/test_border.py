"""What comes in from outside: other frameworks' arrays, wrong values, hostile JSON."""

import copy
import json

import ml_dtypes
import numpy as np
import pytest

import sparse_ref as sr

WRONG = {
    "left must be >= 0 or None, got -3": lambda: sr.SlidingWindow(-3, 0),
    "right must be an integer or None, got 1.0": lambda: sr.SlidingWindow(1, 1.0),
    "right must be an integer or None, got nan": lambda: sr.SlidingWindow(1, float("nan")),
    "left must be below 2**31 or None, got 10000000000": lambda: sr.SlidingWindow(10**10, 0),
    "left * dilation must be below 2**31": lambda: sr.SlidingWindow(2**30, 0, dilation=2),
    "dilation must be >= 1, got 0": lambda: sr.SlidingWindow(1, 1, dilation=0),
    "size must be >= 1, got 0": lambda: sr.Chunked(0),
    "back must be >= -ahead = 2, got 1": lambda: sr.Chunked(4, back=1, ahead=-2),
    "phase must be <= 3, got 4": lambda: sr.Strided(4, 4),
    "tokens must hold integers >= 0, got -1": lambda: sr.Keys([-1, 3]),
    "tokens must hold integers, got float64": lambda: sr.Global([0.5]),
    "tokens must be a bool table of 1 dimension": lambda: sr.Rows(np.ones((2, 2), bool)),
    "residues must be below period = 4, got 4": lambda: sr.KeyStride(4, [4]),
    "ids must have 1 dimension(s), got shape (1, 2)": lambda: sr.Document([[0, 1]]),
    "ids must hold values below 2**31 in size": lambda: sr.Document([2**40]),
    "kernel * dilation must be <= length = 5, got 3 * 2": lambda: sr.Neighborhood(5, 3, 2),
    "stride must be <= 3, got 4": lambda: sr.Neighborhood(9, 3, stride=4),
    "causal must be True or False, got 1": lambda: sr.Neighborhood(9, 3, causal=1),
    "seed must be >= 0, got -1": lambda: sr.RandomKeys(1, -1, 5),
    "exclude must be a pattern, got 3": lambda: sr.RandomKeys(1, 0, 5, exclude=3),
    "mask must be a SciPy sparse array or a bool mask": lambda: sr.BlockPattern(np.eye(2), 4),
    "block_size[1] must be >= 1, got 0": lambda: sr.BlockPattern(np.eye(2, dtype=bool), (4, 0)),
    "shape[0] must be >= 1, got 0": lambda: sr.Grid((0, 2), (sr.Full(), sr.Full())),
    "patterns must be one for each of the 2 axes, got 1": lambda: sr.Grid((2, 2), (sr.Full(),)),
    "patterns[1] must cover 5 positions, got 4": lambda: sr.Grid(
        (2, 5), (sr.Full(), sr.Neighborhood(4, 3))
    ),
    "order must be a permutation of 0..2": lambda: sr.Permuted(sr.Full(), [0, 0, 2]),
    "patterns[1] must be a pattern, got None": lambda: sr.PerHead([sr.Full(), None]),
    "patterns must hold at least 1 pattern(s), got 0": lambda: sr.PerBatch([]),
    "patterns must be a sequence of patterns, got the one": lambda: sr.Multi(sr.Full()),
    "a multiset must stand on the left": lambda: sr.Full() & sr.Multi([sr.Full()]),
    "| must join sets, got the multiset": lambda: sr.Multi([sr.Full()]) | sr.Full(),
    "pattern must be a set, got the multiset": lambda: ~sr.Multi([sr.Full()]),
    "the right side of & must be a pattern, got True": lambda: sr.Full() & True,
    "combine patterns with & | ~, not and/or/not": lambda: sr.Full() and sr.Causal(),
    "name must be an identifier, got 'a b'": lambda: sr.Runtime("a b"),
    "document_ids is an input of an exported graph": lambda: sr.draw(
        sr.Document(sr.Runtime("document_ids")), 4
    ),
    "prefix is an input of an exported graph": lambda: sr.draw(
        sr.PrefixLM(sr.Runtime("prefix")), 4
    ),
    "kv_positions must have kv_len = 3 entries, got 2": lambda: sr.Full().mask(
        3, 3, kv_positions=[0, 1]
    ),
    "heads must be >= 1, got 0": lambda: sr.Full().mask(3, 3, heads=0),
    "batch must be <= 1, got 2": lambda: sr.PerBatch([sr.Full()] * 2).mask(3, 3, batch=2),
    "head must be >= 0, got -1": lambda: sr.to_csr(sr.Full(), 3, 3, head=-1),
    "parts[1] must have out (1, 1)": lambda: sr.merge(
        sr.Attention(np.ones((1, 1)), np.ones(1)), sr.Attention(np.ones((2, 1)), np.ones(2))
    ),
}


@pytest.mark.parametrize("message", WRONG)
def test_wrong_values_are_refused_in_one_sentence(message):
    with pytest.raises((TypeError, ValueError)) as caught:
        WRONG[message]()

    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_half_types_are_read_exactly():
    x = np.arange(-8, 8).reshape(2, 4, 2) / 4
    want = sr.attention(x, x, x, sr.Causal())

    for dtype in (np.float32, np.float16, ml_dtypes.bfloat16):
        low = x.astype(dtype)
        np.testing.assert_array_equal(sr.attention(low, low, low, sr.Causal()).out, want.out)


@pytest.mark.witness
def test_arrays_of_other_frameworks_are_accepted():
    torch = pytest.importorskip("torch")
    x = np.random.default_rng(0).standard_normal((2, 5, 3))
    want = sr.attention(x, x, x, sr.Causal()).out
    tensor = torch.from_numpy(x)

    np.testing.assert_array_equal(sr.attention(tensor, tensor, tensor, sr.Causal()).out, want)
    assert sr.Document(torch.tensor([0, 0, 1])) == sr.Document([0, 0, 1])
    assert sr.Tokens(torch.eye(3, dtype=torch.bool)) == sr.Tokens(np.eye(3, dtype=bool))
    with pytest.raises(
        TypeError, match="q must be an array NumPy can read, got Tensor: Can't call"
    ):
        sr.attention(tensor.requires_grad_(), tensor, tensor, sr.Causal())


SOUND = [
    sr.Causal() & (sr.SlidingWindow(3, 0) | sr.Keys([1, 5, 9])),
    sr.Document([0, 0, -1, 1]),
    sr.Tokens(np.eye(4, dtype=bool)),
    sr.PerHead([sr.Grid((2, 2), (sr.Full(), sr.Causal())), sr.Xor([0, 2])]),
    sr.Global(sr.Runtime("tokens")),
]


def spoiled(value):
    """Every way to drop, retype or enlarge one node of a JSON value."""
    bad = [None, -1, 2**70, 1.5, "x", [], {}, [[0, 2**40]], [[1]], True]
    items = value.items() if isinstance(value, dict) else enumerate(value)
    for key, child in list(items):
        for wrong in bad:
            copied = copy.deepcopy(value)
            copied[key] = wrong
            yield copied
        if isinstance(value, dict):
            yield {k: v for k, v in value.items() if k != key}
            yield value | {"extra": 1}
        if isinstance(child, (dict, list)):
            for inner in spoiled(child):
                copied = copy.deepcopy(value)
                copied[key] = inner
                yield copied


@pytest.mark.parametrize("pattern", SOUND, ids=repr)
def test_spoiled_json_is_refused_or_is_another_pattern(pattern):
    """Never a crash of another kind, never a value that is not what the JSON says."""
    plain = json.loads(json.dumps(sr.to_dict(pattern)))
    assert sr.from_dict(plain) == pattern
    refused = 0
    for wrong in spoiled(plain):
        try:
            other = sr.from_dict(wrong)
        except (ValueError, TypeError):
            refused += 1
        else:
            assert sr.from_dict(sr.to_dict(other)) == other
    assert refused > 20


def test_deep_json_is_refused_before_the_stack_is():
    deep = sr.to_dict(sr.Full())
    for _ in range(5000):
        deep = {"kind": "Not", "pattern": deep}

    with pytest.raises(ValueError, match="at most 100 patterns deep"):
        sr.from_dict(deep)


def test_json_cannot_name_anything_but_a_pattern():
    for kind in ("Pattern", "_Choice", "os.system", "Attention"):
        with pytest.raises(ValueError, match="kind must be one of"):
            sr.from_dict({"kind": kind})
