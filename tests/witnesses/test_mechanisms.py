"""What packages and models say of the mechanisms and cache policies, in float64 where they can."""

import importlib.util
import sys
import types
from pathlib import Path

import numpy as np
import pytest

import sparse_ref as sr
from sparse_ref import mechanisms as me
from sparse_ref import normalisers as nm
from tests.witnesses.fla import naive

torch = pytest.importorskip("torch", reason="torch is not installed")
pytestmark = pytest.mark.witness
# Our order of operations is another: a few hundred roundings of numbers around 1.
CLOSE = {"rtol": 0, "atol": 1e-12}
# Where softmax, a norm or a rotation of the witness is float32 whatever comes in.
FLOAT32 = {"rtol": 0, "atol": 2e-6}


def normal(*shape, seed=0):
    return np.random.default_rng((seed, *shape)).standard_normal(shape)


def tensor(x):
    return torch.tensor(x, dtype=torch.float64, requires_grad=True)


def heads(x, h):
    """(b, n, h d) as (b, h, n, d)."""
    return x.detach().unflatten(2, (h, -1)).transpose(1, 2).numpy()


def joined(x):
    """(b, h, n, d) as (b, n, h d)."""
    return x.transpose(0, 2, 1, 3).reshape(x.shape[0], x.shape[2], -1)


def matrix(linear, h):
    """The weight of a projection, (c, h, d)."""
    w = linear.weight.detach().numpy()
    return w.T.reshape(w.shape[1], h, -1)


# -- entmax ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("alpha", [1.5, 2.0, 1.25, 3.0])
def test_entmax(alpha):
    """Output and gradients; float64 in its bisection stops at 1e-9 or so after 50 halvings."""
    entmax = pytest.importorskip("entmax", reason="entmax is not installed")
    maps = {1.5: entmax.entmax15, 2.0: entmax.sparsemax}
    q, k, v, up = normal(2, 3, 7, 4), normal(2, 3, 11, 4), normal(2, 3, 11, 5), normal(2, 3, 7, 5)
    pattern = sr.Causal() & (sr.SlidingWindow(4, 0) | sr.Sink(2))
    mask = torch.tensor(pattern.mask(7, 11))
    tq, tk, tv = tensor(q), tensor(k), tensor(v)
    s = (tq @ tk.transpose(-1, -2) * 1.3).masked_fill(~mask, -torch.inf)
    if alpha in maps:
        p = maps[alpha](s, dim=-1)
    else:
        p = entmax.entmax_bisect(s, alpha=alpha, dim=-1, n_iter=100)
    out = p @ tv
    (out * torch.tensor(up)).sum().backward()
    got = nm.entmax_attention(q, k, v, pattern, alpha=alpha, scale=1.3)
    back = nm.entmax_attention_vjp(q, k, v, pattern, up, alpha=alpha, scale=1.3)

    np.testing.assert_allclose(got, out.detach().numpy(), **CLOSE)
    for name, x in (("dq", tq), ("dk", tk), ("dv", tv)):
        np.testing.assert_allclose(getattr(back, name), x.grad.numpy(), rtol=0, atol=1e-10)


def test_entmax_learns_alpha_alike():
    entmax = pytest.importorskip("entmax", reason="entmax is not installed")
    q, k, v, up = normal(1, 2, 5, 3), normal(1, 2, 6, 3), normal(1, 2, 6, 4), normal(1, 2, 5, 4)
    alpha = tensor(np.array([1.3, 1.8]))
    s = tensor(q) @ tensor(k).transpose(-1, -2)
    p = entmax.entmax_bisect(s, alpha=alpha[:, None, None], dim=-1, n_iter=100)
    ((p @ torch.tensor(v)) * torch.tensor(up)).sum().backward()
    got = nm.entmax_attention_vjp(q, k, v, sr.Full(), up, alpha=alpha.detach().numpy(), scale=1)

    np.testing.assert_allclose(got.dalpha, alpha.grad.numpy(), rtol=0, atol=1e-9)


# -- encoders in transformers ---------------------------------------------------------------------


def test_longformer_and_its_gradients():
    """In float32: in float64 its smallest numbers, hidden scores, are NaN after its softmax."""
    pytest.importorskip("transformers", reason="transformers is not installed")
    from transformers import LongformerConfig
    from transformers.models.longformer.modeling_longformer import LongformerSelfAttention

    torch.manual_seed(0)
    n, h, d, length = 30, 2, 5, 23
    config = LongformerConfig(
        hidden_size=h * d, num_attention_heads=h, attention_window=[6],
        attention_probs_dropout_prob=0.0,
    )  # fmt: skip
    layer = LongformerSelfAttention(config, 0).eval()
    x = torch.randn(3, n, h * d)
    flags, chosen = torch.zeros(3, n), [[0, 5], [17], [0, 11, 22]]
    for row, tokens in enumerate(chosen):
        flags[row, tokens] = 10000.0
    flags[:, length:] = -10000.0
    made = []
    names = [f"{name}{suffix}" for suffix in ("", "_global") for name in ("query", "key", "value")]
    for name in names:  # what each projection makes becomes a leaf whose gradient we can read
        y = getattr(layer, name)(x).detach().requires_grad_()
        made.append(y)
        setattr(layer, name, _Constant(y, chosen if name == "query_global" else None))
    out = layer(
        x, attention_mask=flags, is_index_masked=flags < 0, is_index_global_attn=flags > 0,
        is_global_attn=True,
    )[0]  # fmt: skip
    up = normal(3, n, h * d).astype(np.float32)
    (out * torch.tensor(up)).sum().backward()

    given = [heads(y, h) for y in made]
    options = {"window": 6, "global_tokens": chosen, "lengths": length}
    got = me.longformer(*given, **options)
    back = me.longformer_vjp(*given, heads(torch.tensor(up), h), **options)
    np.testing.assert_allclose(joined(got.out), out.detach().numpy(), **FLOAT32)
    for found, y in zip(back, made, strict=True):
        np.testing.assert_allclose(joined(found), y.grad.numpy(), rtol=0, atol=1e-5)


class _Constant(torch.nn.Module):
    """A projection that answers what it was given, of the same tokens as the layer asks for."""

    def __init__(self, y, chosen):
        super().__init__()
        self.y, self.chosen = y, chosen

    def forward(self, x):
        y = self.y.transpose(0, 1) * 1  # the layer works on (n, b, c), and in place
        if self.chosen is None:
            return y
        picked = y.new_zeros(x.shape[:2] + y.shape[2:])
        for row, tokens in enumerate(self.chosen):
            picked[: len(tokens), row] = y[tokens, row]
        return picked


def longt5(n_heads=3, d=4, radius=3, block=4):
    pytest.importorskip("transformers", reason="transformers is not installed")
    from transformers import LongT5Config
    from transformers.models.longt5.modeling_longt5 import LongT5TransientGlobalAttention

    torch.manual_seed(0)
    config = LongT5Config(
        d_model=10, d_kv=d, num_heads=n_heads, local_radius=radius, global_block_size=block,
        relative_attention_num_buckets=8, relative_attention_max_distance=6, dropout_rate=0.0,
    )  # fmt: skip
    layer = LongT5TransientGlobalAttention(config, has_relative_attention_bias=True).double().eval()
    torch.nn.init.normal_(layer.global_input_layer_norm.weight)
    layer.o = torch.nn.Identity()
    return layer


def table(layer, embedding, left, right):
    """T5's buckets written out as a table of distances."""
    buckets = layer._relative_position_bucket(
        torch.arange(-left, right + 1), num_buckets=8, max_distance=6
    )
    return sr.RelativeBias(embedding.weight.detach()[buckets].T.numpy(), left)


def weights_of(layer, h=3):
    return {
        "query": matrix(layer.q, h), "key": matrix(layer.k, h), "value": matrix(layer.v, h),
        "norm": layer.global_input_layer_norm.weight.detach().numpy(),
        "radius": layer.local_radius, "global_block_size": layer.global_block_size,
        "bias": table(layer, layer.relative_attention_bias, 3, 3),
        "global_bias": table(layer, layer.global_relative_attention_bias, 9, 9),
    }  # fmt: skip


def test_longt5s_transient_global_attention():
    """21 tokens in blocks of 4: the last one joins the fifth; of 14 two join the third."""
    layer, lengths, x = longt5(), [21, 14], tensor(normal(2, 21, 10) / 2)
    mask = (torch.arange(21) < torch.tensor(lengths)[:, None]).long()
    out = layer(x, mask=mask)[0]
    up = normal(2, 21, 12)
    up[1, 14:] = 0
    (out * torch.tensor(up)).sum().backward()
    given = {**weights_of(layer), "lengths": lengths}
    got = me.longt5_tglobal(x.detach().numpy(), **given)
    back = me.longt5_tglobal_vjp(x.detach().numpy(), **given, dout=heads(torch.tensor(up), 3))

    for row, length in enumerate(lengths):
        want = out[row, :length].detach().numpy()
        np.testing.assert_allclose(joined(got.out)[row, :length], want, **FLOAT32)
    close = {"rtol": 0, "atol": 2e-5}
    np.testing.assert_allclose(back.dx, x.grad.numpy(), **close)
    norm = layer.global_input_layer_norm.weight.grad.numpy()
    np.testing.assert_allclose(back.dnorm, norm, **close)
    for found, linear in ((back.dquery, layer.q), (back.dkey, layer.k), (back.dvalue, layer.v)):
        np.testing.assert_allclose(found.reshape(10, -1).T, linear.weight.grad.numpy(), **close)


def reformer(rounds, *, causal, n=32, h=2, d=6, buckets=8, double=True):
    pytest.importorskip("transformers", reason="transformers is not installed")
    from transformers import ReformerConfig
    from transformers.models.reformer.modeling_reformer import LSHSelfAttention

    torch.manual_seed(0)
    config = ReformerConfig(
        hidden_size=h * d, num_attention_heads=h, attention_head_size=d, num_hashes=rounds,
        lsh_attn_chunk_length=4, lsh_num_chunks_before=1, lsh_num_chunks_after=0,
        num_buckets=buckets, is_decoder=causal, hash_seed=3, lsh_attention_probs_dropout_prob=0.0,
    )  # fmt: skip
    layer = LSHSelfAttention(config, 0).eval()
    layer = layer.double() if double else layer
    x = torch.randn(2, n, h * d, dtype=torch.float64 if double else torch.float32)
    return layer, x


def rotations(layer, shape):
    """What it draws: it seeds torch's global generator for every call."""
    torch.manual_seed(3)
    return torch.randn(*shape, dtype=torch.float64).numpy()


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize(("rounds", "lengths"), [(1, [32, 32]), (3, [32, 32]), (2, [32, 27])])
def test_reformer_in_float64(rounds, lengths, causal):
    layer, x = reformer(rounds, causal=causal)
    mask = (torch.arange(32) < torch.tensor(lengths)[:, None]).long()
    x.requires_grad_()
    found = layer(x, attention_mask=mask)
    qk, v = (heads(part(x), 2) for part in (layer.query_key, layer.value))
    ours = me.lsh_buckets(qk, rotations(layer, (2, 6, rounds, 4)), lengths=lengths)
    got = me.reformer(qk, v, ours, chunk_length=4, causal=causal, lengths=lengths)
    count = 8 + (min(lengths) < 32)  # its buckets number the rounds one after another
    offsets = count * np.arange(rounds)[:, None]

    np.testing.assert_array_equal(ours + offsets, found.buckets.numpy())
    for row, length in enumerate(lengths):
        want = found.hidden_states[row, :length].detach().numpy()
        # the shares of rounds that show a token only itself are known to 1e-11, next to -1e5
        np.testing.assert_allclose(joined(got.out)[row, :length], want, rtol=0, atol=1e-11)


def test_reformers_gradients():
    layer, x = reformer(2, causal=False)
    x.requires_grad_()
    qk, v = layer.query_key(x), layer.value(x)
    qk.retain_grad(), v.retain_grad()
    layer.query_key, layer.value = _Answer(qk), _Answer(v)
    found = layer(x)
    up = normal(2, 32, 12)
    (found.hidden_states * torch.tensor(up)).sum().backward()
    buckets = me.lsh_buckets(heads(qk, 2), rotations(layer, (2, 6, 2, 4)))
    back = me.reformer_vjp(
        heads(qk, 2), heads(v, 2), buckets, heads(torch.tensor(up), 2), chunk_length=4
    )

    np.testing.assert_allclose(joined(back.dqk), qk.grad.numpy(), **CLOSE)
    np.testing.assert_allclose(joined(back.dv), v.grad.numpy(), **CLOSE)


class _Answer(torch.nn.Module):
    def __init__(self, y):
        super().__init__()
        self.y = y

    def forward(self, x):
        return self.y


def test_reformers_decoder_rounds_off_its_first_rows_in_float32():
    """Where a round shows nothing but the token itself, its score is -1e5, give or take 0.004."""
    layer, x = reformer(4, causal=True, double=False)
    with torch.no_grad():
        out = layer(x).hidden_states.numpy()
        qk, v = (heads(part(x), 2).astype(np.float64) for part in (layer.query_key, layer.value))
        buckets = layer(x).buckets.numpy()
    got = me.reformer(qk, v, buckets, chunk_length=4, causal=True).out
    error = np.abs(heads(torch.tensor(out), 2) - got).max(axis=-1)
    alone = (got == v).all(axis=-1)  # such as the first token, in all rounds

    assert alone[:, :, 0].all()
    assert 1e-4 < error[alone].max() < 1e-2
    assert error[~alone].max() < 2e-6


def test_short_texts_are_plain_attention_there_too():
    layer, x = reformer(3, causal=False, n=4)
    with torch.no_grad():
        found = layer(x)
    qk, v = (heads(part(x), 2) for part in (layer.query_key, layer.value))
    got = me.reformer(qk, v, np.zeros((2, 2, 3, 4), dtype=int), chunk_length=4)

    np.testing.assert_allclose(joined(got.out), found.hidden_states.numpy(), **CLOSE)


# -- models that choose ---------------------------------------------------------------------------


class Recorded:
    """What a model hands to its eager attention, and what it gets."""

    def __init__(self, module, monkeypatch):
        attend = module.eager_attention_forward

        def recording(layer, q, k, v, mask, **options):
            out = attend(layer, q, k, v, mask, **options)
            self.q, self.k, self.v, self.out = (
                x.detach().numpy() for x in (q, k, v, out[0].transpose(1, 2))
            )
            self.answer = out[0]
            if out[0].requires_grad:
                out[0].retain_grad()
            return out

        self.dout = lambda: self.answer.grad.transpose(1, 2).numpy()

        monkeypatch.setattr(module, "eager_attention_forward", recording)


def test_deepseek_v32(monkeypatch):
    """13 keys of 23; in rows that see fewer it picks future ones, and its mask hides them."""
    pytest.importorskip("transformers", reason="transformers is not installed")
    from transformers import DeepseekV32Config
    from transformers.models.deepseek_v32 import modeling_deepseek_v32 as module

    torch.manual_seed(0)
    b, n = 2, 23
    config = DeepseekV32Config(
        hidden_size=24, num_attention_heads=4, num_key_value_heads=4, q_lora_rank=10,
        kv_lora_rank=12, qk_rope_head_dim=4, qk_nope_head_dim=6, v_head_dim=5, index_topk=13,
        index_head_dim=8, index_n_heads=16, num_hidden_layers=1, attn_implementation="eager",
    )  # fmt: skip
    layer = module.DeepseekV32Attention(config, 0).double().eval()
    layer.indexer.float()  # its own arithmetic is float32
    x = torch.randn(b, n, 24, dtype=torch.float64)
    at = torch.arange(n)[:, None] * torch.tensor([0.7, 0.1, 0.7, 0.1], dtype=torch.float64)
    cos, sin = (f(at).expand(b, n, 4) for f in (torch.cos, torch.sin))
    mask = torch.zeros(b, 1, n, n, dtype=torch.float64).masked_fill(
        ~torch.ones(n, n).tril().bool(), -torch.inf
    )
    seen, indexer = Recorded(module, monkeypatch), layer.indexer
    indexer.register_forward_pre_hook(_as_float32)
    with torch.no_grad():
        layer(x, (cos, sin), mask)
        residual = layer.q_a_layernorm(layer.q_a_proj(x)).float()
        iq = indexer.wq_b(residual).unflatten(2, (16, 8))
        ik = indexer.k_norm(indexer.wk(x.float()))[:, :, None]
        turned = module.apply_rotary_pos_emb(
            iq[..., :4], ik[..., :4], cos.float(), sin.float(), unsqueeze_dim=2
        )
        iq, ik = (
            torch.cat([part, whole[..., 4:]], dim=-1)
            for part, whole in zip(turned, (iq, ik), strict=True)
        )
        weights = indexer.weights_proj(x.float())
    got = me.dsa(
        seen.q, seen.k, seen.v, iq.transpose(1, 2).numpy(), ik[:, :, 0].numpy(),
        weights.numpy(), count=13, scale=layer.scaling,
    )  # fmt: skip

    np.testing.assert_allclose(got.out, seen.out, **FLOAT32)
    assert np.abs(got.out - sr.attention(seen.q, seen.k, seen.v, sr.Causal()).out).max() > 0.1


def _as_float32(module, args):
    """The indexer in its own precision, in a layer of float64."""
    x, residual, (cos, sin), mask, *rest = args
    return x.float(), residual.float(), (cos.float(), sin.float()), mask.float(), *rest


def deepseek_v4(kind, monkeypatch, *, ratio, window=5, n=23, h=4, d=8, count=3):
    """A layer, its input, what reached its attention, and cos and sin of all positions."""
    pytest.importorskip("transformers", reason="transformers is not installed")
    from transformers import DeepseekV4Config
    from transformers.models.deepseek_v4 import modeling_deepseek_v4 as module

    torch.manual_seed(1)
    config = DeepseekV4Config(
        hidden_size=24, num_attention_heads=h, head_dim=d, q_lora_rank=10, o_groups=2,
        o_lora_rank=3, index_n_heads=16, index_head_dim=6, index_topk=count, num_hidden_layers=1,
        sliding_window=window, layer_types=[kind], compress_rates={kind: ratio},
        partial_rotary_factor=0.5, attn_implementation="eager",
    )  # fmt: skip
    layer = module.DeepseekV4Attention(config, 0).eval()
    for parameter in layer.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    x = torch.randn(2, n, 24)
    positions = torch.arange(n).expand(2, n)
    angles = {
        name: module.DeepseekV4RotaryEmbedding(config)(x, positions, layer_type=name)
        for name in ("main", "compress")
    }
    visible = sr.Causal() & sr.SlidingWindow(window - 1, 0)
    mask = torch.zeros(2, 1, n, n).masked_fill(~torch.tensor(visible.mask(n, n)), -torch.inf)
    seen = Recorded(module, monkeypatch)
    out, _ = layer(x, angles, positions, mask)
    out.backward(torch.randn(out.shape))
    return layer, x, seen, angles["compress"]


def gradients_agree(back, part, x, angles, layer):
    """Those of the sinks and, through rotation and compression, of all weights of a compressor."""
    from transformers.models.deepseek_v4.modeling_deepseek_v4 import apply_rotary_pos_emb

    ratio = len(part.position_bias)
    cos, sin = (a[:, ::ratio][:, : back.dentries.shape[1]] for a in angles)
    turned_back = apply_rotary_pos_emb(torch.tensor(back.dentries)[:, None].float(), cos, -sin)
    with torch.no_grad():
        values, gates = part.kv_proj(x).numpy(), part.gate_proj(x).numpy()
    found = me.csa_compress_vjp(
        values, gates, part.position_bias.detach().numpy(), part.kv_norm.weight.detach().numpy(),
        turned_back[:, 0].numpy(), eps=part.kv_norm.variance_epsilon,
    )  # fmt: skip
    pairs = [
        (back.dsink_logits, layer.sinks), (found.dposition_bias, part.position_bias),
        (found.dnorm, part.kv_norm.weight),
        (np.einsum("bnc,bnd->cd", found.dvalues, x.numpy()), part.kv_proj.weight),
        (np.einsum("bnc,bnd->cd", found.dgates, x.numpy()), part.gate_proj.weight),
    ]  # fmt: skip
    for got, parameter in pairs:
        want = parameter.grad.numpy()
        assert np.abs(got - want).max() <= 1e-5 * np.abs(want).max()


def compressed(part, x, angles):
    """Our entries of one of its compressors, rotated by its own function."""
    from transformers.models.deepseek_v4.modeling_deepseek_v4 import apply_rotary_pos_emb

    weights = (part.position_bias, part.kv_norm.weight)
    with torch.no_grad():
        entries = me.csa_compress(
            part.kv_proj(x).numpy(), part.gate_proj(x).numpy(),
            *(w.detach().numpy() for w in weights), eps=part.kv_norm.variance_epsilon,
        )  # fmt: skip
        ratio = len(part.position_bias)
        cos, sin = (a[:, ::ratio][:, : entries.shape[1]] for a in angles)
        turned = apply_rotary_pos_emb(torch.tensor(entries)[:, None].float(), cos, sin)
    return turned[:, 0].numpy()


def test_deepseek_v4_csa(monkeypatch):
    """Window 5, entries of 4 tokens and the 4 before; the best 3 of at most 5, and a sink."""
    from transformers.models.deepseek_v4.modeling_deepseek_v4 import apply_rotary_pos_emb

    layer, x, seen, angles = deepseek_v4("compressed_sparse_attention", monkeypatch, ratio=4)
    entries = compressed(layer.compressor, x, angles)
    indexer = layer.compressor.indexer
    with torch.no_grad():
        residual = layer.q_a_norm(layer.q_a_proj(x))
        iq = indexer.q_b_proj(residual).unflatten(2, (16, 6)).transpose(1, 2)
        iq = apply_rotary_pos_emb(iq, *angles).numpy()
        weights = indexer.scorer.weights_proj(x).numpy()
    given = (seen.q, seen.k[:, 0, :23], entries, iq, compressed(indexer, x, angles), weights)
    sinks = layer.sinks.detach().numpy()
    got = me.csa(*given, count=3, ratio=4, window=5, sink_logits=sinks)

    np.testing.assert_allclose(entries, seen.k[:, 0, 23:], **FLOAT32)
    np.testing.assert_allclose(got.out, seen.out, **FLOAT32)
    back = me.csa_vjp(*given, seen.dout(), count=3, ratio=4, window=5, sink_logits=sinks)
    gradients_agree(back, layer.compressor, x, angles, layer)
    every = me.hca(*given[:3], ratio=4, window=5, sink_logits=sinks)
    assert np.abs(every.out - seen.out).max() > 0.1  # the choice is a choice


def test_deepseek_v4_hca(monkeypatch):
    layer, x, seen, angles = deepseek_v4("heavily_compressed_attention", monkeypatch, ratio=6)
    entries = compressed(layer.compressor, x, angles)
    sinks = layer.sinks.detach().numpy()
    sizes = {"ratio": 6, "window": 5, "sink_logits": sinks}
    got = me.hca(seen.q, seen.k[:, 0, :23], entries, **sizes)

    np.testing.assert_allclose(entries, seen.k[:, 0, 23:], **FLOAT32)
    np.testing.assert_allclose(got.out, seen.out, **FLOAT32)
    back = me.hca_vjp(seen.q, seen.k[:, 0, :23], entries, seen.dout(), **sizes)
    gradients_agree(back, layer.compressor, x, angles, layer)


def swapped(x):
    """(b, h, n, d) as (b, n, h, d), a tensor."""
    return torch.tensor(x).transpose(1, 2)


def test_flas_naive_dsa(monkeypatch):
    module = naive("dsa", monkeypatch)
    n = 17
    q, k, v = normal(2, 6, n, 4), normal(2, 3, n, 4), normal(2, 3, n, 5)
    iq, ik, iw = normal(2, 8, n, 3), normal(2, n, 3), normal(2, n, 8)
    want, indices = module.naive_dsa(
        swapped(q), swapped(k), swapped(v), swapped(iq), torch.tensor(ik), torch.tensor(iw),
        topk=5, return_indices=True,
    )  # fmt: skip
    assert indices.max() > 5
    got = me.dsa(q, k, v, iq, ik, iw, count=5)

    np.testing.assert_allclose(got.out, want.transpose(1, 2).numpy(), **FLOAT32)


def test_flas_naive_nsa(monkeypatch):
    """Compression by means and the choice of blocks, each by its own reference there.

    Its window needs flash-attention; ours is one of attention's patterns.
    """
    module = naive("nsa", monkeypatch)
    n, size, scale = 29, 4, 0.6
    q, k, v = normal(2, 8, n, 4), normal(2, 2, n, 4), normal(2, 2, n, 4, seed=1)
    gates = np.random.default_rng(0).random((2, 8, n, 3))

    def means(x):  # with a last block that is not complete, as its pooling has it
        return torch.stack([b.mean(dim=1) for b in swapped(x).split(size, dim=1)], dim=1)

    far, _ = module.naive_nsa_compression(swapped(q), means(k), means(v), size, scale)
    blocks = module.naive_nsa_topk(swapped(q), means(k), 4, size, scale)
    near = module.naive_nsa_selection(swapped(q), swapped(k), swapped(v), blocks, size, scale)
    recent = sr.attention(q, k, v, sr.Causal() & sr.SlidingWindow(6, 0), scale=scale).out
    want = (
        far.transpose(1, 2).numpy() * gates[..., :1]
        + near.transpose(1, 2).numpy() * gates[..., 1:2]
        + recent * gates[..., 2:]
    )
    got = me.nsa(
        q, k, v, gates, count=4, block_size=size, window=size, stride=size, recent=7, scale=scale
    )

    np.testing.assert_allclose(got, want, **FLOAT32)


# -- caches ---------------------------------------------------------------------------------------


def press(file, name, monkeypatch):
    """One of kvpress's scorers, without the pipeline that importing the package brings."""
    found = importlib.util.find_spec("kvpress")
    if found is None:
        pytest.skip("kvpress is not installed")
    pytest.importorskip("transformers", reason="transformers is not installed")
    folder = Path(found.submodule_search_locations[0]) / "presses"
    for stub in ("kvpress", "kvpress.presses", "kvpress.presses.base_press", "kvpress.utils"):
        module = types.ModuleType(stub)
        module.BasePress = object
        module.compute_n_kept = module.get_prerope_query_states = None
        monkeypatch.setitem(sys.modules, stub, module)
    for one in ("scorer_press", "snapkv_press", file):  # each imports those before it
        spec = importlib.util.spec_from_file_location(
            f"kvpress.presses.{one}", folder / f"{one}.py"
        )
        module = importlib.util.module_from_spec(spec)
        monkeypatch.setitem(sys.modules, f"kvpress.presses.{one}", module)
        spec.loader.exec_module(module)
    return getattr(module, name)


def asked(scorer, q, k):
    """Its scores, (b, g, n), of keys by the attention of a causal prompt."""
    s = np.einsum("bgrmd,bgnd->bgrmn", q.reshape(*k.shape[:2], -1, *q.shape[2:]), k)
    s = torch.tensor(s.reshape(*q.shape[:3], -1) * q.shape[-1] ** -0.5)
    p = s.masked_fill(~torch.ones(s.shape[-2:]).tril().bool(), -torch.inf).softmax(dim=-1)
    layer = types.SimpleNamespace(
        config=types.SimpleNamespace(num_attention_heads=q.shape[1]), head_dim=q.shape[-1]
    )
    keys = torch.tensor(k)
    return scorer.score(layer, torch.zeros(2, q.shape[2], 1), keys, keys, p, {}).numpy()


def test_kvpress_keeps_what_snapkv_keeps(monkeypatch):
    q, k = normal(2, 6, 40, 5), normal(2, 3, 40, 5)
    scorer = press("snapkv_press", "SnapKVPress", monkeypatch)(window_size=7, kernel_size=5)
    scores = asked(scorer, q, k)
    got = sr.selection.snapkv(q, k, capacity=18, window=7, kernel=5, grouped=True)

    want = np.sort(np.argsort(-scores, axis=-1)[..., :18], axis=-1)
    np.testing.assert_array_equal(got.indices[:, :, 0], want)


def test_kvpress_keeps_what_tova_keeps_after_a_prompt(monkeypatch):
    """But for the prompt's last key, which it keeps always."""
    q, k = normal(2, 6, 40, 5), normal(2, 3, 40, 5)
    scores = asked(press("tova_press", "TOVAPress", monkeypatch)(), q, k)[:, 0]
    again = [np.concatenate([x, x[:, :, -1:]], axis=2) for x in (q, k)]  # a query that asks
    got = sr.selection.tova(*again, count=18, prompt=40)
    for b in range(2):
        kept = set(got.indices[b, 0, 40].tolist()) - {-1, 40}
        order = np.argsort(-scores[b]).tolist()
        assert order[0] == 39
        others = [key for key in order if key != 39]
        assert kept == set(others[:18]) or kept == {39, *others[:17]}
