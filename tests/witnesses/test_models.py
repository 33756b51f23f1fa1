"""Models of transformers by their configuration: their windows, chunks and layer schedules."""

import numpy as np
import pytest

import sparse_ref as sr

torch = pytest.importorskip("torch", reason="torch is not installed")
transformers = pytest.importorskip("transformers", reason="transformers is not installed")
pytestmark = pytest.mark.witness
N = 19
TINY = {
    "hidden_size": 12, "intermediate_size": 7, "num_attention_heads": 2, "vocab_size": 11,
    "attn_implementation": "sdpa",
}  # fmt: skip


def mask_for(config, create, **options):
    """What a model of this configuration builds for 19 tokens without padding."""
    from transformers import masking_utils

    given = {"config": config, "inputs_embeds": torch.zeros(1, N, 12), "attention_mask": None}
    if "bidirectional" not in create:
        given |= {"past_key_values": None}
    mask = getattr(masking_utils, create)(**given, **options)
    return mask.numpy()[0, 0]


def same(mask, pattern):
    assert (mask == pattern.mask(N, N)[0]).all(), pattern


@pytest.mark.parametrize("w", [1, 4, 7])
@pytest.mark.parametrize(
    ("model", "recipe"),
    [("MistralConfig", "mistral"), ("Gemma3TextConfig", "gemma3"), ("GptOssConfig", "gpt_oss")],
)
def test_sliding_windows(model, recipe, w):
    config = getattr(transformers, model)(**TINY, sliding_window=w)

    same(mask_for(config, "create_sliding_window_causal_mask"), getattr(sr.recipes, recipe)(w))


def test_chunks_of_llama_4():
    config = transformers.Llama4TextConfig(**TINY, attention_chunk_size=5)

    same(mask_for(config, "create_chunked_causal_mask"), sr.recipes.llama4(5))


@pytest.mark.parametrize("w", [2, 6, 8])
def test_modernbert_sees_half_its_window_on_each_side(w):
    config = transformers.ModernBertConfig(**TINY, local_attention=w)

    same(mask_for(config, "create_bidirectional_sliding_window_mask"), sr.conventions.modernbert(w))


@pytest.mark.parametrize("w", [2, 5, 6, 9])
def test_gemma_3_turned_bidirectional(w):
    """The configuration rewrites its window, which the model then lays over the causal one."""
    from transformers.models.gemma3.modeling_gemma3 import _bidirectional_window_overlay

    config = transformers.Gemma3TextConfig(
        **TINY, sliding_window=w, use_bidirectional_attention=True
    )
    overlay = _bidirectional_window_overlay(config.sliding_window)

    got = mask_for(config, "create_sliding_window_causal_mask", or_mask_function=overlay)
    same(got, sr.conventions.gemma3_bidirectional(w))


@pytest.mark.parametrize("w", [1, 4, 32])
def test_gpt_neo(w):
    from transformers.models.gpt_neo.modeling_gpt_neo import GPTNeoSelfAttention

    config = transformers.GPTNeoConfig(
        hidden_size=10, num_heads=2, window_size=w, max_position_embeddings=N,
        num_layers=1, attention_types=[[["local"], 1]],
    )  # fmt: skip
    layer = GPTNeoSelfAttention(config, "local")

    same(layer.bias.numpy()[0, 0], sr.conventions.gpt_neo(w))


@pytest.mark.parametrize(
    ("model", "recipe", "sparse"),
    [
        ("Gemma3TextConfig", "gemma3", "sliding_attention"),
        ("GptOssConfig", "gpt_oss", "sliding_attention"),
        ("Llama4TextConfig", "llama4", "chunked_attention"),
    ],
)
def test_which_layers_are_sparse(model, recipe, sparse):
    layers = 17
    config = getattr(transformers, model)(**TINY, num_hidden_layers=layers)
    build = getattr(sr.recipes, recipe)
    size = config.attention_chunk_size if recipe == "llama4" else config.sliding_window

    for layer, kind in enumerate(config.layer_types):
        want = build(size) if kind == sparse else sr.Causal()
        assert build(size, layer=layer) == want, layer
    assert np.unique(config.layer_types).tolist() == sorted(["full_attention", sparse])
    assert len(config.layer_types) == layers
