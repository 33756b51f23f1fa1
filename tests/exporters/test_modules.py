"""The attention modules against the oracle on the same weights, forward and backward."""

import numpy as np
import pytest

import sparse_ref as sr

torch = pytest.importorskip("torch")

from exporters.pytorch import (  # noqa: E402
    GlobalAttention,
    KeyValueCache,
    LocalAttention,
    LongformerAttention,
    RandomAttention,
    Rotary,
    SparseAttention,
    alibi_slopes,
    attention_maps,
)
from exporters.pytorch import attention as module  # noqa: E402

CAUSAL = sr.Causal() & sr.SlidingWindow(3, 0)
ABSOLUTE = sr.recipes.sparse_transformer_fixed(4, 1)  # depends on where a token is
DIM, HEADS, KV = 12, 4, 2
B, N, M = 2, 11, 7  # batch rows, tokens, tokens of a memory


@pytest.fixture(autouse=True)
def _repeatable():
    torch.manual_seed(0)
    torch.set_num_threads(1)


def layer(pattern=CAUSAL, **options):
    return SparseAttention(DIM, HEADS, pattern, KV, **options).double()


def drawn(n=N, b=B):
    return torch.randn(b, n, DIM, dtype=torch.float64)


def by_oracle(attention, x, memory=None, pattern=None, turn=lambda x: x, **options):
    """The module once more, in NumPy; and what its attention was given."""
    weights = {name: value.detach().numpy() for name, value in attention.state_dict().items()}
    x = x.detach().numpy()
    memory = x if memory is None else memory.detach().numpy()
    wq, wk, wv = np.split(weights["qkv.weight"], np.cumsum(attention.sizes)[:2])
    bq, bk, bv = np.split(weights["qkv.bias"], np.cumsum(attention.sizes)[:2])

    def heads(y, number):
        return y.reshape(*y.shape[:2], number, -1).swapaxes(1, 2)

    q, k = turn(heads(x @ wq.T + bq, HEADS)), turn(heads(memory @ wk.T + bk, KV))
    v = heads(memory @ wv.T + bv, KV)
    out = sr.attention(q, k, v, attention.pattern if pattern is None else pattern, **options).out
    out = out.swapaxes(1, 2).reshape(*x.shape[:2], -1)
    return out @ weights["project.weight"].T + weights["project.bias"]


def same(got, expected, **tolerance):
    tolerance = {"rtol": 0, "atol": 1e-14} | tolerance
    np.testing.assert_allclose(got.detach().numpy(), expected, **tolerance)


def test_queries_and_keys_may_be_smaller_than_values():
    attention, x = layer(head_dim=2), drawn()
    assert attention.qkv.out_features == 4 * 2 + 2 * 2 + 2 * 3
    same(attention(x), by_oracle(attention, x))


def test_a_memory_is_attended_to_from_its_start():
    attention, x, memory = layer(ABSOLUTE), drawn(), drawn(M)
    same(attention(x, memory), by_oracle(attention, x, memory, q_start=0))
    assert torch.equal(attention(x, memory), attention(x, attention.remember(memory)))


@pytest.mark.parametrize("pattern", [CAUSAL, ABSOLUTE], ids=["window", "fixed"])
def test_padding_behind_is_as_if_it_were_not_there(pattern):
    attention, x = layer(pattern), drawn()
    lengths = torch.tensor([5, 11])
    got = attention(x, key_length=lengths)
    same(got, by_oracle(attention, x, kv_lengths=lengths.numpy()))
    same(got[:1, :5], attention(x[:1, :5]).detach().numpy())
    mask = torch.arange(N) < lengths[:, None]
    assert torch.equal(got, attention(x, key_mask=mask))


def test_any_other_mask_is_exact_too():
    attention, x = layer(ABSOLUTE), drawn()
    mask = torch.rand(B, N) < 0.6
    assert not (mask.long().diff() <= 0).all()
    positions = np.where(mask, np.arange(N), -1)
    same(attention(x, key_mask=mask), by_oracle(attention, x, kv_positions=positions, q_start=0))


MASKS = {
    "all": torch.ones(B, N, dtype=torch.bool),
    "padding in front": torch.arange(N) >= torch.tensor([[2], [5]]),
    "padding behind": torch.arange(N) < torch.tensor([[2], [5]]),
    "holes": torch.arange(N) % torch.tensor([[2], [3]]) != 1,
    "none": torch.zeros(B, N, dtype=torch.bool),
}
compiled = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of torch's own compiler


@compiled
def test_a_compiled_module_with_any_mask_is_the_oracle():
    """One graph for all of them: no mask is looked at."""
    torch._dynamo.reset()
    attention, x = layer(ABSOLUTE, sinks=True), drawn()
    run = torch.compile(lambda x, mask: attention(x, key_mask=mask), fullgraph=True,
                        backend="aot_eager")  # fmt: skip
    for pattern in (ABSOLUTE, sr.Full()):  # the second put in its place afterwards
        attention.pattern = pattern
        for name, mask in MASKS.items():
            positions = np.where(mask, np.arange(N), -1)
            want = by_oracle(
                attention, x, kv_positions=positions, q_start=0, sink_logits=np.zeros(HEADS)
            )
            same(run(x, mask), want, err_msg=name)
            same(attention(x, key_mask=mask), want, err_msg=name)


@compiled
def test_a_compiled_cross_attention_with_a_mask_and_its_gradients():
    torch._dynamo.reset()
    attention, x, memory = layer(ABSOLUTE), drawn(), drawn(M)
    mask, grads = MASKS["holes"][:, :M], []
    for run in (attention, torch.compile(attention, fullgraph=True, backend="aot_eager")):
        attention.zero_grad()
        y = run(x, memory, key_mask=mask)
        y.square().sum().backward()
        grads.append([y, *(one.grad.clone() for one in attention.parameters())])
    for eager, traced in zip(*grads, strict=True):
        same(traced, eager.detach().numpy(), atol=1e-12)


@compiled
def test_documents_and_caches_run_in_a_compiled_module_too():
    """In graphs that break, as their numbers have to be looked at."""
    torch._dynamo.reset()
    attention, x = layer(ABSOLUTE), drawn()
    run = torch.compile(attention, backend="aot_eager")
    cache = KeyValueCache(B, KV, N, 3, dtype=torch.float64)
    with torch.no_grad():
        for ids in ([0] * 4 + [1] * 7, [3] * 8 + [-1] * 3):
            documents = torch.tensor(ids)
            want = attention(x, documents=documents).numpy()
            same(run(x, documents=documents), want)
        got = torch.cat([run(step, cache=cache) for step in x.split([6, 1, 4], dim=1)], dim=1)
    same(got, attention(x).detach().numpy())


@pytest.mark.parametrize("pattern", [CAUSAL, ABSOLUTE], ids=["window", "fixed"])
def test_packed_documents_are_as_if_each_were_alone(pattern):
    attention, x = layer(pattern, rotary=Rotary(3 + 1), head_dim=4), drawn()
    documents = torch.tensor([[0] * 4 + [1] * 5 + [-1] * 2, [7] * 6 + [2] * 5])
    got = attention(x, documents=documents)
    for row, start, stop in ((0, 0, 4), (0, 4, 9), (1, 0, 6), (1, 6, 11)):
        alone = attention(x[row : row + 1, start:stop])
        same(got[row : row + 1, start:stop], alone.detach().numpy())
    same(got[0, 9:], attention.project.bias.detach().expand(2, -1).numpy())
    same(attention(x, documents=documents[0])[0], got[0].detach().numpy())


@pytest.mark.parametrize("pattern", [CAUSAL, ABSOLUTE, sr.Causal()], ids=["window", "fixed", "all"])
def test_decoding_with_a_cache_is_the_full_forward(pattern):
    attention, x = layer(pattern, sinks=True, rotary=Rotary(4), head_dim=4), drawn()
    torch.nn.init.normal_(attention.sinks)
    cache = KeyValueCache(B, KV, N, 4, 3, dtype=torch.float64)
    steps = [x[:, :6], *x[:, 6:].split(1, dim=1)]
    got = torch.cat([attention(step, cache=cache) for step in steps], dim=1)
    same(got, attention(x).detach().numpy())
    with pytest.raises(ValueError, match="the cache must hold 12 tokens, got a capacity of 11"):
        attention(x[:, :1], cache=cache)


def test_prompts_of_several_lengths_share_a_cache():
    attention, x = layer(ABSOLUTE, rotary=Rotary(4), head_dim=4), drawn()
    cache = KeyValueCache(B, KV, N, 4, 3, dtype=torch.float64)
    lengths = torch.tensor([3, 6])
    attention(x[:, :6], cache=cache, key_length=lengths)
    assert cache.length.tolist() == [3, 6]
    following = torch.stack([x[0, 3:7], x[1, 6:10]])
    got = torch.cat([attention(step, cache=cache) for step in following.split(1, dim=1)], dim=1)
    full = attention(x).detach().numpy()
    same(got[0], full[0, 3:7])
    same(got[1], full[1, 6:10])


def test_rotary_scores_depend_on_distance_alone():
    turn = Rotary(6)
    x = torch.randn(1, 1, 2, 6)
    near = turn(x, torch.tensor([[0, 4]]))
    far = turn(x, torch.tensor([[100, 104]]))
    torch.testing.assert_close(
        near[..., 0, :] @ near[..., 1, :].mT, far[..., 0, :] @ far[..., 1, :].mT
    )
    assert torch.equal(near[..., 0, :], x[..., 0, :])


def test_rotary_turns_as_complex_numbers_do():
    x = torch.randn(2, 3, 5, 8, dtype=torch.float64)
    pairs = torch.complex(x[..., :4], x[..., 4:]).numpy()
    angles = np.outer(np.arange(5) + 2, 10_000.0 ** -(np.arange(4) / 4))
    turned = pairs * np.exp(1j * angles)
    got = Rotary(8)(x, torch.arange(5)[None] + 2)
    same(got, np.concatenate([turned.real, turned.imag], axis=-1), atol=2e-6)


@pytest.mark.parametrize(
    ("heads", "slopes"),
    [(8, [2.0**-i for i in range(1, 9)]), (3, [2**-4, 2**-8, 2**-2]), (1, [2**-8])],
)
def test_slopes_are_the_papers(heads, slopes):
    assert alibi_slopes(heads).tolist() == slopes


def test_scores_fall_with_distance():
    attention, x = layer(sr.Full(), alibi=True), drawn()
    slopes = alibi_slopes(HEADS).numpy().astype(np.float64)
    same(attention(x), by_oracle(attention, x, alibi_slopes=slopes))


def test_sinks_learn():
    attention, x = layer(sinks=True), drawn()
    torch.nn.init.normal_(attention.sinks)
    same(attention(x), by_oracle(attention, x, sink_logits=attention.sinks.detach().numpy()))
    attention(x).sum().backward()
    assert attention.sinks.grad.abs().min() > 0


def test_dropout_is_of_the_output_and_of_training():
    attention, x = layer(dropout=0.5), drawn()
    zero = (attention(x) == 0).double().mean()
    assert 0.3 < zero < 0.7
    same(attention.eval()(x), by_oracle(attention, x))


def test_gradients_match_finite_differences():
    attention = SparseAttention(4, 2, CAUSAL, 1, sinks=True, head_dim=2).double()
    x = torch.randn(1, 5, 4, dtype=torch.float64, requires_grad=True)
    memory = torch.randn(1, 3, 4, dtype=torch.float64, requires_grad=True)
    names = [name for name, _ in attention.named_parameters()]

    def run(x, memory, *weights):
        state = dict(zip(names, weights, strict=True))
        itself = torch.func.functional_call(attention, state, (x,))
        return itself, torch.func.functional_call(attention, state, (x, memory))

    assert torch.autograd.gradcheck(run, (x, memory, *attention.parameters()))


def test_the_gradient_of_the_module_is_the_oracles():
    """A dumb second way: the oracle's vjp between hand-written projections."""
    attention, x = layer(ABSOLUTE), drawn().requires_grad_()
    y = attention(x)
    dout = torch.randn_like(y)
    y.backward(dout)

    leaf = x.detach().clone().requires_grad_()
    q, k, v = (
        part.unflatten(-1, (-1, 3)).transpose(1, 2)
        for part in attention.qkv(leaf).split(attention.sizes, dim=-1)
    )
    of_heads = (dout @ attention.project.weight).unflatten(-1, (HEADS, 3)).transpose(1, 2)
    arrays = [one.detach().numpy() for one in (q, k, v)]
    grads = sr.attention_vjp(*arrays, ABSOLUTE, of_heads.detach().numpy())
    torch.autograd.backward(
        [q, k, v], [torch.from_numpy(one) for one in (grads.dq, grads.dk, grads.dv)]
    )
    same(x.grad, leaf.grad.numpy(), atol=1e-13)


def test_half_precision_scores_are_taken_in_float32():
    """q.k is 160,000 here, and no float16 is above 65,504."""
    q = k = torch.full((1, 1, 3, 16), 100.0, dtype=torch.float16)
    v = torch.arange(3.0).view(1, 1, 3, 1).half()
    out = module.attend(q, k, v, sr.Causal(), {})
    assert out.dtype == torch.float16
    same(out[0, 0, :, 0].float(), [0.0, 0.5, 1.0], atol=5e-3)


def test_mixed_precision_on_a_cpu_is_near_and_trains():
    attention, x = layer().float(), drawn().float()
    with torch.autocast("cpu", torch.bfloat16):
        y = attention(x)
    assert y.dtype == torch.bfloat16
    y.float().square().sum().backward()
    assert all(one.grad.isfinite().all() for one in attention.parameters())
    same(y.float(), attention(x).detach().numpy(), atol=0.03)


def test_the_three_layers_of_the_tutorial():
    local = LocalAttention(8, 2, 1, causal=True).pattern
    some = GlobalAttention(8, 2, [1], causal=True).pattern
    drawn_keys = RandomAttention(8, 2, 3, length=13, causal=True).pattern
    assert sr.draw(local, 4) == "# . . .\n# # . .\n. # # .\n. . # #"
    assert sr.draw(some, 4) == "# . . .\n# # . .\n. # # .\n. # . #"
    mask = drawn_keys.mask(13, 13)
    assert mask.sum(-1).tolist() == [[min(i + 1, 4) for i in range(13)]] * 2
    assert not np.triu(mask, 1).any()
    assert (mask[0] != mask[1]).any()
    for one in (
        LocalAttention(8, 2, 1),
        GlobalAttention(8, 2, [1]),
        RandomAttention(8, 2, 3, length=5),
    ):
        assert one(torch.zeros(1, 5, 8)).shape == (1, 5, 8)


def test_global_tokens_of_longformer_have_projections_of_their_own():
    attention = LongformerAttention(8, 2, 4)
    x, length = torch.randn(1, 7, 8), torch.tensor([7])
    chosen = torch.tensor([[False, False, True, False, False, False, False]])
    attention(x, chosen, length)[0, 3].sum().backward()
    assert attention.query_global.weight.grad.abs().sum() == 0  # token 3 is a local query
    attention(x, chosen, length)[0, 2].sum().backward()
    assert attention.query_global.weight.grad.abs().sum() > 0


def test_longformers_attention_without_global_tokens_is_a_window():
    attention, x = LongformerAttention(DIM, HEADS, 4).double(), drawn()
    q, k, v = (
        getattr(attention, name)(x).unflatten(-1, (HEADS, -1)).transpose(1, 2).detach().numpy()
        for name in ("query", "key", "value")
    )
    lengths = np.array([5, N])
    want = sr.attention(q, k, v, sr.recipes.longformer(4), kv_lengths=lengths).out
    want = want.swapaxes(1, 2).reshape(B, N, DIM) * (np.arange(N) < lengths[:, None])[..., None]
    same(attention(x, length=torch.from_numpy(lengths)), want)
    same(attention(x)[1], want[1])


def test_a_map_is_the_probabilities_that_made_the_output():
    attention, x = layer(sinks=True, alibi=False), drawn()
    torch.nn.init.normal_(attention.sinks)
    lengths = torch.tensor([5, 11])
    _, (_, v) = attention.projected(x)
    parts, (maps,) = [], attention_maps(attention, x, key_length=lengths).values()
    for head in range(HEADS):
        found = maps.csr(head, batch=1)
        assert found.nnz == CAUSAL.mask(N, N).sum()
        parts.append(found @ v[1, head // 2].detach().numpy())
    out = torch.from_numpy(np.concatenate(parts, axis=-1))
    same(attention(x, key_length=lengths)[1], attention.project(out).detach().numpy())


def test_what_cannot_be_is_refused_in_a_sentence():
    attention, x = layer(), drawn()
    length = torch.tensor([1, 2])
    with pytest.raises(ValueError, match="head_dim must be >= 1, got 0"):
        layer(head_dim=0)
    with pytest.raises(
        ValueError, match=r"key_length must be an int64 tensor \(2,\), got .* \(3,\)"
    ):
        attention(x, key_length=torch.tensor([1, 2, 3]))
    with pytest.raises(
        ValueError, match=r"key_mask must be a bool tensor \(2, 11\), got torch.int64"
    ):
        attention(x, key_mask=torch.ones(2, 11, dtype=torch.int64))
    with pytest.raises(ValueError, match="key_length and key_mask must not both be given"):
        attention(x, key_length=length, key_mask=torch.ones(2, 11, dtype=torch.bool))
    with pytest.raises(ValueError, match="documents must come alone"):
        attention(x, documents=torch.zeros(11, dtype=torch.int64), key_length=length)
    with pytest.raises(ValueError, match="documents must be an int64 tensor"):
        attention(x, documents=torch.zeros(11))
    with pytest.raises(ValueError, match="memory must come without cache"):
        layer(alibi=True)(x, x)
    with pytest.raises(ValueError, match="head_dim must be even"):
        Rotary(3)
    for wrong in (x[0], x[..., :5], x.long()):
        with pytest.raises(ValueError, match=r"x must be a float tensor \(b, m, 12\), got torch"):
            attention(wrong)
    with pytest.raises(ValueError, match=r"memory must be a float tensor \(b, n, 12\), got torch"):
        attention(x, x[..., :3])
    with pytest.raises(
        ValueError, match=r"key_length must be an int64 tensor \(2,\), got .*float32"
    ):
        attention(x, key_length=torch.ones(2))
    for shape in ((10,), (3, 11), (1, 2, 11)):
        with pytest.raises(
            ValueError, match=r"documents must be an int64 tensor \(11,\) or \(2, 11\)"
        ):
            attention(x, documents=torch.zeros(shape, dtype=torch.int64))
    for sizes in ((3, KV, N, 3), (B, HEADS, N, 3), (B, KV, N, 5)):
        with pytest.raises(ValueError, match="keys must have the cache's shape"):
            attention(x, cache=KeyValueCache(*sizes, dtype=torch.float64))
    with pytest.raises(ValueError, match="dim must be a positive multiple of heads = 4, got 6"):
        LongformerAttention(6, 4, 2)
    with pytest.raises(ValueError, match="tokens and length must have shapes"):
        LongformerAttention(12, 4, 2).double()(x, torch.ones(1, 11, dtype=torch.bool))
    holes = torch.tensor([[True, False, True]])
    runtime = SparseAttention(4, 2, sr.Keys(sr.Runtime("tokens")))
    with pytest.raises(ValueError, match="key_mask must have all keys in front"):
        runtime(torch.zeros(1, 3, 4), key_mask=holes)
