"""What "window = w" means in a library or a paper: from its spelling to a pattern, and back.

The canonical form is `SlidingWindow(left, right)`: both inclusive, besides the query itself. Every
function here is named after an API and takes what one writes there; `describe` goes the other way.
"""

from .libraries import (
    attention_gym,
    child2019_code,
    child2019_paper,
    flash_attn,
    gpt_neo,
    hf,
    hf_bidirectional,
    llama4,
    llama_cpp,
    longformer,
    longformer_allenai,
    longt5,
    megatron,
    modernbert,
    natten,
    onnx25,
    ort_gqa,
    sdpa,
    sglang,
    splash,
    vllm,
    xformers,
)
from .reading import describe, table

__all__ = [
    "attention_gym", "child2019_code", "child2019_paper", "describe", "flash_attn", "gpt_neo", "hf",
    "hf_bidirectional", "llama4", "llama_cpp", "longformer", "longformer_allenai", "longt5",
    "megatron", "modernbert", "natten", "onnx25", "ort_gqa", "sdpa", "sglang", "splash", "table",
    "vllm", "xformers",
]  # fmt: skip
