"""The encoder of BERT (arXiv:1810.04805) around an attention: Longformer and BigBird are two.

Names of parameters are those of transformers, whose weights load as they are.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu": nn.functional.gelu,
    "gelu_new": lambda x: nn.functional.gelu(x, approximate="tanh"),
    "relu": nn.functional.relu,
}


class Embeddings(nn.Module):
    """Words, positions and one token type, normalised.

    Positions of `padding`, where it is given, are counted from padding + 1 over the tokens that
    are not it, as in RoBERTa; else from 0.
    """

    def __init__(self, config: Any, padding: int | None):
        super().__init__()
        dim = config.hidden_size
        self.padding = padding
        self.factor = dim**0.5 if getattr(config, "rescale_embeddings", False) else 1.0
        self.word_embeddings = nn.Embedding(config.vocab_size, dim)
        self.position_embeddings = nn.Embedding(config.max_position_embeddings, dim)
        self.token_type_embeddings = nn.Embedding(config.type_vocab_size, dim)
        self.LayerNorm = nn.LayerNorm(dim, eps=config.layer_norm_eps)

    def forward(self, tokens: Tensor) -> Tensor:
        """(b, n) int64 -> (b, n, dim)."""
        places = torch.arange(tokens.shape[1], device=tokens.device)
        if self.padding is not None:
            real = (tokens != self.padding).long()
            places = real.cumsum(1) * real + self.padding
        words = self.word_embeddings(tokens) * self.factor + self.token_type_embeddings.weight[0]
        normed: Tensor = self.LayerNorm(words + self.position_embeddings(places))
        return normed


class Joined(nn.Module):
    """A projection, added to what came before, normalised."""

    def __init__(self, wide: int, config: Any):
        super().__init__()
        self.dense = nn.Linear(wide, config.hidden_size)
        self.LayerNorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)

    def forward(self, x: Tensor, before: Tensor) -> Tensor:
        """(b, n, wide), (b, n, dim) -> (b, n, dim)."""
        normed: Tensor = self.LayerNorm(self.dense(x) + before)
        return normed


class Layer(nn.Module):
    """Attention, then a feed-forward net, each with its own sum and norm."""

    def __init__(self, config: Any, attention: nn.Module):
        super().__init__()
        self.attention = nn.ModuleDict(
            {"self": attention, "output": Joined(config.hidden_size, config)}
        )
        self.intermediate = nn.ModuleDict(
            {"dense": nn.Linear(config.hidden_size, config.intermediate_size)}
        )
        self.output = Joined(config.intermediate_size, config)
        self.activation = ACTIVATIONS[config.hidden_act]

    def forward(self, x: Tensor, **seen: Tensor | None) -> Tensor:
        """(b, n, dim) -> (b, n, dim)."""
        x = self.attention["output"](self.attention["self"](x, **seen), x)
        wide = self.activation(self.intermediate["dense"](x))
        out: Tensor = self.output(wide, x)
        return out


class Encoder(nn.Module):
    """Embeddings and layers.

    Parameters
    ----------
    config
        Of transformers, or anything with its fields.
    attention : callable
        `attention(i)` is the self-attention of layer i, a module of (b, n, dim).
    padding : int, optional
        The token that positions do not count.
    """

    def __init__(self, config: Any, attention: Callable[[int], nn.Module], padding: int | None):
        super().__init__()
        if config.hidden_act not in ACTIVATIONS:
            known = ", ".join(ACTIVATIONS)
            raise ValueError(f"hidden_act must be one of {known}, got {config.hidden_act!r}")
        self.embeddings = Embeddings(config, padding)
        layers = [Layer(config, attention(i)) for i in range(config.num_hidden_layers)]
        self.encoder = nn.ModuleDict({"layer": nn.ModuleList(layers)})

    def load(self, model: nn.Module) -> None:
        """The weights of the model of transformers; what we have no place for is its pooler."""
        weights = {k: v for k, v in model.state_dict().items() if not k.startswith("pooler.")}
        self.load_state_dict(weights)

    def encoded(self, words: Tensor, **seen: Tensor | None) -> Tensor:
        """(b, n) int64 -> (b, n, dim); `seen` goes to every attention."""
        x: Tensor = self.embeddings(words)
        layers: Any = self.encoder["layer"]
        for layer in layers:
            x = layer(x, **seen)
        return x


def heads(x: Tensor, number: int) -> Tensor:
    """(b, n, h d) as (b, h, n, d)."""
    b, n, dim = x.shape
    return x.view(b, n, number, dim // number).transpose(1, 2)
