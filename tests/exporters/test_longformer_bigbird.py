"""Longformer and BigBird with transformers' weights: its output, in PyTorch and in ONNX Runtime."""

import numpy as np
import onnxruntime
import pytest

import sparse_ref as sr

torch = pytest.importorskip("torch", reason="torch is not installed")
transformers = pytest.importorskip("transformers", reason="transformers is not installed")
pytest.importorskip("onnxscript", reason="onnxscript is not installed")
pytestmark = pytest.mark.witness

from exporters import to_onnx  # noqa: E402
from exporters.pytorch import BigBird, Longformer, bigbird, longformer  # noqa: E402

CLOSE = {"rtol": 0, "atol": 1e-5}
SIZES = {
    "vocab_size": 61, "hidden_size": 12, "intermediate_size": 20, "num_hidden_layers": 2,
    "max_position_embeddings": 96, "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0,
}  # fmt: skip
PAD, BLOCK, RANDOM = 1, 4, 2


@pytest.fixture(autouse=True)
def _repeatable():
    torch.set_num_threads(1)
    torch.manual_seed(0)


def shaken(made):
    """With weights large enough that attention is not flat."""
    with torch.no_grad():
        for weight in made.parameters():
            weight.add_(0.3 * torch.randn(weight.shape))
    return made.eval()


def longformer_of_transformers():
    config = transformers.LongformerConfig(
        **SIZES, num_attention_heads=2, attention_window=[4, 8], pad_token_id=PAD
    )
    return shaken(transformers.LongformerModel(config))


def bigbird_of_transformers(**options):
    config = transformers.BigBirdConfig(
        **SIZES | options, num_attention_heads=3, block_size=BLOCK, num_random_blocks=RANDOM,
        attention_type="block_sparse", pad_token_id=PAD,
    )  # fmt: skip
    return shaken(transformers.BigBirdModel(config))


def texts(batch, n, short=7):
    """Tokens, the last row shorter, and where they are."""
    tokens = torch.randint(3, 61, (batch, n))
    there = torch.ones(batch, n, dtype=torch.int64)
    tokens[-1, n - short :], there[-1, n - short :] = PAD, 0
    return tokens, there


def chosen(there):
    """Global tokens: other ones in every row, none in the first."""
    flags = (torch.rand(there.shape) < 0.1).long() * there
    flags[0] = 0
    return flags


def answered(made, *inputs, **options):
    with torch.no_grad():
        out = made(*inputs, **options)
    return out if isinstance(out, torch.Tensor) else out.last_hidden_state


@pytest.mark.parametrize("n", [3, 29, 64])
def test_longformer_with_padding_and_globals_that_differ_by_row(n):
    theirs = longformer_of_transformers()
    tokens, there = texts(3, n, short=n // 4)
    flags = chosen(there)
    want = answered(theirs, tokens, there, flags)
    torch.testing.assert_close(answered(Longformer.of(theirs), tokens, there, flags), want, **CLOSE)


def test_a_global_token_lost_is_seen():
    theirs = longformer_of_transformers()
    tokens, there = texts(2, 29)
    flags = torch.zeros_like(there)
    flags[0, 4] = 1
    want = answered(theirs, tokens, there, flags)
    got = answered(Longformer.of(theirs), tokens, there, flags * 0)
    assert (got - want).abs().amax((1, 2))[0] > 0.01


def test_a_local_query_sees_window_and_globals_once():
    window = longformer.LongformerAttention(4, 1, 4).local
    table = np.arange(11) == 3
    near = sr.recipes.longformer(4, [3]).mask(11, 11)[0]
    near[3] = False  # the other projections answer for it
    from exporters.pytorch.given import bound

    got = bound(window, torch.from_numpy(table)[None])
    assert (got.mask(11, 11)[0] == near).all()


@pytest.mark.parametrize("n", [50, 52, 57])
def test_bigbird_in_evaluation(n):
    theirs = bigbird_of_transformers()
    inputs = texts(3, n)
    ours = BigBird.of(theirs)
    torch.testing.assert_close(answered(ours, *inputs), answered(theirs, *inputs), **CLOSE)


def test_bigbird_is_full_while_it_is_short():
    theirs = bigbird_of_transformers()
    inputs, ours = texts(3, 36), BigBird.of(theirs)
    got, want = answered(ours, *inputs), answered(theirs, *inputs)
    there = inputs[1].bool()
    torch.testing.assert_close(got[there], want[there], **CLOSE)


def test_bigbird_with_the_blocks_it_draws_in_training():
    theirs = bigbird_of_transformers(rescale_embeddings=True, hidden_act="gelu_new").train()
    plans = []

    def spied(draw):
        def and_kept(**sizes):
            plans.append(np.stack(draw(**sizes)))
            return list(plans[-1])

        return and_kept

    for layer in theirs.encoder.layer:
        inner = layer.attention.self
        inner._bigbird_block_rand_mask_with_head = spied(inner._bigbird_block_rand_mask_with_head)
    inputs = texts(3, 52)
    want = answered(theirs, *inputs)
    assert [plan.shape for plan in plans] == [(3, 11, RANDOM)] * 2
    assert (plans[0] != plans[1]).any()
    torch.testing.assert_close(answered(BigBird.of(theirs, plans), *inputs), want, **CLOSE)
    evaluated = answered(BigBird.of(theirs), *inputs)
    assert (evaluated - want).abs().max() > 0.01
    with pytest.raises(ValueError, match="tokens must fill 13 blocks of 4, got 48"):
        answered(BigBird.of(theirs, plans), *texts(3, 48))
    with pytest.raises(ValueError, match="plans must be one for each of 2 layers, got 1"):
        BigBird(theirs.config, plans[:1])


def test_block_zero_counts_again_in_evaluation():
    from exporters.pytorch.given import bound

    last = torch.arange(25)[None] >= 24
    pattern = bound(bigbird.evaluation_pattern(BLOCK, RANDOM), last)
    counts = pattern.counts(25, 25)[0]
    assert counts[::BLOCK, ::BLOCK].tolist() == [
        [1, 1, 1, 1, 1, 1, 1],
        [3, 1, 1, 0, 0, 0, 1],
        [3, 1, 1, 1, 0, 0, 1],
        [3, 0, 1, 1, 1, 0, 1],
        [3, 0, 0, 1, 1, 1, 1],
        [3, 0, 0, 0, 1, 1, 1],
        [1, 1, 1, 1, 1, 1, 1],
    ]


def in_ort(file, inputs):
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(file.SerializeToString(), options)
    names = [one.name for one in session.get_inputs()]
    feed = {name: x.numpy() for name, x in zip(names, inputs, strict=True)}
    return torch.from_numpy(session.run(None, feed)[0])


def free(inputs):
    auto = torch.export.Dim.AUTO
    return tuple({0: auto, 1: auto} for _ in inputs)


@pytest.mark.slow
def test_bigbird_is_one_file_for_all_lengths():
    theirs = bigbird_of_transformers()
    file = to_onnx(BigBird.of(theirs), texts(2, 50), dynamic_shapes=free("ab"))
    for batch, n in ((2, 50), (3, 41), (1, 83)):
        inputs = texts(batch, n)
        torch.testing.assert_close(in_ort(file, inputs), answered(theirs, *inputs), **CLOSE)


@pytest.mark.slow
def test_longformer_is_one_file_for_all_lengths_and_global_tokens():
    theirs = longformer_of_transformers()
    tokens, there = texts(2, 50)
    example = tokens, there, chosen(there)
    file = to_onnx(Longformer.of(theirs), example, dynamic_shapes=free("abc"))
    assert [node.op_type for node in file.graph.node].count("SparseAttention") == 4
    for batch, n in ((2, 50), (3, 23), (1, 83)):
        tokens, there = texts(batch, n)
        inputs = tokens, there, chosen(there)
        torch.testing.assert_close(in_ort(file, inputs), answered(theirs, *inputs), **CLOSE)


@pytest.mark.slow
def test_bigbird_with_drawn_blocks_is_a_file_of_its_length():
    theirs = bigbird_of_transformers()
    plans = [np.array([[[6, 9]] * 11] * 3), np.array([[[10, 3]] * 11] * 3)]
    ours, inputs = BigBird.of(theirs, plans), texts(2, 52)
    for options in ({}, {"dynamic_shapes": None}):
        file = to_onnx(ours, inputs, **options)
        torch.testing.assert_close(in_ort(file, inputs), answered(ours, *inputs), **CLOSE)


def test_an_activation_that_is_not_known_is_refused():
    config = transformers.BigBirdConfig(hidden_act="tanh")
    with pytest.raises(ValueError, match="hidden_act must be one of gelu, gelu_new, relu, got"):
        BigBird(config)
