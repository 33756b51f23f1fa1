"""The PyTorch operator and modules against the oracle, and their way into ONNX."""

import math

import numpy as np
import onnx
import onnxruntime
import pytest

import sparse_ref as sr

torch = pytest.importorskip("torch")

from exporters.pytorch import (  # noqa: E402
    SparseAttention,
    SparseTransformer,
    by_kernels,
    module_to_onnx,
    sparse_attention,
)
from exporters.pytorch.op import spelled, unspelled  # noqa: E402

LOCAL, STRIDED = sr.Causal() & sr.SlidingWindow(2, 0), sr.Causal() & sr.Strided(3)
PATTERNS = {
    "window": LOCAL,
    "strided": STRIDED,
    "rows without keys": sr.Causal() & sr.Keys([2, 3]),
    "keys that count twice": sr.Multi([LOCAL, sr.Causal() & sr.Keys([0])]),
    "heads differ": sr.PerHead([LOCAL, STRIDED - sr.Keys([0]), sr.Full()]),
}
# heads, key heads, queries, keys, head size, value size
SHAPES = {
    "square": (3, 3, 7, 7, 5, 2),
    "wide, grouped": (6, 2, 5, 11, 3, 4),
    "tall": (3, 1, 7, 3, 2, 3),
}


@pytest.fixture(autouse=True)
def _repeatable() -> None:
    torch.manual_seed(0)
    torch.set_num_threads(1)


def drawn(h, g, m, n, d, e, dtype):
    shapes = (2, h, m, d), (2, g, n, d), (2, g, n, e)
    return [torch.randn(shape, dtype=dtype, requires_grad=True) for shape in shapes]


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("pattern", PATTERNS.values(), ids=PATTERNS)
def test_the_operator_stays_within_the_bound(pattern, shape):
    q, k, v = drawn(*shape, torch.float32)
    out = sparse_attention(q, k, v, pattern).detach().numpy()
    arrays = [x.detach().numpy() for x in (q, k, v)]
    error = np.abs(out - sr.attention(*arrays, pattern).out)
    assert (error <= sr.error_bound(*arrays, pattern, arithmetic="float32").out).all()


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("pattern", PATTERNS.values(), ids=PATTERNS)
def test_gradients_are_the_oracles(pattern, shape):
    q, k, v = drawn(*shape, torch.float64)
    out = sparse_attention(q, k, v, pattern, scale=0.7)
    dout = torch.randn_like(out)
    out.backward(dout)
    arrays = [x.detach().numpy() for x in (q, k, v)]
    want = sr.attention_vjp(*arrays, pattern, dout.numpy(), scale=0.7)
    for got, expected in zip((q, k, v), (want.dq, want.dk, want.dv), strict=True):
        np.testing.assert_allclose(got.grad.numpy(), expected, rtol=1e-12, atol=1e-13)


def test_gradients_match_finite_differences():
    q, k, v = drawn(4, 2, 3, 5, 3, 2, torch.float64)
    pattern = sr.PerHead([LOCAL, sr.Causal() & sr.Keys([3])])
    assert torch.autograd.gradcheck(lambda *qkv: sparse_attention(*qkv, pattern), (q, k, v))


def test_the_operator_obeys_the_dispatchers_contract():
    q, k, v = drawn(4, 2, 3, 5, 3, 2, torch.float64)
    torch.library.opcheck(torch.ops.sparse_ref.attention.default, (q, k, v, spelled(LOCAL), 0.5))
    rest = 2.0, torch.zeros(4, requires_grad=True), *(torch.tensor([1, 2]) for _ in range(3))
    torch.library.opcheck(
        torch.ops.sparse_ref.attention.default, (q, k, v, spelled(LOCAL), 0.5, *rest)
    )


@pytest.mark.parametrize("dense", [True, False], ids=["dense", "kernels"])
@pytest.mark.parametrize("pattern", PATTERNS.values(), ids=PATTERNS)
def test_padding_caches_softcap_and_sinks_are_the_oracles(pattern, dense, monkeypatch):
    """Each batch row has its own first query, first key and number of keys."""
    if dense:
        monkeypatch.setattr(by_kernels, "AVAILABLE", False)
    q, k, v = drawn(6, 2, 5, 11, 3, 4, torch.float64)
    sinks = torch.randn(6, dtype=torch.float64, requires_grad=True)
    starts, firsts, lengths = torch.tensor([[4, -1], [0, 3], [11, 7]])
    out = sparse_attention(
        q, k, v, pattern, softcap=2.0, sink_logits=sinks, q_start=starts, key_start=firsts,
        key_length=lengths,
    )  # fmt: skip
    dout = torch.randn_like(out)
    out.backward(dout)

    slots = np.arange(11)
    kept = slots < lengths.numpy()[:, None]
    options = {
        "softcap": 2.0,
        "sink_logits": sinks.detach().numpy(),
        "q_start": starts.numpy(),
        "kv_positions": np.where(kept, slots + firsts.numpy()[:, None], -1),
    }
    arrays = [x.detach().numpy() for x in (q, k, v)]
    want = sr.attention(*arrays, pattern, **options).out
    np.testing.assert_allclose(out.detach().numpy(), want, rtol=1e-12, atol=1e-13)
    grads = sr.attention_vjp(*arrays, pattern, dout.numpy(), **options)
    for leaf, name in zip((q, k, v, sinks), ("dq", "dk", "dv", "dsink_logits"), strict=True):
        expected = getattr(grads, name)
        np.testing.assert_allclose(leaf.grad.numpy(), expected, rtol=1e-11, atol=1e-12)


def test_patterns_travel_as_text():
    for pattern in PATTERNS.values():
        assert unspelled(spelled(pattern)) == pattern


def test_patterns_that_differ_by_batch_row_are_refused():
    with pytest.raises(ValueError, match="pattern must be the same for every batch row"):
        SparseAttention(6, 2, sr.PerBatch([LOCAL, STRIDED]))
    with pytest.raises(TypeError, match="pattern must be a Pattern, got str"):
        SparseAttention(6, 2, "causal")


def test_sizes_that_do_not_divide_are_refused():
    with pytest.raises(ValueError, match="dim must be a positive multiple of heads = 4, got 6"):
        SparseAttention(6, 4, LOCAL)
    with pytest.raises(ValueError, match="kv_heads must divide heads = 4, got 3"):
        SparseAttention(8, 4, LOCAL, kv_heads=3)
    with pytest.raises(ValueError, match="init must be 'code' or 'paper', got 'zero'"):
        small(init="zero")


@pytest.mark.parametrize("kv_heads", [None, 2, 1])
def test_the_module_is_attention_between_its_projections(kv_heads):
    layer = SparseAttention(12, 4, LOCAL, kv_heads=kv_heads)
    x = torch.randn(2, 7, 12)
    kv_heads = kv_heads or 4
    with torch.no_grad():
        parts = layer.qkv(x).split([12, kv_heads * 3, kv_heads * 3], dim=-1)
        q, k, v = (part.view(2, 7, -1, 3).transpose(1, 2).numpy() for part in parts)
        out = torch.from_numpy(sr.attention(q, k, v, LOCAL).out).float()
        expected = layer.project(out.transpose(1, 2).reshape(2, 7, 12))
        torch.testing.assert_close(layer(x), expected, rtol=1e-5, atol=1e-6)


def small(**options):
    return SparseTransformer(5, 7, (2, 3), [LOCAL, STRIDED], blocks=3, dim=8, heads=2, **options)


def test_blocks_take_turns_with_the_patterns():
    assert small().patterns == [LOCAL, STRIDED, LOCAL]


@pytest.mark.parametrize(("init", "factor"), [("code", math.sqrt(0.125)), ("paper", 0.125)])
def test_initialisation_is_the_papers_or_the_codes(init, factor):
    model = SparseTransformer(500, 7, (300, 400), [LOCAL], blocks=2, dim=64, heads=2, init=init)
    block = model.blocks[0]
    for weight, expected in (
        (model.value.weight, factor / 8),
        (model.row.weight, factor / math.sqrt(128)),
        (model.column.weight, factor / math.sqrt(128)),
        (block.attention.qkv.weight, factor / 8),
        (block.attention.project.weight, factor / 8 / 2),
        (block.expand.weight, factor / 8),
        (block.contract.weight, factor / 16 / 2),
    ):
        assert weight.std().item() == pytest.approx(expected, rel=0.05)
    assert not model.classify.weight.any()


def test_the_future_does_not_reach_a_token():
    model = small()
    tokens = torch.tensor([[0, 1, 2, 3, 4, 0], [0, 1, 2, 3, 3, 4]])
    h = model.value(tokens)
    for block in model.blocks:
        h = block(h)
    torch.testing.assert_close(h[0, :4], h[1, :4], rtol=0, atol=0)
    assert not torch.equal(h[0, 4:], h[1, 4:])


@pytest.fixture(scope="module")
def exported():
    pytest.importorskip("onnxscript")
    torch.manual_seed(0)
    model = small()
    torch.nn.init.normal_(model.classify.weight)
    return model, module_to_onnx(model, (torch.zeros(2, 6, dtype=torch.int64),), block_size=4)


def test_the_exported_file_takes_any_batch(exported):
    model, exported = exported
    onnx.checker.check_model(exported, full_check=True)
    ours = [node for node in exported.graph.node if node.domain == "sparse_ref"]
    assert [node.op_type for node in ours] == ["SparseAttention"] * 3
    assert list(ours[0].input[3:]) == list(ours[2].input[3:])  # layers of one pattern share lists
    session = onnxruntime.InferenceSession(exported.SerializeToString())
    for batch in (1, 2, 5):
        tokens = torch.randint(0, 5, (batch, 6))
        (got,) = session.run(None, {session.get_inputs()[0].name: tokens.numpy()})
        np.testing.assert_allclose(got, model(tokens).detach().numpy(), rtol=1e-5, atol=1e-6)


def test_the_exported_file_says_nothing_of_this_machine(exported):
    assert b".py" not in exported[1].SerializeToString()
