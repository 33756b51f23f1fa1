"""The Sparse Transformer: blocks, heads, embeddings, recomputing, decoding, and the way to ONNX."""

import math

import numpy as np
import pytest

import sparse_ref as sr

torch = pytest.importorskip("torch")

from exporters.pytorch import (  # noqa: E402
    KeyValueCache,
    SparseAttention,
    SparseEncoderDecoder,
    SparseTransformer,
    SparseTransformerBlock,
    attention_maps,
    factorised,
    module_to_onnx,
    saved_bytes,
)
from exporters.pytorch.blocks import gelu  # noqa: E402
from sparse_ref.cli import network  # noqa: E402

LOCAL, STRIDED = sr.Causal() & sr.SlidingWindow(2, 0), sr.Causal() & sr.Strided(3)
FIXED = sr.recipes.sparse_transformer_fixed(3, 1)
N = 15


@pytest.fixture(autouse=True)
def _repeatable():
    torch.manual_seed(0)
    torch.set_num_threads(1)


def language_model(shape=(5, 3), patterns=(LOCAL, FIXED), **options):
    options = {"blocks": 2, "dim": 12, "heads": 3} | options
    return started(SparseTransformer(7, None, shape, patterns, **options))


def started(model):
    """With a last layer that is not 0."""
    torch.nn.init.normal_((model.decoder if hasattr(model, "decoder") else model).classify.weight)
    return model.double().eval()


def tokens(*shape):
    return torch.randint(0, 7, shape)


def same(got, expected, atol=1e-13):
    torch.testing.assert_close(got, expected, rtol=0, atol=atol)


def test_gelu_is_the_papers():
    x = torch.linspace(-9, 9, 37, dtype=torch.float64, requires_grad=True)
    same(gelu(x), x * torch.sigmoid(1.702 * x), atol=1e-15)
    assert torch.autograd.gradcheck(gelu, x)


def test_the_block_is_the_papers():
    """a = dropout(attention(norm(H))), b = dropout(ff(norm(H + a))), H + a + b."""
    block = SparseTransformerBlock(12, 3, LOCAL, feed_dim=20).double()
    h = torch.randn(2, N, 12, dtype=torch.float64)
    a = block.attention(block.attention_norm(h))
    b = block.contract(gelu(block.expand(block.feed_norm(h + a))))
    assert block.expand.out_features == 20
    same(block(h), h + a + b)


def test_dropout_ends_additions_and_stands_nowhere_else():
    block = SparseTransformerBlock(12, 3, LOCAL, dropout=1.0)
    h = torch.randn(2, N, 12)
    assert torch.equal(block(h), h)


def test_parts_are_shared_in_three_ways():
    parts = [LOCAL, STRIDED]
    assert factorised(parts, "interleaved", 3) == [LOCAL, STRIDED, LOCAL]
    assert factorised(parts, "merged", 2) == [LOCAL | STRIDED] * 2
    assert factorised(parts, "heads", 1) == [sr.PerHead(parts)]
    with pytest.raises(ValueError, match="sharing must be 'interleaved', 'merged' or 'heads'"):
        factorised(parts, "mixed", 1)
    with pytest.raises(ValueError, match="patterns must not be empty"):
        factorised([], "merged", 1)


@pytest.mark.parametrize("shape", [(15,), (5, 3), (5, 1, 3)])
def test_a_position_is_the_sum_of_its_coordinates(shape):
    model = language_model(shape)
    read = tokens(1, N)
    got = model.embedded(read, None, None) - model.value(read)
    for place, at in enumerate(np.ndindex(*shape)):
        parts = [axis[i] for axis, i in zip(model.axes, at, strict=True)]
        same(got[0, place], sum(parts))
    assert language_model(()).axes == []


@pytest.mark.parametrize(("init", "factor"), [("code", math.sqrt(0.125)), ("paper", 0.125)])
def test_initialisation_is_the_papers_or_the_codes(init, factor):
    model = SparseTransformer(
        500, None, (300, 20, 90), [LOCAL], blocks=2, dim=60, heads=2, init=init
    )
    block = model.blocks[0]
    for weight, expected in (
        (model.value.weight, factor / math.sqrt(60)),
        (model.row.weight, factor / math.sqrt(180)),
        (model.channel.weight, factor / math.sqrt(180)),
        (block.attention.qkv.weight, factor / math.sqrt(60)),
        (block.attention.project.weight, factor / math.sqrt(60) / 2),
        (block.expand.weight, factor / math.sqrt(60)),
        (block.contract.weight, factor / math.sqrt(240) / 2),
    ):
        assert weight.std().item() == pytest.approx(expected, rel=0.05)
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            assert not parameter.any()
    assert not model.classify.weight.any()


def test_a_classifier_is_the_network_in_numpy():
    model = SparseTransformer(7, 4, (5, 3), [LOCAL, STRIDED], blocks=3, dim=12, heads=3)
    model, read = started(model), tokens(2, N)
    weights = {name: value.detach().numpy() for name, value in model.state_dict().items()}
    want = network.logits(weights, read.numpy(), model.patterns, 3, network.oracle)
    same(model(read).detach(), torch.from_numpy(want))


def test_a_language_models_gradients_are_the_oracles():
    """The same network with the oracle and its vjp as its attention."""

    class Oracle(torch.autograd.Function):
        @staticmethod
        def forward(ctx, q, k, v, pattern):
            ctx.pattern, ctx.arrays = pattern, [one.numpy() for one in (q, k, v)]
            return torch.from_numpy(sr.attention(*ctx.arrays, pattern).out)

        @staticmethod
        def backward(ctx, dout):
            found = sr.attention_vjp(*ctx.arrays, ctx.pattern, dout.numpy())
            return *(torch.from_numpy(one) for one in (found.dq, found.dk, found.dv)), None

    from exporters.pytorch import attention

    model, read = language_model(), tokens(2, N)
    grads = []
    for attend in (
        attention.sparse_attention,
        Oracle.apply,
    ):
        model.zero_grad()
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(attention, "sparse_attention", attend)
            model(read).square().mean().backward()
        grads.append([one.grad.clone() for one in model.parameters()])
    for ours, oracles in zip(*grads, strict=True):
        torch.testing.assert_close(ours, oracles, rtol=1e-10, atol=1e-14)


def test_gradients_match_finite_differences():
    model = language_model((2, 2), dim=4, heads=2)
    read = tokens(1, 4)
    names = [name for name, _ in model.named_parameters()]

    def run(*weights):
        return torch.func.functional_call(model, dict(zip(names, weights, strict=True)), (read,))

    assert torch.autograd.gradcheck(run, tuple(model.parameters()), fast_mode=True)


PATTERNS = {
    "full": sr.Full(),
    "chunked": sr.Chunked(4, back=1),
    "offsets": sr.Causal() & sr.Offsets([0, 1, 2, 4, 8]),
    "tokens": sr.Global([0, 3]) | sr.SlidingWindow(1, 1),
    "rows that repeat": sr.RowStride(3, [0]) | sr.Causal(),
    "xor": sr.Xor([0, 1, 2, 4]),
    "prefix": sr.PrefixLM(4),
    "sink": sr.recipes.streaming_llm(2, 3),
    "documents": sr.Document([0] * 7 + [1] * 8),
    "neighbourhood": sr.Neighborhood(N, 5),
    "random": sr.RandomKeys(3, 0, N, causal=True) | sr.SlidingWindow(0, 0),
    "blocks": sr.Blocked(sr.SlidingWindow(1, 0), 4),
    "grid": sr.Grid((3, 5), [sr.SlidingWindow(1, 1), sr.Full()]),
    "permuted": sr.Permuted(sr.SlidingWindow(2, 2), list(range(N))[::-1]),
    "per head": sr.PerHead([LOCAL, STRIDED, FIXED]),
    "multiset": sr.Multi([LOCAL, sr.Causal() & sr.Keys([0])]),
    "longformer": sr.recipes.longformer(4, [0]),
    "bigbird": sr.recipes.bigbird(N, block_size=2, window=3, random=1),
    "rows without keys": sr.Causal() & sr.Keys([4, 5]),
}


@pytest.mark.parametrize("pattern", PATTERNS.values(), ids=PATTERNS)
def test_every_pattern_trains_a_step(pattern):
    model = language_model(patterns=[pattern]).float()
    optimiser = torch.optim.Adam(model.parameters(), 1e-3)
    read, follows = tokens(2, N), tokens(2, N)

    def loss():
        return torch.nn.functional.cross_entropy(model(read).flatten(0, 1), follows.flatten())

    before = loss()
    before.backward()
    assert all(one.grad is not None and one.grad.isfinite().all() for one in model.parameters())
    optimiser.step()
    assert loss() < before


def test_recomputing_saves_memory_and_not_a_bit_is_lost():
    read, grads, sizes = tokens(2, 120), [], []
    for recompute in (False, True):
        torch.manual_seed(1)
        model = (
            language_model((40, 3), blocks=4, dim=48, dropout=0.1, recompute=recompute)
            .float()
            .train()
        )
        torch.manual_seed(2)
        sizes.append(saved_bytes(lambda m=model: m(read), model.parameters()))
        torch.manual_seed(2)
        model(read).square().mean().backward()
        grads.append([one.grad for one in model.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*grads, strict=True))
    assert sizes[1] <= 0.15 * sizes[0]


@pytest.mark.parametrize(
    "options",
    [{}, {"sinks": True, "kv_heads": 1, "patterns": [STRIDED]}, {"alibi": True, "shape": ()}],
    ids=["plain", "sinks", "alibi"],
)
def test_decoding_is_the_full_forward(options):
    model, read = language_model(**options), tokens(2, N)
    caches = model.cache(2, N)
    steps = [read[:, :8], *read[:, 8:].split(1, dim=1)]
    got = torch.cat([model(step, caches=caches) for step in steps], dim=1)
    same(got, model(read))


def test_generating_goes_on_with_the_likeliest_token():
    model, prompt = language_model(), tokens(2, 4)
    said = model.generate(prompt, 6)
    read = prompt
    for _ in range(6):
        read = torch.cat([read, model(read)[:, -1].argmax(-1, keepdim=True)], dim=1)
    assert torch.equal(said, read[:, 4:])
    drawn = [
        model.generate(prompt, 6, temperature=5.0, generator=torch.Generator().manual_seed(s))
        for s in (0, 0, 1)
    ]
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2])
    assert model.generate(prompt, 0).shape == (2, 0)


def test_packed_documents_are_as_if_each_were_alone():
    model, read = language_model(), tokens(1, N)
    got = model(read, documents=torch.tensor([0] * 6 + [1] * 9))
    same(got[:, :6], model(read[:, :6]))
    same(got[:, 6:], model(read[:, 6:]))


def test_padding_changes_no_class():
    model = SparseTransformer(
        7, 4, (N,), [sr.recipes.longformer(4, [0])], blocks=2, dim=12, heads=3
    )
    model, read = started(model), tokens(2, N)
    got = model(read, torch.tensor([6, N]))
    same(got[:1], model(read[:1, :6]))
    same(got[1:], model(read[1:]))
    assert model(read, torch.tensor([0, N])).isfinite().all()


def test_a_map_can_be_read_out_of_any_layer_and_head():
    model, read = language_model(), tokens(2, N)
    found = attention_maps(model, read)["blocks.1.attention"].csr(head=2, batch=1)
    assert (found.toarray() > 0).tolist() == FIXED.mask(N, N)[0].tolist()
    np.testing.assert_allclose(found.sum(1), 1.0)
    block = model.blocks[1]
    h = model.blocks[0](model.embedded(read, None, None))
    q, (k, _) = block.attention.projected(block.attention_norm(h))
    want = sr.weights(*(one.detach().numpy() for one in (q, k)), FIXED, head=2, batch=1)
    np.testing.assert_allclose(found.toarray(), want.toarray(), atol=1e-15)


def seq2seq(**options):
    parts = ([sr.SlidingWindow(3, 3) | sr.Global([0])], [sr.Causal() & sr.SlidingWindow(5, 0)])
    options = {"blocks": 2, "dim": 12, "heads": 3} | options
    return started(SparseEncoderDecoder((7, 9), ((N,), ((4, 3))), parts, **options))


def test_an_encoder_decoder_writes_what_its_full_forward_says():
    model, source = seq2seq(), tokens(2, N)
    lengths = torch.tensor([9, N])
    start = torch.zeros(2, 1, dtype=torch.int64)
    said = model.generate(source, start, 7, source_length=lengths)
    target = torch.cat([start, said], dim=1)
    logits = model(source, target[:, :-1], lengths)
    assert torch.equal(logits.argmax(-1), said)
    alone = model(source[:1, :9], target[:1, :-1])
    same(alone, logits[:1])


def test_an_encoder_decoder_learns():
    parts = ([sr.SlidingWindow(2, 2)], [sr.Causal()])
    model = SparseEncoderDecoder((7, 7), ((5,), (5,)), parts, blocks=1, dim=24, heads=2)
    optimiser = torch.optim.Adam(model.parameters(), 1e-2)
    source = torch.randint(1, 7, (4, 5))
    target = torch.cat([torch.zeros(4, 1, dtype=torch.int64), source[:, :-1]], dim=1)
    for _ in range(40):
        logits = model(source, target)
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), source.flatten())
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    assert loss.item() < 0.2 * math.log(7)
    assert torch.equal(model.eval().generate(source, target[:, :1], 5), source)


@pytest.mark.parametrize("kind", ["language model", "classifier", "encoder-decoder"])
def test_models_reach_onnx_with_any_batch(kind):
    pytest.importorskip("onnxscript")
    onnxruntime = pytest.importorskip("onnxruntime")
    near = sr.recipes.longformer(4, [0])
    model, sizes = {
        "language model": lambda: (language_model(), (N,)),
        "classifier": lambda: (
            started(SparseTransformer(7, 4, (N,), [near], blocks=2, dim=12, heads=3)), (N, None)
        ),
        "encoder-decoder": lambda: (seq2seq(), (N, 12)),
    }[kind]()  # fmt: skip
    model = model.float()

    def inputs(b):
        lengths = torch.arange(1, b + 1) * 3
        return tuple(lengths if n is None else torch.randint(0, 7, (b, n)) for n in sizes)

    exported = module_to_onnx(model, inputs(2), block_size=4)
    session = onnxruntime.InferenceSession(exported.SerializeToString())
    names = [one.name for one in session.get_inputs()]
    for b in (1, 2, 5):
        given = inputs(b)
        feed = dict(zip(names, (one.numpy() for one in given), strict=True))
        (got,) = session.run(None, feed)
        np.testing.assert_allclose(got, model(*given).detach().numpy(), rtol=1e-4, atol=2e-5)


def in_ort(file, **inputs):
    onnxruntime = pytest.importorskip("onnxruntime")
    session = onnxruntime.InferenceSession(file.SerializeToString())
    (out,) = session.run(None, {name: x.numpy() for name, x in inputs.items()})
    return out


@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("n", [1, N])
def test_an_example_of_one_row_or_one_token_leaves_the_batch_free(n, batch):
    """torch.export takes every axis of 1 to be fixed."""
    pytest.importorskip("onnxscript")
    model, x = SparseAttention(12, 3, LOCAL).eval(), torch.randn(5, n, 12)
    length = torch.tensor([n, 0, 1, n, n // 2])
    file = module_to_onnx(model, (x[:batch],), kwargs={"key_length": length[:batch]})
    for rows in (slice(1), slice(1, 3), slice(None)):
        got = in_ort(file, x=x[rows], key_length=length[rows])
        want = model(x[rows], key_length=length[rows]).detach().numpy()
        np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-5)


def test_any_key_mask_reaches_onnx_at_any_batch_and_length():
    pytest.importorskip("onnxscript")
    model = SparseAttention(12, 3, LOCAL).eval()
    given = {"key_mask": torch.rand(2, N) < 0.6}
    free = {0: torch.export.Dim.AUTO, 1: torch.export.Dim.AUTO}
    file = module_to_onnx(model, (torch.randn(2, N, 12),), kwargs=given, dynamic_shapes=(free,) * 2)
    for batch, n in ((2, N), (1, 1), (3, 29)):
        x, mask = torch.randn(batch, n, 12), torch.rand(batch, n) < 0.6
        for keep in (mask, mask | True, torch.arange(n) >= mask.sum(1, keepdim=True)):
            got, want = in_ort(file, x=x, key_mask=keep), model(x, key_mask=keep)
            np.testing.assert_allclose(got, want.detach().numpy(), rtol=1e-4, atol=1e-5)


def test_examples_that_say_nothing_of_the_batch_are_refused():
    model, x = SparseAttention(12, 3, LOCAL), torch.zeros(2, 5, 12)
    for given, got in (((x, x[:1]), r"\[1, 2\]"), ((x[:0],), r"\[0\]"), ((), "none")):
        with pytest.raises(ValueError, match=f"example_inputs must share a first axis .* {got}"):
            module_to_onnx(model, given)
    with pytest.raises(
        ValueError, match="must have 2 or more along a free axis, got 1 on axis 1 of input 0"
    ):
        module_to_onnx(model, (x[:, :1],), dynamic_shapes=({1: torch.export.Dim.AUTO},))


def test_what_cannot_be_is_refused_in_a_sentence():
    with pytest.raises(ValueError, match="init must be 'code' or 'paper', got 'zero'"):
        language_model(init="zero")
    with pytest.raises(ValueError, match=r"shape must be up to three sizes >= 1, got \(0,\)"):
        language_model((0,))
    with pytest.raises(ValueError, match="feed_dim must be >= 1, got 0"):
        language_model(feed_dim=0)
    with pytest.raises(ValueError, match="tokens must be at most 15, got 16"):
        language_model()(tokens(1, 16))
    with pytest.raises(ValueError, match=r"prompt must have shape .* one token, got \(1, 0\)"):
        language_model().generate(tokens(1, 0), 1)
    for wrong in (tokens(3), tokens(1, 3).float()):
        with pytest.raises(ValueError, match=r"tokens must be an int64 tensor \(b, n\), got torch"):
            language_model()(wrong)
    for asked in ({"count": -1}, {"count": 1, "temperature": -0.5}):
        with pytest.raises(ValueError, match="count and temperature must be >= 0, got"):
            language_model().generate(tokens(1, 1), **asked)
    with pytest.raises(TypeError, match="patterns must be a sequence of patterns, got Causal"):
        language_model(patterns=sr.Causal())
    classifier = SparseTransformer(7, 4, (N,), [LOCAL], blocks=1, dim=12, heads=3)
    with pytest.raises(ValueError, match="classes must be None to generate, got 4"):
        classifier.generate(tokens(1, 1), 1)
    assert isinstance(classifier.cache(1, 3)[0], KeyValueCache)
