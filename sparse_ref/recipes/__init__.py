"""One paper, one pattern: published sparse-attention patterns under the names of their papers.

Where a paper and its released code differ, the code is followed and the docstring says so.
"""

from .deepspeed import (
    deepspeed_bigbird,
    deepspeed_bslongformer,
    deepspeed_fixed,
    deepspeed_sliding,
    deepspeed_variable,
)
from .factorised import butterfly, logsparse, sparse_transformer_fixed, sparse_transformer_strided
from .grids import axial, natten, swin
from .long_inputs import bigbird, block_diffusion, longformer, longnet, longt5
from .models import gemma3, gpt_oss, llama4, mistral, phi3_small
from .serving import streaming_llm, tri_shape, vertical_slash

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
