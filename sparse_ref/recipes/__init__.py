"""Recipes: one paper or model, one pattern, as its released code computes it.

Every docstring names the source, its picture, and where paper and code disagree.
"""

from .child2019 import sparse_transformer_fixed, sparse_transformer_strided
from .deepspeed import deepspeed_fixed, deepspeed_variable
from .deepspeed_windows import deepspeed_bigbird, deepspeed_bslongformer, deepspeed_sliding
from .diffusion import block_diffusion
from .encoders import bigbird, longformer, longt5
from .exponential import butterfly, logsparse
from .images import axial, natten, swin
from .longnet import longnet
from .models import gemma3, gpt_oss, llama4, mistral, phi3_small
from .streaming import streaming_llm, tri_shape, vertical_slash

__all__ = [
    "axial",
    "bigbird",
    "block_diffusion",
    "butterfly",
    "deepspeed_bigbird",
    "deepspeed_bslongformer",
    "deepspeed_fixed",
    "deepspeed_sliding",
    "deepspeed_variable",
    "gemma3",
    "gpt_oss",
    "llama4",
    "logsparse",
    "longformer",
    "longnet",
    "longt5",
    "mistral",
    "natten",
    "phi3_small",
    "sparse_transformer_fixed",
    "sparse_transformer_strided",
    "streaming_llm",
    "swin",
    "tri_shape",
    "vertical_slash",
]
