"""What "window = w" means in a library or a paper: from its spelling to a pattern, and back.

The canonical form is `SlidingWindow(left, right)`: both inclusive, besides the query itself. Every
function here is named after an API and takes what one writes there; `describe` goes the other way.
"""

from .models import (
    child2019_code,
    child2019_paper,
    duo_attention,
    gemma3_bidirectional,
    gpt_neo,
    hf,
    hf_bidirectional,
    llama4,
    longformer,
    longformer_allenai,
    longt5,
    modernbert,
    nsa,
)
from .operators import (
    attention_gym,
    attention_gym_prefix,
    flash_attn,
    local_attention,
    local_attention_buckets,
    megatron,
    natten,
    onnx25,
    ort_gqa,
    sdpa,
    splash,
    xformers,
    xformers_local,
)
from .reading import describe
from .serving import llama_cpp, llama_cpp_chunked, llama_cpp_symmetric, sglang, vllm
from .table import table

__all__ = [
    "attention_gym",
    "attention_gym_prefix",
    "child2019_code",
    "child2019_paper",
    "describe",
    "duo_attention",
    "flash_attn",
    "gemma3_bidirectional",
    "gpt_neo",
    "hf",
    "hf_bidirectional",
    "llama4",
    "llama_cpp",
    "llama_cpp_chunked",
    "llama_cpp_symmetric",
    "local_attention",
    "local_attention_buckets",
    "longformer",
    "longformer_allenai",
    "longt5",
    "megatron",
    "modernbert",
    "natten",
    "nsa",
    "onnx25",
    "ort_gqa",
    "sdpa",
    "sglang",
    "splash",
    "table",
    "vllm",
    "xformers",
    "xformers_local",
]
