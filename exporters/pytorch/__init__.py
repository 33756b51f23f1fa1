"""PyTorch: the operator `sparse_ref::attention`, modules on it, and what torch.onnx needs."""

from .attention import KeyValues, SparseAttention
from .bigbird import BigBird
from .blocks import SparseTransformerBlock
from .cache import KeyValueCache
from .emit import emit
from .export import module_to_onnx, with_attention_nodes
from .factorised import factorised
from .flex import to_flex
from .huggingface import register_huggingface
from .longformer import Longformer, LongformerAttention
from .maps import AttentionMap, attention_maps
from .memory import saved_bytes
from .model import SparseTransformer
from .named import GlobalAttention, LocalAttention, RandomAttention
from .op import sparse_attention
from .placeholders import translations
from .positions import Rotary, alibi_slopes
from .seq2seq import SparseEncoderDecoder
from .swap import swap_attention
from .to_torch import to_torch

__all__ = [
    "AttentionMap", "BigBird", "GlobalAttention", "KeyValueCache", "KeyValues",
    "LocalAttention", "Longformer", "LongformerAttention", "RandomAttention", "Rotary",
    "SparseAttention", "SparseEncoderDecoder", "SparseTransformer", "SparseTransformerBlock",
    "alibi_slopes", "attention_maps", "emit", "factorised", "module_to_onnx",
    "register_huggingface", "saved_bytes", "sparse_attention", "swap_attention", "to_flex",
    "to_torch", "translations", "with_attention_nodes",
]  # fmt: skip
