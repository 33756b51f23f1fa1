"""Mechanisms that are more than a mask: plain functions on explicit weights, with gradients.

Each docstring is its spec: the steps, the shapes, the cost, what published code disagrees about.
"""

from .compressing import (
    CsaCompressGradients,
    NsaCompressGradients,
    csa_compress,
    csa_compress_vjp,
    nsa_compress,
    nsa_compress_vjp,
)
from .dilated import longnet, longnet_vjp
from .gated import NsaGradients, nsa, nsa_vjp
from .hashing import ReformerGradients, lsh_buckets, reformer, reformer_vjp
from .indexed import IndexerLoss, dsa, dsa_indexer_loss, dsa_vjp
from .joint import CsaGradients, csa, csa_vjp, hca, hca_vjp
from .projected import LongformerGradients, longformer, longformer_vjp
from .summaries import TGlobalGradients, longt5_tglobal, longt5_tglobal_vjp

__all__ = [
    "CsaCompressGradients",
    "CsaGradients",
    "IndexerLoss",
    "LongformerGradients",
    "NsaCompressGradients",
    "NsaGradients",
    "ReformerGradients",
    "TGlobalGradients",
    "csa",
    "csa_compress",
    "csa_compress_vjp",
    "csa_vjp",
    "dsa",
    "dsa_indexer_loss",
    "dsa_vjp",
    "hca",
    "hca_vjp",
    "longformer",
    "longformer_vjp",
    "longnet",
    "longnet_vjp",
    "longt5_tglobal",
    "longt5_tglobal_vjp",
    "lsh_buckets",
    "nsa",
    "nsa_compress",
    "nsa_compress_vjp",
    "nsa_vjp",
    "reformer",
    "reformer_vjp",
]
