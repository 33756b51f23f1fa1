"""What a case is for: the kind of bug, what it is, what it does, and where it was seen."""

from __future__ import annotations

GITHUB = "https://github.com/"

Row = tuple[str, str, str, tuple[str, ...]]

FLAGS: dict[str, Row] = {
    "Alibi": (
        "SIGN", "ALiBi adds -slope |p - k| on absolute positions",
        "the bias grows instead of falling, or counts from the wrong end when m < n", (),
    ),
    "Algebra": (
        "MASK", "patterns joined by and, or, not", "one operand is lost, or not is applied twice",
        (),
    ),
    "Bias": (
        "ORDER", "a bias is added after scale and softcap, and broadcasts to (b, h, m, n)",
        "the bias is scaled or capped, or a broadcast axis is read with the wrong stride", (),
    ),
    "BlockEdge": (
        "BOUNDARY", "lengths that are not multiples of a block: 67 queries, 131 keys",
        "the last block is dropped, or read past its end",
        ("pytorch/pytorch/issues/153799", "mit-han-lab/flash-moba/issues/10"),
    ),
    "Blocks": (
        "MASK", "patterns of whole blocks, the last of them cut",
        "a block row too few, or indices read as tokens",
        ("pytorch/pytorch/issues/141126",),
    ),
    "Butterfly": (
        "MASK", "keys at q xor distance",
        "xor taken for addition: wrong beyond the first block", (),
    ),
    "Causal": (
        "LEAK", "no key after the query", "the future leaks by one key, or the query misses itself",
        ("Dao-AILab/flash-attention/issues/1133",),
    ),
    "Chunks": (
        "MASK", "chunks of keys by absolute position",
        "chunks counted from the first query instead of from position 0", (),
    ),
    "Decode": (
        "ALIGNMENT", "one query, the last position", "the query is taken for position 0",
        ("huggingface/transformers/issues/37574",),
    ),
    "Dilation": (
        "MASK", "a window that keeps every d-th key, its sides counted in kept keys",
        "the sides are counted in tokens", (),
    ),
    "Documents": (
        "LEAK", "packed sequences", "a document sees its neighbour; a negative id matches itself",
        ("fla-org/flash-linear-attention/issues/431",),
    ),
    "EmptyRows": (
        "EMPTY", "a query that sees no key: out = 0, lse = -inf, gradients 0",
        "NaN, or the mean of all values",
        ("pytorch/pytorch/pull/131060", "ml-explore/mlx/pull/2608", "onnx/onnx/pull/8068"),
    ),
    "EvenWeights": (
        "COUNT", "Q = 0: every key seen weighs the same, and values are 1 or -1",
        "one key too many or too few changes every output", (),
    ),
    "Fingerprint": (
        "INDEX", "every head and column of V has a value of its own",
        "what is read from another head or column shows", (),
    ),
    "GlobalTokens": (
        "MASK", "tokens that see all, are seen by all, or both",
        "global rows are missing, or their keys are counted twice",
        ("huggingface/transformers/issues/16566",),
    ),
    "Gradients": (
        "GRADIENT", "dq, dk and dv of sum(out dout)",
        "missing scale, missing softcap slope, heads of a group not summed", (),
    ),
    "GradientBias": ("GRADIENT", "the gradient of a bias, in the bias's own shape",
                     "not summed over broadcast axes", ()),
    "GradientLse": ("GRADIENT", "a gradient that arrives through lse", "it is ignored", ()),
    "GradientSink": ("GRADIENT", "the gradient of a sink logit", "its sign, or dlse, is lost", ()),
    "Grid": (
        "INDEX", "a grid written row by row, one pattern an axis", "rows and columns are exchanged",
        (),
    ),
    "GroupedHeads": (
        "INDEX", "query head h reads key head h // (h_total / g_total)",
        "the heads are tiled (h % g) instead of repeated",
        ("onnx/onnx/pull/7274", "ekzhang/jax-js/pull/180"),
    ),
    "InfiniteScores": (
        "NONFINITE", "a bias of -inf hides its key; +inf makes its row NaN",
        "0 x NaN of the hidden value, or NaN in other rows", (),
    ),
    "KvLengths": (
        "PADDING", "key slots at and past a length are empty, per batch row",
        "padding is attended with score 0, or the queries are moved",
        ("microsoft/onnxruntime/pull/28031",),
    ),
    "KvPositions": (
        "PADDING", "every key slot has a position; a negative one is an empty slot",
        "a ring cache or left padding is read as if slot = position",
        ("Lightning-AI/litgpt/issues/2182", "huggingface/transformers/pull/48280"),
    ),
    "Lists": ("INDEX", "explicit pairs and stored orders", "an order is inverted", ()),
    "LongKeys": (
        "BOUNDARY", "2,053 keys, a prime", "a split or a chunk of keys is joined wrongly",
        ("sgl-project/sglang/pull/35045",),
    ),
    "LowScores": (
        "PADDING", "all scores are far below 0",
        "zero padding (score 0) or a mask of -10 outweighs every key",
        ("ROCm/rocm-libraries/pull/7082",),
    ),
    "MaskedNaN": (
        "NONFINITE", "NaN in keys and values nobody sees, or in a bias where no pair is allowed",
        "0 x NaN: it leaks into the output", ("onnx/onnx/pull/8068",),
    ),
    "MoreQueries": (
        "ALIGNMENT", "m > n: the first queries have negative positions",
        "a table is read at -1; the first rows see key 0", (),
    ),
    "Multiplicity": (
        "COUNT", "a key that counts c times has log c added to its score", "duplicates are dropped",
        (),
    ),
    "Neighborhood": (
        "MASK", "a window that shifts at the ends, so that it is always full",
        "the window is cut at the ends", ("SHI-Labs/NATTEN/pull/202",),
    ),
    "PerBatch": ("INDEX", "batch rows with patterns of their own", "row 0 serves all", ()),
    "PerHead": ("INDEX", "heads with patterns of their own, h modulo their number",
                "head 0 serves all, or key heads are counted", ()),
    "Prefix": ("MASK", "a prefix that all see", "the prefix is causal, or the window is not", ()),
    "QStart": (
        "ALIGNMENT", "the position of the first query is given",
        "it is taken to be n - m, or 0",
        ("microsoft/onnxruntime/issues/29020", "Dao-AILab/flash-attention/issues/1133"),
    ),
    "RandomKeys": (
        "RANDOM", "seeded random keys, the same in every language",
        "signed instead of unsigned remainders, repeated keys counted", (),
    ),
    "Ramp": ("SCALE", "scores from -4 to 4", "a wrong scale, base or rescaling shows", ()),
    "Scale": ("SCALE", "a scale that is not d ** -0.5", "the default is used as well", ()),
    "SeenNaN": ("NONFINITE", "NaN in a key that some rows see",
                "it spreads to rows that do not see it, or is lost", ()),
    "Selection": (
        "MASK", "keys chosen by q and k: `selection` says how, the mask and the lists what",
        "a key that the query cannot see is chosen, or scores are taken of another head",
        ("1bit-MONSTER/1bit-MONSTER/pull/2421",),
    ),
    "SelectionBlocks": (
        "BOUNDARY", "blocks of keys are chosen, the last of them cut",
        "the cut block is dropped, or its mean is over a whole block", (),
    ),
    "SelectionForced": (
        "MASK", "the query's own block is chosen first, and counts",
        "it is chosen besides, or a better one takes its place",
        ("fla-org/flash-linear-attention/pull/845",),
    ),
    "SelectionIndexer": (
        "MASK", "keys are chosen by arrays of an indexer, not by q and k",
        "its ReLU, its weights or their signs are lost, or heads are scored apart", (),
    ),
    "SelectionTail": (
        "BOUNDARY", "keys are chosen in groups; what makes no whole group is seen by all",
        "the last keys are lost, or make a group that is not whole", (),
    ),
    "SelectionCompressed": (
        "MASK", "blocks are ranked by a softmax over means of windows of keys",
        "a window that ends after the query counts, or blocks get the windows of their neighbours",
        (),
    ),
    "SelectionEviction": (
        "MASK", "keys leave a cache, by the attention they have had, and never come back",
        "scores start anew at each step, or the recent keys take part in the ranking", (),
    ),
    "SelectionTies": (
        "ORDER", "equal scores: the smaller position is chosen",
        "the order of ties is left to a sort that is not stable, or the last ones win",
        ("ml-explore/mlx-lm/pull/1454",),
    ),
    "SinkLogit": (
        "DENOMINATOR", "one more score a head, in the denominator only; lse includes it",
        "it gets a value, is scaled, or is left out of lse",
        ("NVIDIA-NeMo/Megatron-Bridge/pull/2656",),
    ),
    "SinkTokens": ("MASK", "the first keys are always seen", "they are dropped by the window", ()),
    "Softcap": (
        "ORDER", "c tanh(s / c) after scale and before bias and mask",
        "the order is another; a masked -inf becomes -c", (),
    ),
    "Steps": ("SCALE", "the running maximum rises from block to block",
              "an online softmax forgets to rescale", ()),
    "Strides": ("MASK", "residues of a distance or of a position", "remainders of negative numbers",
                ()),
    "TopLeft": (
        "ALIGNMENT", "m < n: the queries are the last m positions",
        "queries are aligned to the first keys",
        ("microsoft/onnxruntime/issues/29020", "onnx/onnx/pull/8068"),
    ),
    "WindowBothSides": ("MASK", "windows that reach to both sides, or from one on",
                        "left and right are exchanged; None is read as 0", ()),
    "WindowLeft": (
        "OFFBYONE", "the last w + 1 keys, the query's own among them", "one key more or less",
        ("huggingface/transformers/issues/39408", "vllm-project/vllm/issues/3385",
         "facebookresearch/xformers/issues/923"),
    ),
    "ZeroSize": ("EMPTY", "no queries, no keys or no batch rows", "a crash, or NaN", ()),
}  # fmt: skip


def entries() -> dict[str, dict[str, object]]:
    """The flags as the manifest writes them."""
    return {
        name: {
            "bug": bug,
            "description": description,
            "effect": effect,
            "links": [GITHUB + link for link in links],
        }
        for name, (bug, description, effect, links) in sorted(FLAGS.items())
    }
