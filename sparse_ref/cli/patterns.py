"""`sparse-ref patterns`: every word of the language of patterns, with a tiny picture."""

from __future__ import annotations

import argparse
import inspect
from typing import TYPE_CHECKING, Any

from .command import OK, Refusal, add_outputs, declare, to_json

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

ABOUT = """\
List every pattern and every recipe, each by an example that can be typed and a picture of 8 queries
(down) by 16 keys (across). With a name, or a part of one, say all that there is to know of it.
"""

END = """\
examples:
  sparse-ref patterns
  sparse-ref patterns window           those with "window" in their name
  sparse-ref patterns longformer       one alone: arguments, picture, source
  sparse-ref show 'Causal() & (SlidingWindow(4, 0) | Sink(2))'

patterns combine: & both, | either, ~ not, - the first without the second
"""

Q, N = 8, 16  # the picture: the last 8 of 16 positions
WORDS = {
    "positions": (
        "Full()", "Causal()", "SlidingWindow(3, 1)", "Chunked(4)", "Strided(4)",
        "Offsets([0, 1, 2, 4, 8])", "Xor([0, 1, 2, 4])", "PrefixLM(12)", "Neighborhood(16, 5)",
    ),
    "chosen tokens": (
        "Keys([0, 6])", "Rows([9, 12])", "Global([0, 11])", "Sink(2)", "KeyStride(4, [3])",
        "RowStride(3, [1])",
    ),
    "packed sequences": (
        "Document([0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 2, 2, 2, 2])",
        "WithinDocument(Sink(1), [0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 2, 2, 2, 2])",
    ),
    "tables and chance": (
        "RandomKeys(4, 1, 16)", "BlockPattern([[True, True], [False, True]], 8)",
        "Tokens([[True, False], [True, True]])", "from_mask([[True, False], [True, True]])",
    ),
    "from other patterns": (
        "Causal() & SlidingWindow(5, 0)", "Sink(2) | SlidingWindow(1, 1)", "~Causal()",
        "Causal() - Strided(3)", "Blocked(SlidingWindow(1, 0), 4)",
        "Grid((4, 4), [SlidingWindow(1, 1), SlidingWindow(1, 1)])",
        "Permuted(SlidingWindow(2, 0), [0, 8, 1, 9, 2, 10, 3, 11, 4, 12, 5, 13, 6, 14, 7, 15])",
        "PerHead([Causal(), SlidingWindow(2, 0)])", "PerBatch([Causal(), Full()])",
        "Multi([Causal(), SlidingWindow(2, 0)])",
    ),
    "recipes": (
        "recipes.sparse_transformer_strided(4)", "recipes.sparse_transformer_fixed(4, 1)",
        "recipes.longformer(4, global_tokens=[0])", "recipes.longt5(3)",
        "recipes.bigbird(16, block_size=2, random=1)", "recipes.mistral(6)",
        "recipes.gemma3(6, layer=0)", "recipes.gpt_oss(6, layer=0)", "recipes.llama4(8, layer=0)",
        "recipes.phi3_small(4, 2, 2, 4)", "recipes.streaming_llm(2, 5)",
        "recipes.tri_shape(16, 2, 3, 3)", "recipes.vertical_slash([1, 6], [0, 1, 8])",
        "recipes.logsparse(16, 2)", "recipes.longnet([4, 8], [1, 2], 2)",
        "recipes.butterfly(3, 2)", "recipes.block_diffusion(8, 2)", "recipes.axial((4, 4), 0)",
        "recipes.natten((4, 4), 3)", "recipes.swin((4, 4), 2, 1)",
        "recipes.deepspeed_fixed(16, block_size=2, local_blocks=2)",
        "recipes.deepspeed_variable(16, block_size=2, local_blocks=[1, 2])",
        "recipes.deepspeed_sliding(16, block_size=2)",
        "recipes.deepspeed_bigbird(16, block_size=2)",
        "recipes.deepspeed_bslongformer(16, block_size=2)",
    ),
}  # fmt: skip


def add_to(commands: Any) -> None:
    """The command and its options."""
    parser = declare(commands, "patterns", "list all patterns and recipes", ABOUT, END)
    parser.add_argument("name", nargs="?", metavar="NAME", help="a name, or a part of one")
    add_outputs(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """The list, or one entry of it."""
    from .expressions import parse
    from .screen import say, unicode

    entries = [(shelf, text) for shelf, texts in WORDS.items() for text in texts]
    if arguments.name is not None:
        entries = _named(entries, arguments.name.lower())
    if arguments.json:
        content = [
            {
                "kind": shelf,
                "example": text,
                "summary": _summary(text),
                "picture": _rows(parse(text)),
            }
            for shelf, text in entries
        ]
        print(to_json(content))
    elif not arguments.quiet:
        if arguments.name is not None and len({_word(text) for _, text in entries}) == 1:
            say(_all_of(entries[0][1]))
        else:
            say("\n".join(_listed(entries, dots=unicode())))
    return OK


def _named(entries: list[tuple[str, str]], name: str) -> list[tuple[str, str]]:
    import difflib

    words = {_word(text).rpartition(".")[2].lower() for _, text in entries}
    if name in words:
        return [x for x in entries if _word(x[1]).rpartition(".")[2].lower() == name]
    found = [x for x in entries if name in _word(x[1]).lower()]
    if not found:
        near = difflib.get_close_matches(name, words, n=1, cutoff=0.6)
        raise Refusal(f"no pattern is named {name!r}{f'; did you mean {near[0]}?' if near else ''}")
    return found


def _listed(entries: list[tuple[str, str]], *, dots: bool) -> list[str]:
    """Two lines an entry, beside its picture; without dots the last query alone."""
    from .expressions import parse

    lines: list[str] = []
    before = ""
    for shelf, text in entries:
        if shelf != before:
            lines += [""] * bool(lines) + [shelf.upper()]
            before = shelf
        mask = _mask(parse(text))
        pictures = braille(mask) if dots else [_signs(mask[-1]), " " * mask.shape[1]]
        short = text if len(text) <= 78 else f"{text[:75]}..."
        for picture, words in zip(pictures, (short, f"  {_summary(text)}"), strict=True):
            lines.append(f"{picture:{8 if dots else N}}  {words}".rstrip())
    return lines


def _all_of(text: str) -> str:
    """Its arguments, its docstring, its picture."""
    import sparse_ref as sr

    from .expressions import parse

    builder = _builder(text)
    arguments = str(inspect.signature(builder)).replace("'", "").replace(" -> None", "")
    about = inspect.getdoc(builder) or ""
    pattern = parse(text)
    lengths = _lengths(pattern)
    return f"{_word(text)}{arguments}\n\n{about}\n\n{text}\n{sr.draw(pattern, *lengths)}"


def _summary(text: str) -> str:
    """The first line of what is said of it."""
    combined = {"&": "both", "|": "either", "~": "not", "-": "the first without the second"}
    for sign, meaning in combined.items():
        if f" {sign} " in text or text.startswith(sign):
            return f"{sign}  {meaning}"
    return (inspect.getdoc(_builder(text)) or "").split("\n")[0]


def _word(text: str) -> str:
    """The constructor or recipe that an example is of; of a combination its sign's class."""
    signs = {" & ": "And", " | ": "Or", " - ": "And", "~": "Not"}
    for sign, name in signs.items():
        if sign in text:
            return name
    return text.partition("(")[0]


def _builder(text: str) -> Any:
    import sparse_ref as sr

    found: Any = sr
    for part in _word(text).split("."):
        found = getattr(found, part)
    return found


def _lengths(pattern: Any) -> tuple[int, int]:
    n = min(N, pattern.covers or N)
    return min(Q, n), n


def _mask(pattern: Any) -> NDArray[np.bool_]:
    """The first head's."""
    import sparse_ref as sr

    first = pattern.patterns[0] if isinstance(pattern, sr.PerBatch) else pattern
    found: NDArray[np.bool_] = first.mask(*_lengths(pattern))[0]
    return found


def _rows(pattern: Any) -> list[str]:
    return [_signs(row) for row in _mask(pattern)]


def _signs(row: Any) -> str:
    return "".join("#" if seen else "." for seen in row)


def braille(mask: NDArray[np.bool_]) -> list[str]:
    """A mask of at most 8 x 16 in two lines of dots, four rows and two columns a character."""
    import numpy as np

    whole = np.zeros((Q, N), dtype=bool)
    whole[: mask.shape[0], : mask.shape[1]] = mask
    bits = np.array([[0x01, 0x08], [0x02, 0x10], [0x04, 0x20], [0x40, 0x80]])
    cells = whole.reshape(Q // 4, 4, N // 2, 2).swapaxes(1, 2)
    return ["".join(chr(0x2800 + int((cell * bits).sum())) for cell in row) for row in cells]
