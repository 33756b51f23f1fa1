"""`sparse-ref show`: a pattern, or two of them held against each other, to look at."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from .command import OK, WRONG, Refusal, add_outputs, declare, positive, to_json

if TYPE_CHECKING:
    import sparse_ref as sr

    from .cells import Cells
    from .statistics import Statistics

ABOUT = """\
Draw a pattern and say what it costs. Rows are queries, columns are keys: # attends, . does not.
Where a sign stands for a square of pairs, o is a square that is seen in part.

With a second pattern, draw where they differ (- only in the first, + only in the second) and say
how in one sentence.
"""

END = """\
examples:
  sparse-ref show 'Causal() & SlidingWindow(3, 0)'
  sparse-ref show 'recipes.longformer(64, global_tokens=[0])' -n 4096 --block 64
  sparse-ref show 'conventions.hf(8)' 'conventions.attention_gym(8)'     a window off by one
  sparse-ref show 'conventions.hf(128)' @mine.npy                        against a dumped mask
  sparse-ref show 'Causal()' --q-len 4 -n 12                             the last 4 of 12 queries
  sparse-ref show 'recipes.phi3_small()' -n 8192 --heads 32 --head 5 --svg head5.svg

a pattern is an expression (`sparse-ref patterns` lists the words), the JSON of sparse_ref.to_dict,
@FILE with either, or @FILE.npy with a bool mask

exit status: 0, or 1 if two patterns differ; 2 if something is no pattern or cannot be drawn
"""

USUAL = 16  # tokens, where nobody says how many
LONGEST = 2**20
DRAWN = 4  # heads that are drawn in a terminal
SIGNS = (16, 64)  # the fewest and the most on a side of a terminal's picture
DOTS = 256  # of a picture in a file
PAIRS = 2**22  # that are compared
ONE = {"#": "sees", "o": "sees some", ".": "does not see"}
TWO = {"#": "both see", "o": "both see some", "-": "only a sees", "+": "only b sees",
       "x": "each sees some", ".": "neither sees"}  # fmt: skip


class Sizes(NamedTuple):
    """Of what is drawn."""

    q_len: int
    kv_len: int
    heads: int
    kv_heads: int


def add_to(commands: Any) -> None:
    """The command and its options."""
    brief = "draw a pattern, or two with their difference"
    parser = declare(commands, "show", brief, ABOUT, END)
    add = parser.add_argument
    add("pattern", metavar="EXPR", help="a pattern, in quotes")
    add("other", metavar="EXPR2", nargs="?", help="another one, to compare with")
    add("-n", "--kv-len", type=positive, metavar="N",
        help=f"keys (default: what the pattern is for, else {USUAL})")  # fmt: skip
    add("--q-len", type=positive, metavar="N", help="queries, the last positions (default: keys)")
    add("--heads", type=positive, metavar="N", help="query heads (default: the pattern's own)")
    add("--kv-heads", type=positive, metavar="N", help="heads of keys and values (default: heads)")
    add("--head", type=int, metavar="N", help="draw this head only")
    add("--head-dim", type=positive, default=64, metavar="N", help="default: %(default)s")
    add("--block", type=positive, metavar="N", help="draw a grid of blocks, and count these")
    add("--png", type=Path, metavar="FILE", help="write a picture")
    add("--svg", type=Path, metavar="FILE", help="write a picture that can be scaled")
    add_outputs(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Draw; 0, or 1 if two patterns differ."""
    from .given import pattern_of

    given = [pattern_of(x) for x in (arguments.pattern, arguments.other) if x is not None]
    try:
        return _show(arguments, given)
    except (TypeError, ValueError, NotImplementedError) as error:  # what the library says of it
        raise Refusal(error) from None


def _show(arguments: argparse.Namespace, given: list[sr.Pattern]) -> int:
    from . import screen
    from .statistics import statistics

    sizes, block = _sizes(arguments, given), arguments.block
    most = min(SIGNS[1], max(SIGNS[0], (screen.columns() - 2) // 2))
    content = _said(given, sizes)
    found = [statistics(x, *sizes, head_dim=arguments.head_dim, block=block or 64) for x in given]
    pictures = _pictures(given, sizes, most, block, arguments.head)
    content |= {"square": pictures[0].size, "statistics": [x.to_dict() for x in found]}
    content["pictures"] = [
        {"heads": x.heads, "rows": ["".join(row) for row in x.signs]} for x in pictures
    ]
    files = [(kind, path) for kind in ("png", "svg") if (path := getattr(arguments, kind))]
    for kind, path in files:
        fine = _pictures(given, sizes, DOTS, block, arguments.head, lined=False)
        _write(given, fine, content, block, kind, path)
    if arguments.json:
        print(to_json(content))
    elif not arguments.quiet:
        _print(given, pictures, found, content)
        for _, path in files:
            screen.say(f"Written: {path}")
    return WRONG if content.get("equal") is False else OK


def _sizes(arguments: argparse.Namespace, given: list[sr.Pattern]) -> Sizes:
    covered = [x.covers for x in given if x.covers is not None]
    kv_len = arguments.kv_len or min(covered, default=USUAL)
    q_len = arguments.q_len or kv_len
    heads = arguments.heads or max(x.heads for x in given)
    kv_heads = arguments.kv_heads or heads
    if max(q_len, kv_len) > LONGEST:
        raise Refusal(f"lengths must be <= {LONGEST:,}, got {max(q_len, kv_len):,}")
    if heads % kv_heads:
        raise Refusal(f"--kv-heads must divide the {heads} heads, got {kv_heads}")
    if arguments.head is not None and not 0 <= arguments.head < heads:
        raise Refusal(f"--head must be one of the {heads} heads, got {arguments.head}")
    if len(given) > 1 and heads * q_len * kv_len > PAIRS:
        raise Refusal(f"two patterns are compared on at most {PAIRS:,} pairs: lower -n")
    return Sizes(q_len, kv_len, heads, kv_heads)


def _said(given: list[sr.Pattern], sizes: Sizes) -> dict[str, Any]:
    """What there is to say besides pictures and costs."""
    import sparse_ref as sr

    content: dict[str, Any] = {"patterns": [repr(x) for x in given], **sizes._asdict()}
    if len(given) > 1:
        a, b = (x.mask(sizes.q_len, sizes.kv_len, heads=sizes.heads) for x in given)
        found = sr.compare(a, b, sizes.q_len, sizes.kv_len)
        names = ("equal", "sentence", "first", "both", "only_a", "only_b")
        content |= {name: getattr(found, name) for name in names}
    return content


def _pictures(
    given: list[sr.Pattern], sizes: Sizes, most: int, block: int | None, head: int | None, *,
    lined: bool = True,
) -> list[Cells]:  # fmt: skip
    """One for all heads that are alike, with at most so many squares on a side."""
    from . import cells

    q_len, kv_len, heads, _ = sizes
    size = cells.square(q_len, kv_len, most, block, lined=lined)
    if len(given) == 1:
        found = cells.of_pattern(given[0], q_len, kv_len, size=size, heads=heads, block=block)
    else:
        masks = [x.mask(q_len, kv_len, heads=heads) for x in given]
        found = cells.of_two(*masks, size=size, block=block)
    return [x for x in found if head is None or head in x.heads]


def _print(
    given: list[sr.Pattern], pictures: list[Cells], found: list[Statistics], content: dict[str, Any]
) -> None:
    from . import screen

    two = len(given) > 1
    for name, pattern in zip("ab", given, strict=False):
        screen.say(f"{name}: {pattern!r}" if two else repr(pattern))
    size, q_len, kv_len = content["square"], content["q_len"], content["kv_len"]
    each = "" if size == 1 else f"; a sign is {size} x {size} pairs, # all, o some, . none"
    screen.say(f"{q_len:,} queries down, {kv_len:,} keys across{each}")
    for picture in pictures[:DRAWN]:
        screen.say(f"\n{_heads(picture)}\n{picture}" if content["heads"] > 1 else f"\n{picture}")
    if len(pictures) > DRAWN:
        screen.say(f"\nand {len(pictures) - DRAWN} more that differ: --head N draws one")
    if two:
        screen.say("\n" + _difference(content))
    screen.say("")
    rows = (list(same) for same in zip(*(x.lines() for x in found), strict=False))
    titles = ["a", "b"] if two else [""]
    screen.table(["", *titles], ([row[0][0], *(value for _, value in row)] for row in rows))


def _difference(content: dict[str, Any]) -> str:
    both, a, b = (content[name] for name in ("both", "only_a", "only_b"))
    lines = [f"# both {both:,}, - only a {a:,}, + only b {b:,}", content["sentence"]]
    if content["first"] is not None:
        head, query, key = content["first"]
        lines.insert(1, f"first difference: head {head}, query {query}, key {key}")
    return "\n".join(lines)


def _heads(picture: Cells) -> str:
    some = ", ".join(map(str, picture.heads[:12])) + ", ..." * (len(picture.heads) > 12)
    return f"head{'s' * (len(picture.heads) > 1)} {some}"


def _write(
    given: list[sr.Pattern], pictures: list[Cells], content: dict[str, Any], block: int | None,
    kind: str, path: Path,
) -> None:  # fmt: skip
    """The picture as a file, finer than the terminal's."""
    from exporters.files import write_atomically

    from . import plots

    pictures = pictures[:DRAWN]
    used = {str(sign) for x in pictures for sign in x.signs.flat}
    if len(given) > 1:
        signs, names = TWO, [f"{name}: {x!r}" for name, x in zip("ab", given, strict=True)]
    else:
        signs, names = ONE, [repr(given[0])]
    image = plots.plot(
        pictures,
        titles=[_heads(x) if content["heads"] > 1 else "" for x in pictures],
        headings=names,
        note=content.get("sentence", f"{content['statistics'][0]['density']:.2%} of all pairs"),
        meanings={sign: text for sign, text in signs.items() if sign in used},
        block=block,
        kind=kind,
    )
    try:
        write_atomically(path, image)
    except OSError as error:
        raise Refusal(error) from None
