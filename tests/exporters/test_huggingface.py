"""Models of transformers on our operator: as in eager mode, in PyTorch and in ONNX Runtime."""

import warnings

import numpy as np
import pytest

import sparse_ref as sr

torch = pytest.importorskip("torch", reason="torch is not installed")
transformers = pytest.importorskip("transformers", reason="transformers is not installed")
pytest.importorskip("onnxscript", reason="onnxscript is not installed")
pytestmark = pytest.mark.witness

from torch.utils._python_dispatch import TorchDispatchMode  # noqa: E402
from transformers import masking_utils  # noqa: E402

from exporters.pytorch import by_kernels, hf_masks, register_huggingface  # noqa: E402
from exporters.pytorch.huggingface import seen  # noqa: E402
from tests.exporters.hf_models import MODELS, model  # noqa: E402

N = 23  # beyond every window and chunk
PADDED = torch.ones(3, N, dtype=torch.int64)
PADDED[1, :9], PADDED[2, 12:] = 0, 0  # one row on the left, one on the right
LEFT = torch.ones(2, N, dtype=torch.int64)
LEFT[1, :4] = 0
CLOSE = 1e-5  # a model has no bound; a window one key too wide is 1e-2 away and more


@pytest.fixture(autouse=True, scope="module")
def _registered():
    torch.set_num_threads(1)
    register_huggingface()


def words(batch, n=N):
    return torch.randint(3, 61, (batch, n), generator=torch.Generator().manual_seed(3))


def run(made, tokens, mask=None, **options):
    with torch.no_grad():
        return made(input_ids=tokens, attention_mask=mask, **options).last_hidden_state


def off(got, want, mask=None):
    """The largest error at tokens that are no padding."""
    errors = abs(got - want).amax(-1)
    return (errors if mask is None else errors[mask.bool()]).max().item()


@pytest.mark.parametrize("name", MODELS)
def test_a_model_is_itself_on_our_operator(name):
    eager, ours, tokens = model(name, "eager"), model(name, "sparse_ref"), words(3)
    assert off(run(ours, tokens), run(eager, tokens)) < CLOSE
    assert off(run(ours, tokens, PADDED), run(eager, tokens, PADDED), PADDED) < CLOSE


def test_a_window_one_key_too_wide_is_seen(monkeypatch):
    eager, tokens = run(model("Mistral", "eager"), words(3)), words(3)
    wider = lambda sliding_window: sr.SlidingWindow(sliding_window, None)  # noqa: E731
    monkeypatch.setitem(hf_masks.READERS, "sliding_window_overlay.inner_mask", wider)
    assert off(run(model("Mistral", "sparse_ref"), tokens), eager) > 1000 * CLOSE


CUTS = {"chunks": [9, 5, 9], "steps": [1] * N, "prefill and steps": [15] + [1] * 8}


@pytest.mark.parametrize("cuts", CUTS.values(), ids=CUTS)
@pytest.mark.parametrize("name", [name for name in MODELS if "BERT" not in name])
def test_a_cache_changes_nothing(name, cuts):
    """Layers with windows and chunks let go of keys that nobody will see."""
    want = run(model(name, "eager"), words(2), LEFT)
    ours, outs, at = model(name, "sparse_ref"), [], 0
    cache = transformers.DynamicCache(config=ours.config)
    for size in cuts:
        piece, until = words(2)[:, at : at + size], LEFT[:, : at + size]
        outs.append(run(ours, piece, until, past_key_values=cache, use_cache=True))
        at += size
    assert off(torch.cat(outs, 1), want, LEFT) < CLOSE


@pytest.mark.parametrize("name", ["Mistral", "Gemma 3"])
def test_a_static_cache_has_slots_not_yet_written(name):
    want = run(model(name, "eager"), words(2), LEFT)
    ours, outs, at = model(name, "sparse_ref"), [], 0
    cache = transformers.StaticCache(config=ours.config, max_cache_len=31)
    for size in (9, 5, 9):
        piece, until = words(2)[:, at : at + size], LEFT[:, : at + size]
        outs.append(run(ours, piece, until, past_key_values=cache, use_cache=True))
        at += size
    assert off(torch.cat(outs, 1), want, LEFT) < CLOSE


class Largest(TorchDispatchMode):
    """Remembers how large tensors get."""

    numel = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **kwargs or {})
        if isinstance(out, torch.Tensor):
            self.numel = max(self.numel, out.numel())
        return out


def test_no_mask_of_queries_by_keys_is_made():
    pytest.importorskip("numba", reason="numba is not installed")
    made = model("Mistral", "sparse_ref")
    made.config.max_position_embeddings = 601
    with Largest() as ours:
        got = run(made, words(1, 601))
    with Largest() as theirs:
        want = run(model("Mistral", "eager"), words(1, 601))
    assert off(got, want) < CLOSE
    assert ours.numel == 601 * 4 * 6  # queries, all heads
    assert theirs.numel >= 601 * 601


def test_gradients_are_those_of_eager_mode(monkeypatch):
    found = []
    for attention in ("eager", "sparse_ref"):
        made = model("gpt-oss, sinks", attention)
        out = made(input_ids=words(3), attention_mask=PADDED).last_hidden_state
        (out * PADDED[..., None]).square().sum().backward()
        found.append({name: x.grad for name, x in made.named_parameters() if x.grad is not None})
    assert any("sinks" in name for name in found[0])
    assert found[0].keys() == found[1].keys()
    for name, want in found[0].items():
        torch.testing.assert_close(found[1][name], want, rtol=1e-4, atol=1e-3, msg=name)


def test_mask_functions_are_patterns():
    zero = torch.zeros(1, dtype=torch.int64)
    for function, pattern in (
        (masking_utils.causal_mask_function, sr.Causal()),
        (masking_utils.sliding_window_causal_mask_function(4), sr.conventions.hf(4)),
        (
            masking_utils.sliding_window_bidirectional_mask_function(3),
            sr.conventions.hf_bidirectional(3),
        ),
        (masking_utils.chunked_causal_mask_function(5, zero), sr.recipes.llama4(5)),
        (
            masking_utils.or_masks(
                masking_utils.causal_mask_function, masking_utils.sliding_window_overlay(2)
            ),
            sr.Causal() | sr.SlidingWindow(1, None),
        ),
    ):
        got = hf_masks.as_pattern(function).mask(13, 13)
        assert (got == pattern.mask(13, 13)).all(), pattern


def test_what_the_operator_cannot_say_is_refused():
    tokens, made = words(3), model("Mistral", "sparse_ref")
    holes = PADDED.clone()
    holes[0, 3] = 0
    with pytest.raises(NotImplementedError, match="no padding between tokens of a row"):
        run(made, tokens, holes)
    with pytest.raises(NotImplementedError, match=r"\(b, positions\), got a mask of pairs"):
        run(made, tokens, torch.zeros(3, 1, N, N))
    packed = torch.cat([torch.arange(11), torch.arange(12)]).expand(3, N)
    with pytest.raises(NotImplementedError, match="must not pack several sequences"):
        run(made, tokens, position_ids=packed, use_cache=False)
    made.train().layers[0].self_attn.attention_dropout = 0.5
    with pytest.raises(NotImplementedError, match=r"attention_dropout must be 0, got 0\.5"):
        run(made, tokens)
    images = masking_utils.blockwise_overlay(torch.zeros(1, 5))
    with pytest.raises(NotImplementedError, match="windows and chunks, got blockwise_overlay"):
        seen(1, 5, 5, mask_function=images)


def in_ort(exported):
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(exported.SerializeToString(), options)


def exported(made, inputs):
    """By transformers' own exporter, all lengths free."""
    from transformers.exporters import OnnxExporter
    from transformers.exporters.configs import OnnxConfig

    from exporters.pytorch import with_attention_nodes

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = OnnxExporter().export(made, inputs, OnnxConfig(opset_version=18, dynamic=True))
    return with_attention_nodes(found.program)


def windows(file):
    import json

    ours = [node for node in file.graph.node if node.domain == "sparse_ref"]
    said = [{one.key: one.value for one in node.metadata_props} for node in ours]
    return [sr.from_dict(json.loads(one["sparse_ref.pattern"])) for one in said]


def test_one_file_prefills_and_decodes_beyond_the_window():
    """Gemma 3 with left padding: a window in layer 0 only, a growing cache, any lengths."""
    tokens, ours = words(2), model("Gemma 3", "sparse_ref")
    past = transformers.DynamicCache()
    run(ours, tokens[:, :9], LEFT[:, :9], past_key_values=past, use_cache=True)
    file = exported(
        ours,
        {
            "input_ids": tokens[:, 9:14], "attention_mask": LEFT[:, :14],
            "past_key_values": past, "use_cache": True,
        },
    )  # fmt: skip
    assert windows(file) == [sr.SlidingWindow(4, None) & sr.Causal(), sr.Causal()]
    session = in_ort(file)
    names = [one.name for one in session.get_inputs()]
    want = run(model("Gemma 3", "eager"), tokens, LEFT)
    for cuts in ([N], *CUTS.values()):
        cache = {name: np.zeros((2, 2, 0, 6), np.float32) for name in names[2:]}
        outs, at = [], 0
        for size in cuts:
            feed = tokens[:, at : at + size], LEFT[:, : at + size]
            out, *new = session.run(
                None, cache | dict(zip(names[:2], map(np.asarray, feed), strict=True))
            )
            cache = dict(zip(names[2:], new, strict=True))
            outs.append(torch.from_numpy(out))
            at += size
        assert off(torch.cat(outs, 1), want, LEFT) < CLOSE, cuts


@pytest.mark.slow
@pytest.mark.parametrize("padded", [False, True], ids=["whole", "padded"])
@pytest.mark.parametrize("name", [name for name in MODELS if "Llama" not in name])
def test_one_file_takes_any_length(name, padded):
    ours = model(name, "sparse_ref")
    ours.config.use_cache = False
    if "gpt" in name:
        ours.set_experts_implementation("batched_mm")  # torch.onnx knows no other
    mask = {"attention_mask": LEFT} if padded else {}
    session = in_ort(exported(ours, {"input_ids": words(2)} | mask))
    for batch, n in ((2, N), (3, 41), (1, 9)):
        tokens, mask = words(batch, n), torch.ones(batch, n, dtype=torch.int64)
        if padded:
            mask[-1, :5] = 0
        feed = {"input_ids": tokens.numpy()} | ({"attention_mask": mask.numpy()} if padded else {})
        got = torch.from_numpy(session.run(None, feed)[0])
        assert off(got, run(model(name, "eager"), tokens, mask), mask) < CLOSE


class Chunks(torch.nn.Module):
    """Llama 4's attention and mask; its complex rotations are what torch.onnx cannot write."""

    def __init__(self, made):
        super().__init__()
        self.made, self.layer = made, made.layers[0].self_attn

    def forward(self, x, mask):
        chunked = masking_utils.create_chunked_causal_mask(
            config=self.made.config, inputs_embeds=x, attention_mask=mask, past_key_values=None
        )
        self.layer.use_rope = False
        return self.layer(x, position_embeddings=None, attention_mask=chunked)[0]


@pytest.mark.slow
def test_chunks_begin_where_padding_ends_in_the_file_too():
    from exporters import to_onnx

    free = torch.export.Dim.AUTO
    x = torch.randn(2, N, 24, generator=torch.Generator().manual_seed(5))
    ours = Chunks(model("Llama 4, chunks", "sparse_ref"))
    file = to_onnx(ours, (x, LEFT), dynamic_shapes=({0: free, 1: free}, {0: free, 1: free}))
    session = in_ort(file)
    for n in (N, 9, 40):
        x = torch.randn(2, n, 24, generator=torch.Generator().manual_seed(n))
        mask = torch.ones(2, n, dtype=torch.int64)
        mask[1, :5] = 0
        with torch.no_grad():
            want = Chunks(model("Llama 4, chunks", "eager"))(x, mask)
        names = [one.name for one in session.get_inputs()]
        got = session.run(None, dict(zip(names, (x.numpy(), mask.numpy()), strict=True)))[0]
        assert off(torch.from_numpy(got), want, mask) < CLOSE


def test_the_kernels_and_the_dense_form_agree(monkeypatch):
    pytest.importorskip("numba", reason="numba is not installed")
    kernels = run(model("gpt-oss, sinks", "sparse_ref"), words(3), PADDED)
    monkeypatch.setattr(by_kernels, "AVAILABLE", False)
    dense = run(model("gpt-oss, sinks", "sparse_ref"), words(3), PADDED)
    assert 0 < off(kernels, dense, PADDED) < CLOSE
