"""Selectors asked of other people's code: transformers' indexers, fla-core, MoBA, XunhaoLai's NSA.

torch's top-k leaves the order of ties open, so where a witness may tie the *scores* of what it
selected are compared, as multisets; and where it names keys that its query cannot see, that is
what the test says.
"""

import types

import numpy as np
import pytest

import sparse_ref as sr
from sparse_ref import selection
from tests.witnesses.fla import naive

torch = pytest.importorskip("torch", reason="torch is not installed")
pytestmark = pytest.mark.witness
N, HIDDEN = 27, 24


def module(family, name, seed=0, **config):
    """An indexer with random weights, and its config."""
    models = pytest.importorskip(f"transformers.models.{family}.modeling_{family}")
    torch.manual_seed(seed)
    made = getattr(models, name)(types.SimpleNamespace(**config), layer_idx=0)
    for parameter in made.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return made.eval()


def hidden(batch=2, n=N, seed=1):
    return torch.randn(batch, n, HIDDEN, generator=torch.Generator().manual_seed(seed))


def rotation(n, size, theta=100.0):
    """cos and sin (1, n, size), half-split."""
    angle = torch.arange(n)[:, None] / theta ** (torch.arange(0, size, 2) / size)
    angle = torch.cat([angle, angle], dim=-1)[None]
    return angle.cos(), angle.sin()


def unrotated(n, size):
    return torch.ones(1, n, size), torch.zeros(1, n, size)


def doubles(x):
    return x.detach().double().numpy()


def sets(selected):
    """Every row's indices as a set, without padding."""
    return [
        set(row[row >= 0].tolist()) for row in np.asarray(selected).reshape(-1, selected.shape[-1])
    ]


def index_scores(q, k, w):
    dots = np.maximum(np.einsum("bhmd,bnd->bhmn", q, k), 0)
    return np.einsum("bmh,bhmn->bmn", w, dots)


def same_scores(scores, ours, theirs):
    """Whether two rows of indices, -1 padded, name keys with the same scores."""
    mine, yours = (np.sort(scores[row[row >= 0]]) for row in (ours, theirs))
    return mine.shape == yours.shape and np.allclose(mine, yours, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("family", ["deepseek_v32", "glm_moe_dsa"])
@pytest.mark.parametrize("count", [5, 40])
def test_dsa_selects_the_same_scores_and_future_keys_besides(family, count):
    """transformers names `min(count, n)` keys in every row: early rows name future ones."""
    name = {"deepseek_v32": "DeepseekV32Indexer", "glm_moe_dsa": "GlmMoeDsaIndexer"}[family]
    heads, size = 4, 8
    indexer = module(
        family, name, hidden_size=HIDDEN, index_n_heads=heads, index_head_dim=size,
        qk_rope_head_dim=4, index_topk=count, q_lora_rank=HIDDEN,
    )  # fmt: skip
    x = hidden()
    causal = torch.tril(torch.ones(N, N, dtype=torch.bool))[None]
    with torch.no_grad():
        theirs = indexer(x, x, unrotated(N, 4), causal, None).numpy()
        q = indexer.wq_b(x).view(2, N, heads, size).transpose(1, 2)
        k, w = indexer.k_norm(indexer.wk(x)), indexer.weights_proj(x)
    if (
        family == "glm_moe_dsa"
    ):  # its rotation, even by nothing, sorts the channels: even ones first
        order = [0, 2, 1, 3, 4, 5, 6, 7]
        q, k = q[..., order], k[..., order]
    q, k, w = doubles(q), doubles(k), doubles(w)
    ours = selection.lightning_indexer(q, k, w, count=count)

    scores, future = index_scores(q, k, w), 0
    for b in range(2):
        for t in range(N):
            listed = theirs[b, t][theirs[b, t] <= t]
            future += len(theirs[b, t]) - len(listed)
            assert len(listed) == min(count, t + 1)
            assert same_scores(scores[b, t], ours.indices[b, 0, t], listed)
            assert ours.indices[b, 0, t].max() <= t
    short = min(count, N)
    assert future == 2 * sum(short - min(count, t + 1) for t in range(N))


def test_dsa_scores_tie_often():
    """What makes the tie rule matter: ReLU leaves exact zeros."""
    rng = np.random.default_rng(0)
    q, k = rng.standard_normal((1, 4, N, 8)), rng.standard_normal((1, N, 8))
    scores = index_scores(q, k, np.ones((1, N, 4)))[0]
    assert (scores[np.tri(N, dtype=bool)] == 0).sum() > 10


def test_msa_blocks_equal_those_of_minimax():
    heads, size, count, block = 2, 8, 3, 4
    indexer = module(
        "minimax_m3_vl", "MiniMaxM3VLIndexer", index_head_dim=size, index_n_heads=heads,
        index_block_size=block, index_topk_blocks=count, index_local_blocks=1,
        hidden_size=HIDDEN, rms_norm_eps=1e-6,
    )  # fmt: skip
    x = hidden(seed=2)
    with torch.no_grad():
        theirs = indexer(x, unrotated(N, size), None, torch.arange(N).expand(2, N)).numpy()
        q = indexer.q_norm(indexer.q_proj(x).view(2, N, heads, size)).transpose(1, 2)
        k = indexer.k_norm(indexer.k_proj(x).view(2, N, size))
    ours = selection.msa(doubles(q), doubles(k), count=count, block_size=block)

    assert sets(ours.indices) == sets(theirs)


@pytest.mark.parametrize("local", [0, 2])
def test_msa_with_other_numbers_of_local_blocks(local):
    indexer = module(
        "minimax_m3_vl", "MiniMaxM3VLIndexer", index_head_dim=8, index_n_heads=2,
        index_block_size=5, index_topk_blocks=4, index_local_blocks=local,
        hidden_size=HIDDEN, rms_norm_eps=1e-6,
    )  # fmt: skip
    x = hidden(seed=3)
    with torch.no_grad():
        theirs = indexer(x, unrotated(N, 8), None, torch.arange(N).expand(2, N)).numpy()
        q = indexer.q_norm(indexer.q_proj(x).view(2, N, 2, 8)).transpose(1, 2)
        k = indexer.k_norm(indexer.k_proj(x).view(2, N, 8))
    ours = selection.msa(doubles(q), doubles(k), count=4, block_size=5, local=local)

    assert sets(ours.indices) == sets(theirs)


@pytest.fixture(scope="module")
def qsa_indexer():
    return module(
        "qwen4_exp", "Qwen4ExpTextQSAIndexer", hidden_size=HIDDEN, indexer_n_heads=3,
        indexer_kv_heads=1, indexer_head_dim=8, indexer_budget=8, indexer_compress_ratio=4,
        rms_norm_eps=1e-6,
    )  # fmt: skip


def qsa_inputs(indexer, x, cos, sin):
    """Index queries, raw index keys, and what the model makes of a group's mean."""
    models = pytest.importorskip("transformers.models.qwen4_exp.modeling_qwen4_exp")
    b, n, _ = x.shape
    q, k = torch.split(indexer.index_qk_proj(x), [24, 8], dim=-1)
    q = indexer.q_layernorm(q.view(b, n, 3, 8))
    q = models.apply_rotary_pos_emb(q, cos=cos, sin=sin, unsqueeze_dim=2).transpose(1, 2)

    def prepare(mean, position):
        normed = indexer.k_layernorm(torch.tensor(mean, dtype=torch.float32))[:, None]
        at = torch.tensor(position)
        rotated = models.apply_rotary_pos_emb(normed, cos=cos[0, at], sin=sin[0, at])
        return doubles(rotated[:, 0])

    return doubles(q), doubles(k), prepare


def test_qsa_selects_the_keys_of_qwen(qsa_indexer):
    """Real rotation: pooling after it would select others. Rows lose their own key now and then."""
    x, (cos, sin) = hidden(seed=4), rotation(N, 8)
    causal = torch.tril(torch.ones(N, N, dtype=torch.bool)).expand(2, 1, N, N)
    with torch.no_grad():
        theirs = qsa_indexer(x, (cos.expand(2, -1, -1), sin.expand(2, -1, -1)), causal, None)
        q, k, prepare = qsa_inputs(qsa_indexer, x, cos, sin)
        ours = selection.qsa(q, k, budget=8, ratio=4, prepare=prepare)

    masks = np.stack([ours.mask(N, N, batch=b) for b in range(2)])
    assert (masks == theirs.numpy()).all()
    own = masks[:, 0, np.arange(N), np.arange(N)]
    assert not own.all()
    assert own[:, np.arange(N) % 4 != 3].all()


def test_qsa_groups_the_visible_keys_of_a_padded_row(qsa_indexer):
    """Left padding: transformers groups what is visible, as positions that start after it do."""
    x, (cos, sin), pad = hidden(batch=1, seed=5), rotation(N, 8), 3
    mask = torch.tril(torch.ones(N, N, dtype=torch.bool)) & (torch.arange(N) >= pad)
    with torch.no_grad():
        theirs = qsa_indexer(x, (cos, sin), mask[None, None], None)
        q, k, prepare = qsa_inputs(qsa_indexer, x, cos, sin)
        where = {"q_start": -pad, "kv_positions": np.arange(N) - pad}
        ours = selection.qsa(
            q, k, budget=8, ratio=4, prepare=lambda mean, at: prepare(mean, at + pad), **where
        )

    assert (ours.mask(N, N, **where) == theirs.numpy()[0]).all()


def test_nsa_blocks_equal_those_of_fla_core(monkeypatch):
    """fla-core: window = stride = block, mean keys, first, own and previous block forced."""
    of_fla = naive("nsa", monkeypatch)
    rng = np.random.default_rng(6)
    q = rng.standard_normal((2, 4, N, 8)).astype(np.float32)
    k = rng.standard_normal((2, 2, N, 8)).astype(np.float32)
    block, count = 4, 5
    whole = N // block * block
    compressed = k[:, :, :whole].reshape(2, 2, -1, block, 8).mean(axis=3)
    ragged = np.concatenate([compressed, np.zeros_like(compressed[:, :, :1])], axis=2)
    theirs = of_fla.naive_nsa_topk(
        torch.tensor(q).transpose(1, 2), torch.tensor(ragged).transpose(1, 2),
        block_counts=count, block_size=block, scale=8**-0.5,
    ).transpose(1, 2).numpy()  # fmt: skip
    sizes = {"block_size": block, "window": block, "stride": block}
    ours = selection.nsa_blocks(q, k, count=count, **sizes)

    assert sets(ours.indices) == sets(theirs)
    given = selection.nsa_blocks(q, k, count=count, compressed=compressed, **sizes)
    assert (given.indices == ours.indices).all()


def test_dsa_equals_that_of_fla_core_once_it_is_told_of_relu(monkeypatch):
    of_fla = naive("dsa", monkeypatch)
    rng = np.random.default_rng(7)
    q, k, w = (
        rng.standard_normal(s).astype(np.float32) for s in ((1, 3, N, 8), (1, N, 8), (1, N, 3))
    )
    ask = [torch.tensor(x) for x in (q.swapaxes(1, 2), k, w)]
    ours = selection.lightning_indexer(q, k, w, count=5)

    theirs = of_fla.naive_dsa_indexer(*ask, topk=5, activation="relu").numpy()
    default = of_fla.naive_dsa_indexer(*ask, topk=5).numpy()
    scores = index_scores(q, k, w)[0]
    pairs = zip(scores, ours.indices[0, 0], theirs[0], default[0], strict=True)
    agree = [(same_scores(s, a, b), same_scores(s, a, c)) for s, a, b, c in pairs]
    assert all(same for same, _ in agree)
    assert not all(same for _, same in agree)


def moba_by_hand(q, k, count, size):
    """MoonshotAI/MoBA 61e456b, moba_naive.py, one sequence: the keys attended to (h, n, n)."""
    n = q.shape[1]
    blocks = -(-n // size)
    means = torch.stack([k[:, i * size : (i + 1) * size].mean(dim=1) for i in range(blocks)], dim=1)
    gate = torch.einsum("hsd,hnd->hsn", q, means)
    for i in range(blocks):
        gate[:, : (i + 1) * size, i] = -torch.inf
        gate[:, i * size : (i + 1) * size, i] = torch.inf
    best = torch.topk(gate, min(count, blocks), dim=-1).indices
    chosen = torch.zeros_like(gate, dtype=torch.bool).scatter_(-1, best, True)
    seen = chosen.repeat_interleave(size, dim=-1)[..., :n]
    return seen & torch.tril(torch.ones(n, n, dtype=torch.bool))


@pytest.mark.parametrize("count", [1, 3, 9])
def test_moba_sees_what_its_released_code_sees(count):
    rng = np.random.default_rng(8)
    q, k = rng.standard_normal((3, N, 8)), rng.standard_normal((3, N, 8))
    theirs = moba_by_hand(torch.tensor(q), torch.tensor(k), count, 5).numpy()

    ours = selection.moba(q, k, count=count, block_size=5)

    assert (ours.mask(N, N) == theirs).all()


def nsa_by_hand(q, compressed, sizes, count):
    """XunhaoLai's native-sparse-attention-triton 9bea856, ops/torch/compressed_attention.py."""
    window, stride, block = sizes
    (h, n, d), (g, c, _) = q.shape, compressed.shape
    ends = torch.arange(c) * stride + window - 1
    qk = torch.einsum("hqd,hkd->hqk", q, compressed.repeat_interleave(h // g, 0)) * d**-0.5
    qk = qk.masked_fill(torch.arange(n)[:, None] < ends, -torch.inf)
    p = qk.softmax(dim=-1).nan_to_num(0).view(g, h // g, n, c).sum(1)
    pad = window // stride - 1
    p = torch.nn.functional.pad(p, (pad, 4 * block))
    score = torch.zeros(g, n, -(-n // block))
    for a in range(window // stride):
        for b in range(block // stride):
            score += p[..., a + b :: block // stride][..., : score.shape[-1]]
    own, blocks = torch.arange(n) // block, torch.arange(score.shape[-1])
    score[..., :1] = torch.inf
    score[:, (own[:, None] >= blocks) & (own[:, None] < blocks + 2)] = torch.inf
    best = score.topk(min(count, score.shape[-1]), dim=-1).indices
    return best.masked_fill(best > own[:, None], -1).numpy()


@pytest.mark.parametrize("sizes", [(8, 4, 16), (4, 4, 8), (8, 2, 8), (4, 4, 4)])
def test_nsa_blocks_equal_those_of_xunhao_lai(sizes):
    rng, n = np.random.default_rng(9), 90
    window, stride, block = sizes
    q, k = rng.standard_normal((6, n, 8)), rng.standard_normal((2, n, 8))
    starts = np.arange(0, n - window + 1, stride)
    compressed = np.stack([k[:, s : s + window].mean(axis=1) for s in starts], axis=1)
    theirs = nsa_by_hand(torch.tensor(q), torch.tensor(compressed), sizes, 5)

    ours = selection.nsa_blocks(q, k, count=5, block_size=block, window=window, stride=stride)

    assert sets(ours.indices) == sets(theirs)


@pytest.mark.parametrize("count", [1, 4, 30])
def test_top_keys_are_those_of_torch(count):
    rng = np.random.default_rng(10)
    q, k = rng.standard_normal((2, 4, 11, 8)), rng.standard_normal((2, 2, 17, 8))
    scores = torch.einsum(
        "bhmd,bhnd->bhmn", torch.tensor(q), torch.tensor(k).repeat_interleave(2, 1)
    )
    seen = torch.tensor(sr.Causal().mask(11, 17)[0])
    best = scores.masked_fill(~seen, -torch.inf).topk(min(count, 17), dim=-1)
    theirs = best.indices.masked_fill(best.values == -torch.inf, -1).numpy()

    assert sets(selection.topk_keys(q, k, count=count).indices) == sets(theirs)
