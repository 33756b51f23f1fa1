"""Attention over a pattern in place of `nn.MultiheadAttention`, in a model that exists."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

import sparse_ref as sr

from . import by_blocks
from .attention import attend
from .given import Options
from .seen import Views, seen

Choose = Callable[[str, nn.MultiheadAttention], sr.Pattern | None]


def swap_attention(model: nn.Module, pattern: sr.Pattern | Choose) -> nn.Module:
    """Replace every `nn.MultiheadAttention` of a model, itself too, by one over a pattern.

    Weights stay the same Parameters under the same names, so optimisers and state dicts go on
    working; under `Full()` the model computes what it did.

    Parameters
    ----------
    model : nn.Module
        Changed in place, unless it is an `nn.MultiheadAttention` itself.
    pattern : Pattern, or callable (name, module) -> Pattern or None
        What each attention sees; None leaves it as it is.

    Returns
    -------
    The model. Its attention takes key_padding_mask; an attn_mask only where it is causal and
    is_causal says so, as `nn.TransformerEncoder` finds out itself. Queries that see no key get
    zeros, not NaN. Weights are dropped in training as before, in plain torch. With need_weights,
    which is the default of a bare attention, weights are dense.

    Raises
    ------
    ValueError
        If there is none in the model, or one has bias_k, bias_v or add_zero_attn.

    Examples
    --------
    >>> layer = nn.TransformerEncoderLayer(8, 2, batch_first=True)
    >>> model = nn.TransformerEncoder(layer, 2)
    >>> swap_attention(model, sr.SlidingWindow(1, 1)).layers[1].self_attn.pattern
    SlidingWindow(left=1, right=1, dilation=1)
    """
    found = {name: one for name, one in model.named_modules(remove_duplicate=False)
             if isinstance(one, nn.MultiheadAttention)}  # fmt: skip
    if not found:
        raise ValueError(f"model must hold an nn.MultiheadAttention, got {type(model).__name__}")
    if not callable(pattern):
        raise TypeError(f"pattern must be a Pattern or a callable, got {type(pattern).__name__}")
    made: dict[nn.Module, nn.Module] = {}
    for name, old in found.items():
        chosen = pattern if isinstance(pattern, sr.Pattern) else pattern(name, old)
        if chosen is None:
            continue
        new = made.setdefault(old, PatternAttention(old, chosen))
        if not name:
            return new
        owner, _, attribute = name.rpartition(".")
        setattr(model.get_submodule(owner), attribute, new)
    for one in model.modules():
        if isinstance(one, nn.TransformerEncoder) and made:
            one.use_nested_tensor = False  # its padding would not reach our attention
    return model


class PatternAttention(nn.MultiheadAttention):
    """An `nn.MultiheadAttention` whose heads see the keys of a pattern."""

    def __init__(self, old: nn.MultiheadAttention, pattern: sr.Pattern):
        nn.Module.__init__(self)
        if old.bias_k is not None or old.bias_v is not None or old.add_zero_attn:
            raise ValueError("attention must have no bias_k, bias_v or add_zero_attn")
        self.__dict__.update({
            name: value.copy() if isinstance(value, dict) else value
            for name, value in old.__dict__.items()
        })  # fmt: skip
        self.pattern, self.joint = pattern, old.in_proj_weight is not None
        self._qkv_same_embed_dim = False  # or torch's layers go round `forward`: their fast path

    @property
    def pattern(self) -> sr.Pattern:
        """Which keys each query sees; another may be put in its place."""
        return self.views[0].pattern

    @pattern.setter
    def pattern(self, pattern: sr.Pattern) -> None:
        self.views = Views.of(pattern), Views.of(pattern & sr.Causal())

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """As `nn.MultiheadAttention`."""
        if attn_mask is not None and not is_causal:
            raise ValueError("attn_mask must be None: what is seen is said by the pattern")
        batched = query.dim() == 3
        tensors = [query, key, value]
        if not batched:
            tensors = [x[None] for x in tensors]
            key_padding_mask = None if key_padding_mask is None else key_padding_mask[None]
        elif not self.batch_first:
            tensors = [x.transpose(0, 1) for x in tensors]
        q, k, v = (self._heads(x) for x in self._projected(*tensors))
        views = self.views[1 if is_causal else 0]
        mask = None if key_padding_mask is None else _present(key_padding_mask)
        pattern, options = seen(views, k, None, mask)
        options |= views.from_first(q, k)
        if self.training and self.dropout:
            others = (options.get(x) for x in ("q_start", "key_start", "key_length", "tokens"))
            given = Options.of(pattern, q.shape[-1] ** -0.5, 0.0, None, *others, None)
            with torch.autocast(q.device.type, enabled=False):  # it has types of its own
                out, _ = by_blocks.forward(q, k, v, given, dropout=self.dropout)
        else:
            out = attend(q, k, v, pattern, {}, **options)
        result: Tensor = self.out_proj(out.transpose(1, 2).flatten(2))
        weights = self._weights(q, k, views, mask) if need_weights else None
        if weights is not None and average_attn_weights:
            weights = weights.mean(1)
        if not batched:
            return result[0], None if weights is None else weights[0]
        return result if self.batch_first else result.transpose(0, 1), weights

    def _projected(self, query: Tensor, key: Tensor, value: Tensor) -> list[Tensor]:
        inputs = query, key, value
        if self.joint and query is key and key is value:
            return list(F.linear(query, self.in_proj_weight, self.in_proj_bias).chunk(3, -1))
        weights = (
            self.in_proj_weight.chunk(3)
            if self.joint
            else (self.q_proj_weight, self.k_proj_weight, self.v_proj_weight)
        )
        biases = (None,) * 3 if self.in_proj_bias is None else self.in_proj_bias.chunk(3)
        return [F.linear(*each) for each in zip(inputs, weights, biases, strict=True)]

    def _heads(self, x: Tensor) -> Tensor:
        return x.reshape(*x.shape[:2], self.num_heads, -1).transpose(1, 2)

    def _weights(self, q: Tensor, k: Tensor, views: Views, mask: Tensor | None) -> Tensor:
        """(b, h, m, n), dense."""
        keep = _dense(views.pattern, self.num_heads, q.shape[2], k.shape[2]).to(q.device)
        if mask is not None:
            keep = keep & mask[:, None, None]
        scores = (q * q.shape[-1] ** -0.5) @ k.mT
        weights: Tensor = scores.masked_fill(~keep, -torch.inf).softmax(-1)
        return weights.masked_fill(~keep, 0.0)

    def extra_repr(self) -> str:
        return f"heads={self.num_heads}, pattern={self.pattern!r}"


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def _dense(pattern: sr.Pattern, heads: int, m: int, n: int) -> Tensor:
    """The mask (1, h, m, n) of queries that stand at the first keys."""
    return torch.from_numpy(pattern.mask(m, n, heads=heads, q_start=0))[None]


def _present(padding: Tensor) -> Tensor:
    """Which keys are there: padding is True, or -inf as torch's layers write it."""
    if padding.dtype == torch.bool:
        return ~padding
    if not torch.compiler.is_compiling() and ((padding != 0) & ~padding.isneginf()).any():
        raise ValueError("key_padding_mask must be bool, or hold 0 and -inf only")
    return padding == 0
