"""`sparse-ref conventions`: what a window is called where, and which one a mask is."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .command import OK, UNSUPPORTED, Refusal, add_outputs, declare, to_json

if TYPE_CHECKING:
    import sparse_ref as sr

ABOUT = """\
"I have a mask from library X: which pattern is it?" The same number means another window in another
library. Without a pattern, list what an argument of each library means; with a pattern, or with
the mask of a file, say how each library spells it.
"""

END = """\
examples:
  sparse-ref conventions                                     what each library's arguments mean
  sparse-ref conventions 'SlidingWindow(127, 0)'             how each library says this window
  sparse-ref conventions 'conventions.hf(128)'               from one library to all others
  sparse-ref conventions --mask mine.npy                     a bool mask (q_len, kv_len): np.save

alignment: where there are fewer queries than keys, they are the first positions in some libraries,
the last ones in others; a mask from a file is read under each library's own.

exit status: 0, or 3 if no library has arguments for it; 2 if there is no pattern and no mask
"""


def add_to(commands: Any) -> None:
    """The command and its options."""
    brief = "what a window is called in each library"
    parser = declare(commands, "conventions", brief, ABOUT, END)
    what = parser.add_mutually_exclusive_group()
    what.add_argument("pattern", nargs="?", metavar="EXPR", help="a pattern, in quotes")
    what.add_argument("--mask", type=Path, metavar="FILE.npy", help="a bool mask; runs no code")
    add_outputs(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """The table, or everybody's spelling of one pattern; 0 or 3."""
    if arguments.pattern is None and arguments.mask is None:
        return _list(arguments)
    from sparse_ref.conventions import describe

    from .given import mask_of, pattern_of

    if arguments.mask is None:
        given: Any = pattern_of(arguments.pattern)
        where = repr(given)
    else:
        given = mask_of(arguments.mask)
        where = f"{arguments.mask}: a mask {' x '.join(map(str, given.shape))}"
        if given.ndim > 2:
            if (given != given[0]).any():
                raise Refusal(f"the {len(given)} heads of {arguments.mask} differ: save one alone")
            given = given[0]
    try:
        spelled, found = describe(given), _canonical(given)
    except (TypeError, ValueError) as error:
        raise Refusal(error) from None
    _say(arguments, where, spelled, found)
    return OK if any(spelled.values()) else UNSUPPORTED


def _list(arguments: argparse.Namespace) -> int:
    """What an argument of each API means, by an example."""
    from sparse_ref.conventions.forms import CONVENTIONS
    from sparse_ref.conventions.table import table

    from . import screen

    rows = [
        [cell.strip(" `").replace("`", "").replace(r"\|", "|") for cell in line[2:-2].split(" | ")]
        for line in table().splitlines()[2:]
    ]
    names = ("api", "here", "pattern", "keys_seen", "queries_are")
    if arguments.json:
        print(to_json([dict(zip(names, row, strict=True)) for row in rows]))
    elif not arguments.quiet:
        screen.table(["API", "here", "pattern", "keys seen", "queries are"], rows)
        print(f"\n{len(CONVENTIONS)} conventions; with a pattern: how each library spells it.")
    return OK


def _canonical(given: Any) -> sr.Pattern | None:
    """The pattern in the terms of window arguments, where it is one."""
    import sparse_ref as sr
    from sparse_ref.conventions.reading import WIDEST, forms_of

    if not isinstance(given, sr.Pattern):
        if given.shape[0] != given.shape[1] or len(given) > WIDEST:
            return None
        given = sr.from_mask(given)
    forms = forms_of(given)
    return forms[0].pattern if forms else None


def _say(
    arguments: argparse.Namespace, where: str, spelled: dict[str, str | None], found: Any
) -> None:
    from sparse_ref.conventions.forms import CONVENTIONS

    from . import screen

    if arguments.json:
        pattern = None if found is None else repr(found)
        print(to_json({"given": where, "pattern": pattern, "spelled": spelled}))
        return
    if arguments.quiet:
        return
    screen.say(where)
    if found is not None and repr(found) != where:
        screen.say(f"the same as {found!r}")
    if not any(spelled.values()):
        screen.say("no library has arguments for it: pass it as a mask")
        return
    screen.say("")
    named = {name: (one.api.replace("`", ""), one.first) for name, one in CONVENTIONS.items()}
    rows = (
        (named[name][0], text, "first" if named[name][1] else "last")
        for name, text in spelled.items()
        if text is not None
    )
    screen.table(["API", "how it is said", "queries are"], rows)
    cannot = [named[name][0] for name, text in spelled.items() if text is None]
    if cannot:
        screen.say(f"\ncannot say it: {'; '.join(cannot)}")
