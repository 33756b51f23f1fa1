"""Small random models of transformers, one for each kind of mask its models use."""

import torch
import transformers

SIZES = {
    "vocab_size": 61,
    "hidden_size": 24,
    "intermediate_size": 20,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 128,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
GROUPED = SIZES | {"num_key_value_heads": 2, "head_dim": 6}
MODELS = {
    "Mistral": ("MistralModel", "MistralConfig", GROUPED | {"sliding_window": 7}),
    "Gemma 2, softcap": (
        "Gemma2Model",
        "Gemma2Config",
        GROUPED | {"sliding_window": 5, "attn_logit_softcapping": 0.5, "query_pre_attn_scalar": 6},
    ),
    "Gemma 3": (
        "Gemma3TextModel",
        "Gemma3TextConfig",
        GROUPED | {"sliding_window": 5, "layer_types": ["sliding_attention", "full_attention"]},
    ),
    "gpt-oss, sinks": (
        "GptOssModel",
        "GptOssConfig",
        GROUPED
        | {"sliding_window": 6, "num_local_experts": 2, "num_experts_per_tok": 1},
    ),
    "ModernBERT": (
        "ModernBertModel",
        "ModernBertConfig",
        SIZES | {"local_attention": 6, "cls_token_id": 1, "sep_token_id": 2},
    ),
    "Llama 4, chunks": (
        "Llama4TextModel",
        "Llama4TextConfig",
        GROUPED
        | {
            "attention_chunk_size": 8, "intermediate_size_mlp": 20, "num_local_experts": 2,
            "layer_types": ["chunked_attention", "full_attention"], "rope_scaling": None,
        },
    ),
}  # fmt: skip


def model(name, attention):
    """The model in evaluation, its weights the same for every attention."""
    kind, config, options = MODELS[name]
    torch.manual_seed(0)
    made = getattr(transformers, kind)(
        getattr(transformers, config)(**options, attn_implementation=attention)
    ).eval()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for weight in made.parameters():
            weight.add_(0.2 * torch.randn(weight.shape, generator=generator))
    return made
