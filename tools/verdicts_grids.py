"""Libraries of a few patterns each: NATTEN, attention-gym's masks, local-attention."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import sparse_ref as sr
from sparse_ref.conformance import Case, Sizes

from .verdicts_peers import Peer, needed

Implementation = Callable[..., Any]
PROBES = ("random", "even", "fingerprint", "steps")
EIGHT = 8  # the head size, of which NATTEN takes multiples


def asked(patterns: Sequence[tuple[str, sr.Pattern]], n: int, size: int = EIGHT) -> list[Case]:
    """Each pattern on as many queries as keys, with every probe."""
    sizes = Sizes(2, 6, 3, n, n, size, size)
    return [
        Case(name, pattern, sizes, probe, {}, "float32", ("window",))
        for name, pattern in patterns
        for probe in PROBES
    ]


def natten() -> Implementation:
    """na1d and na2d, on the CPU through FlexAttention; they give the lse too."""
    torch, functional = needed("torch"), needed("natten.functional")

    def attend(q: Any, k: Any, v: Any, pattern: Any) -> Any:
        shape, axes = (
            ((pattern.length,), [pattern]) if isinstance(pattern, sr.Neighborhood)
            else (pattern.shape, list(pattern.patterns))
        )  # fmt: skip
        (b, h, n, d), run = q.shape, (functional.na1d, functional.na2d)[len(shape) - 1]
        grids = [
            torch.from_numpy(x.transpose(0, 2, 1, 3).reshape(b, *shape, -1, d).copy())
            for x in (q, k, v)
        ]
        out, lse = run(
            *grids, kernel_size=tuple(x.kernel for x in axes), backend="flex-fna",
            stride=tuple(x.stride for x in axes), dilation=tuple(x.dilation for x in axes),
            is_causal=tuple(x.causal for x in axes), return_lse=True,
        )  # fmt: skip
        out = out.numpy().reshape(b, n, h, d).transpose(0, 2, 1, 3)
        return out, lse.numpy().reshape(b, n, h).transpose(0, 2, 1)

    return attend


def natten_cases() -> list[Case]:
    """One axis and two; even kernels, dilations, strides, causal ones."""
    line = [
        (f"natten-{kernel}", sr.Neighborhood(23, kernel)) for kernel in (2, 3, 4, 7, 23)
    ] + [
        ("natten-dilated", sr.Neighborhood(23, 4, dilation=3)),
        ("natten-strided", sr.Neighborhood(23, 5, stride=3)),
        ("natten-causal", sr.Neighborhood(23, 4, causal=True)),
    ]  # fmt: skip
    two = [
        ("natten-oblong", sr.recipes.natten((5, 11), (3, 4), causal=(False, True))),
        ("natten-grid-strided", sr.recipes.natten((5, 11), (2, 5), stride=(1, 3))),
        ("natten-grid-dilated", sr.recipes.natten((5, 11), (2, 3), dilation=(2, 3))),
    ]
    return asked(line, 23) + asked(two, 55)


MaskMod = Any


def gym() -> dict[sr.Pattern, Callable[[Any], MaskMod]]:
    """A pattern, and attention-gym's words for it."""
    return {
        sr.Causal(): lambda masks: masks.causal_mask,
        sr.conventions.attention_gym(4): lambda masks: masks.generate_sliding_window(4),
        sr.conventions.attention_gym_prefix(5): lambda masks: masks.generate_prefix_lm_mask(5),
        sr.SlidingWindow(2, 2, 3): lambda masks: masks.generate_dilated_sliding_window(7, 3),
        sr.recipes.block_diffusion(18, 6): lambda masks: masks.generate_block_diffusion_mask(18, 6),
    }


GRIDS = {  # shape and kernel, rows first
    "natten-square": ((6, 6), (3, 3)), "natten-even": ((6, 6), (4, 4)),
    "natten-oblong-canvas": ((4, 9), (3, 3)), "natten-oblong-kernel": ((6, 6), (3, 5)),
}  # fmt: skip


def attention_gym() -> Implementation:
    """Its mask functions, run by FlexAttention."""
    torch, masks = needed("torch"), needed("attn_gym.masks")
    module, named = needed("torch.nn.attention.flex_attention"), gym()
    grids = {
        sr.recipes.natten(shape, kernel): masks.generate_natten(*shape[::-1], *kernel[::-1])
        for shape, kernel in GRIDS.values()
    }

    def attend(q: Any, k: Any, v: Any, pattern: Any) -> Any:
        mod = grids[pattern] if pattern in grids else named[pattern](masks)
        block_mask = module.create_block_mask(mod, None, None, q.shape[2], k.shape[2], device="cpu")
        given = (torch.from_numpy(x) for x in (q, k, v))
        return module.flex_attention(*given, block_mask=block_mask, enable_gqa=True).numpy()

    return attend


def gym_cases() -> list[Case]:
    """Windows, prefixes, block diffusion; and neighborhoods, which are its trouble."""
    names = ("causal", "window", "prefix", "dilated", "block-diffusion")
    grids = [(name, sr.recipes.natten(*both)) for name, both in GRIDS.items()]
    return asked(list(zip(names, gym(), strict=True)), 36) + asked(grids, 36)


def local_attention() -> Implementation:
    """LocalAttention with autopad, without its rotary positions."""
    torch, package = needed("torch"), needed("local_attention")

    def attend(q: Any, k: Any, v: Any, pattern: Any) -> Any:
        causal = isinstance(pattern, sr.patterns.And)
        chunks = pattern.patterns[1] if causal else pattern
        layer = package.LocalAttention(
            window_size=chunks.size, causal=causal, look_backward=chunks.back,
            look_forward=None if causal else chunks.ahead, autopad=True,
            use_rotary_pos_emb=False, scale=q.shape[-1] ** -0.5,
        ).eval()  # fmt: skip
        with torch.no_grad():
            return layer(*map(torch.from_numpy, (q, k, v))).numpy()

    return attend


def bucket_cases() -> list[Case]:
    """Whole buckets of 5, and a last one that is cut; causal and not."""
    patterns: list[tuple[str, sr.Pattern]] = []
    for back, ahead in ((0, 0), (1, 0), (1, 1), (2, 0)):
        chunks = sr.Chunked(5, back=back, ahead=ahead)
        patterns.append((f"buckets-{back}-{ahead}", chunks))
        if not ahead:
            patterns.append((f"causal-buckets-{back}", sr.Causal() & chunks))
    found = asked(patterns, 35, 5) + asked(patterns, 37, 5)
    return [
        Case(c.name, c.pattern, c.sizes._replace(g=6), c.probe, {}, c.dtype, c.hunts) for c in found
    ]


PEERS = (
    Peer("NATTEN", "natten", "na1d, na2d", natten, natten_cases),
    Peer(
        "attention-gym", "attn-gym", "its mask functions, run by FlexAttention", attention_gym,
        gym_cases,
    ),
    Peer(
        "local-attention", "local-attention", "window_size, look_backward, look_forward, autopad",
        local_attention, bucket_cases,
    ),
)  # fmt: skip
