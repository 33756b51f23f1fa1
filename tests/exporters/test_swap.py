"""Attention put into models that are there already, and what it looked at."""

import copy

import numpy as np
import pytest

import sparse_ref as sr

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402

from exporters import SparseAttention, attention_maps, swap_attention  # noqa: E402

PADDING = torch.arange(7) >= torch.tensor([7, 4, 5])[:, None]
CAUSAL = nn.Transformer.generate_square_subsequent_mask(7)
LOCAL = sr.SlidingWindow(1, 1)


@pytest.fixture(autouse=True)
def _repeatable() -> None:
    torch.manual_seed(0)
    torch.set_num_threads(1)


def encoder(dropout=0.0, **options):
    return nn.TransformerEncoder(nn.TransformerEncoderLayer(12, 2, 16, dropout, **options), 2)


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
@pytest.mark.filterwarnings("ignore:enable_nested_tensor is True")
@pytest.mark.filterwarnings("ignore:Support for mismatched src_key_padding_mask")
@pytest.mark.parametrize("train", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("causal", [False, True], ids=["all", "causal"])
@pytest.mark.parametrize("padded", [False, True], ids=["whole", "padded"])
@pytest.mark.parametrize("options", [{"batch_first": True}, {}, {"bias": False}], ids=str)
def test_under_the_full_pattern_an_encoder_computes_what_it_did(options, padded, causal, train):
    old = encoder(**options).train(train)
    new = swap_attention(copy.deepcopy(old), sr.Full())
    x, keep = torch.randn(3, 7, 12), torch.ones(3, 7, dtype=torch.bool)
    given = {"mask": CAUSAL} if causal else {}
    if padded:
        given["src_key_padding_mask"], keep = PADDING, ~PADDING
    if not options.get("batch_first"):
        x, keep = x.transpose(0, 1), keep.T
    with torch.no_grad():  # with which torch takes its fast path in evaluation
        torch.testing.assert_close(new(x, **given)[keep], old(x, **given)[keep])


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
def test_torchs_fast_path_does_not_go_round_the_pattern():
    model = swap_attention(encoder(batch_first=True).eval(), LOCAL)
    x = torch.randn(3, 7, 12)
    with torch.no_grad():
        before = model(x, src_key_padding_mask=PADDING)
        x[:, 6] += 1  # two layers of one neighbour a side: seen by 4, 5 and 6
        after = model(x, src_key_padding_mask=PADDING)
    torch.testing.assert_close(before[0, :4], after[0, :4], rtol=0, atol=0)
    assert not torch.equal(before[0, 4], after[0, 4])


def test_a_decoder_with_its_cross_attention_computes_what_it_did():
    old = nn.TransformerDecoder(nn.TransformerDecoderLayer(12, 2, 16, 0.0, batch_first=True), 2)
    new = swap_attention(copy.deepcopy(old), sr.Full())
    target, memory = torch.randn(3, 5, 12), torch.randn(3, 7, 12)
    given = {"tgt_mask": CAUSAL[:5, :5], "memory_key_padding_mask": PADDING}
    expected = old(target, memory, **given)
    torch.testing.assert_close(new(target, memory, **given), expected)
    expected.square().sum().backward()
    new(target, memory, **given).square().sum().backward()
    for (name, x), y in zip(old.named_parameters(), new.parameters(), strict=True):
        torch.testing.assert_close(y.grad, x.grad, rtol=1e-4, atol=1e-5, msg=name)


@pytest.mark.parametrize("average", [True, False])
@pytest.mark.parametrize("sizes", [{}, {"kdim": 5, "vdim": 7}], ids=["one size", "own sizes"])
def test_a_bare_attention_gives_its_weights_too(sizes, average):
    old = nn.MultiheadAttention(12, 3, batch_first=True, **sizes)
    new = swap_attention(old, sr.Full())
    assert new is not old
    assert new.in_proj_bias is old.in_proj_bias
    q = torch.randn(3, 4, 12)
    k, v = torch.randn(3, 7, sizes.get("kdim", 12)), torch.randn(3, 7, sizes.get("vdim", 12))
    for inputs, padding in (((q, k, v), PADDING), ((q[0], k[0], v[0]), PADDING[1])):
        options = {"key_padding_mask": padding, "average_attn_weights": average}
        torch.testing.assert_close(new(*inputs, **options), old(*inputs, **options))
    new.load_state_dict(old.state_dict())


def test_a_pattern_for_each_attention_or_none():
    decoder = nn.TransformerDecoder(nn.TransformerDecoderLayer(12, 2, 16, batch_first=True), 2)

    def chosen(name, module):
        assert module.num_heads == 2
        return sr.Causal() if name == "layers.1.self_attn" else None

    swap_attention(decoder, chosen)
    kinds = [[type(x.self_attn), type(x.multihead_attn)] for x in decoder.layers]
    plain = nn.MultiheadAttention
    assert kinds[0] == [plain, plain]
    assert kinds[1][0] is not plain
    assert kinds[1][1] is plain


def test_queries_of_a_cross_attention_stand_at_the_first_keys():
    layer = swap_attention(nn.MultiheadAttention(12, 3, batch_first=True), sr.SlidingWindow(0, 0))
    _, weights = layer(torch.randn(1, 2, 12), *[torch.randn(1, 5, 12)] * 2)
    torch.testing.assert_close(weights[0], torch.eye(2, 5))


def test_weights_are_dropped_in_training_as_often_as_before():
    layer = swap_attention(nn.MultiheadAttention(4, 1, dropout=0.25, batch_first=True), sr.Full())
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.zero_()
        layer.in_proj_bias[8:], layer.out_proj.weight[:] = 1.0, torch.eye(4)
    x = torch.zeros(64, 100, 4)
    out, _ = layer(x, x, x, need_weights=False)  # means of 100 ones, each dropped or 4 / 3
    assert out.mean().item() == pytest.approx(1.0, abs=0.01)
    assert out[..., 0].std().item() == pytest.approx((0.25 / 0.75 / 100) ** 0.5, rel=0.05)
    torch.testing.assert_close(layer.eval()(x, x, x)[0], torch.ones_like(x))


@pytest.mark.parametrize("dropout", [0.0, 0.1])
def test_a_swapped_encoder_trains_in_mixed_precision(dropout):
    model, x = swap_attention(encoder(dropout, batch_first=True), LOCAL), torch.randn(3, 7, 12)
    with torch.autocast("cpu", torch.bfloat16):
        y = model(x, src_key_padding_mask=PADDING)
    y.float().square().mean().backward()
    assert all(one.grad.isfinite().all() for one in model.parameters())
    if not dropout:
        exact = model(x, src_key_padding_mask=PADDING)
        torch.testing.assert_close(y.float(), exact, rtol=0, atol=0.05)


def test_what_the_pattern_cannot_say_is_refused():
    with pytest.raises(ValueError, match="attention must have no bias_k"):
        swap_attention(nn.MultiheadAttention(4, 1, add_bias_kv=True), LOCAL)
    with pytest.raises(ValueError, match=r"model must hold an .*Attention, got Linear"):
        swap_attention(nn.Linear(3, 3), LOCAL)
    with pytest.raises(TypeError, match="pattern must be a Pattern or a callable, got str"):
        swap_attention(nn.MultiheadAttention(4, 1), "causal")
    layer, x = swap_attention(nn.MultiheadAttention(4, 1), LOCAL), torch.zeros(3, 1, 4)
    with pytest.raises(ValueError, match="attn_mask must be None"):
        layer(x, x, x, attn_mask=torch.zeros(3, 3))
    with pytest.raises(ValueError, match="key_padding_mask must be bool, or hold 0 and -inf only"):
        layer(x, x, x, key_padding_mask=torch.ones(1, 3))


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of torch's own compiler
@pytest.mark.parametrize("train", [True, False], ids=["train", "eval"])
def test_a_swapped_encoder_compiles_into_one_graph(train):
    torch._dynamo.reset()
    model = swap_attention(encoder(batch_first=True).train(train), LOCAL)
    run, x = torch.compile(model, fullgraph=True, backend="aot_eager"), torch.randn(3, 7, 12)
    front = torch.arange(7) < torch.tensor([0, 3, 2])[:, None]
    for given in ({}, {"src_key_padding_mask": front}, {"mask": CAUSAL, "is_causal": True}):
        torch.testing.assert_close(run(x, **given), model(x, **given))


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_compiled_bare_attention_gives_its_weights_too():
    torch._dynamo.reset()
    layer = swap_attention(nn.MultiheadAttention(12, 3, batch_first=True), LOCAL)
    run = torch.compile(layer, fullgraph=True, backend="aot_eager")
    for pattern in (LOCAL, sr.Causal()):
        layer.pattern = pattern
        q, k = torch.randn(2, 4, 12), torch.randn(2, 7, 12)
        torch.testing.assert_close(run(q, k, k), layer(q, k, k))


def test_maps_are_the_weights_of_every_layer_head_and_batch_row():
    pattern = sr.PerHead([sr.Causal() & sr.SlidingWindow(2, 0), sr.Causal() & sr.Strided(3)])
    layer = SparseAttention(12, 2, pattern)
    model = nn.Sequential(layer, nn.LayerNorm(12), layer)
    x = torch.randn(3, 7, 12)
    maps = attention_maps(model, x)
    assert list(maps) == ["0", "0#2"]
    q, (k, _) = layer.projected(x)
    q, k = q.detach().numpy(), k.detach().numpy()
    for head in range(2):
        got = maps["0"].csr(head, 2)
        want = sr.weights(q, k, pattern, head=head, batch=2)
        assert np.array_equal(got.indices, want.indices)
        np.testing.assert_allclose(got.data, want.data, rtol=1e-12)
    assert repr(maps["0"]).startswith("<AttentionMap 7 x 7: batch 3, heads 2, PerHead(")


def test_maps_of_a_swapped_model_know_padding():
    model = swap_attention(encoder(batch_first=True).eval(), LOCAL)
    maps = attention_maps(model, torch.randn(3, 7, 12), src_key_padding_mask=PADDING)
    assert list(maps) == ["layers.0.self_attn", "layers.1.self_attn"]
    rows = maps["layers.1.self_attn"].csr(head=1, batch=1).toarray()
    assert np.array_equal(rows > 0, LOCAL.mask(7, 7)[0] & ~PADDING[1].numpy())
    assert not model._forward_hooks
