"""The verdicts as a Markdown table and as one HTML page, made of the records alone."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import Any

Record = dict[str, Any]
CELL = 9  # pixels of a pair in a picture
LONGEST = 200  # characters of what is said of a fault in the table
WORDS = {
    "PASS": "right", "ACCEPTABLE": "right but for a NaN", "FAIL": "wrong", "ERROR": "error",
    "TIMEOUT": "no answer", "UNSUPPORTED": "not supported",
}  # fmt: skip

STYLE = """
:root { color-scheme: light dark; --ink: #1b1f24; --paper: #ffffff; --soft: #5c6670;
  --line: #d5dae0; --cell: #7d8a97; --more: #b3261e; --less: #1557b0; --fine: #1a6b34;
  --some: #8a5300; --band: #f4f6f8; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6e9ec; --paper: #14171a; --soft: #9aa5b0;
  --line: #363d45; --cell: #8793a0; --more: #ff8a80; --less: #82b1ff; --fine: #7bd88f;
  --some: #ffc165; --band: #1d2226; } }
* { box-sizing: border-box; }
html { -webkit-text-size-adjust: 100%; text-size-adjust: 100%; }
body { margin: 0 auto; max-width: 66rem; padding: 1.5rem clamp(0.8rem, 4vw, 1.5rem);
  background: var(--paper); color: var(--ink); font: 16px/1.5 system-ui, sans-serif;
  overflow-wrap: anywhere; }
h1 { font-size: 1.6rem; } h2 { font-size: 1.2rem; margin-top: 2.5rem;
  border-top: 1px solid var(--line); padding-top: 1rem; } h3 { font-size: 1rem; }
a { color: var(--less); } small, figcaption, .soft { color: var(--soft); }
code, pre { font: 0.85em/1.45 ui-monospace, monospace; }
pre { background: var(--band); padding: 0.6rem; overflow-x: auto; white-space: pre-wrap; }
.wide { overflow-x: auto; } table { border-collapse: collapse; width: 100%; min-width: 38rem; }
caption { text-align: left; padding-bottom: 0.4rem; color: var(--soft); }
th, td { text-align: left; vertical-align: top; overflow-wrap: break-word;
  font-weight: normal; padding: 0.35rem 0.7rem 0.35rem 0;
  border-bottom: 1px solid var(--line); }
td.n { text-align: right; padding-right: 1rem; font-variant-numeric: tabular-nums;
  white-space: nowrap; }
.PASS { color: var(--fine); } .ACCEPTABLE { color: var(--some); }
.FAIL, .ERROR, .TIMEOUT { color: var(--more); } .UNSUPPORTED { color: var(--soft); }
b.v { white-space: nowrap; } .pair { display: flex; flex-wrap: wrap; gap: 1.5rem; }
thead th { font-weight: bold; } th.n { text-align: right; }
figure { margin: 0.5rem 0; max-width: 100%; }
svg { display: block; max-width: 100%; height: auto; border: 1px solid var(--line); }
.same { fill: var(--cell); } .extra { fill: var(--more); } .nan { stroke: var(--more);
  stroke-width: 1.6; } .missing { fill: none; stroke: var(--less); stroke-width: 1.4; }
"""


def markdown(records: Sequence[Record]) -> str:
    """The table for README.md."""
    heading = ("implementation", "asked by", "right", "verdict", "wrong answers, by mistake")
    lines = [f"| {' | '.join(heading)} |", "| --- | --- | ---: | --- | --- |"]
    for one in records:
        cells = [
            f"{one['name']} {one['version']}", one["asked"], "{:,} of {:,}".format(*_right(one)),
            one["verdict"], "; ".join(_in_short(fault) for fault in one["faults"]) or "none",
        ]  # fmt: skip
        lines.append("| " + " | ".join(cell.replace("|", "/") for cell in cells) + " |")
    return "\n".join(lines) + "\n"


def _right(one: Record) -> tuple[int, int]:
    """Right answers, and cases that it did not refuse."""
    counts = one["report"]["counts"]
    return counts.get("PASS", 0), sum(counts.values()) - counts.get("UNSUPPORTED", 0)


def _in_short(fault: dict[str, Any]) -> str:
    silent = fault["ids"] or fault["verdict"] in ("FAIL", "ACCEPTABLE")
    said = " ".join((fault["story"] if silent else fault["said"][0]).split())
    said = said if len(said) <= LONGEST else f"{said[:LONGEST]} ..."
    name = f"`{fault['ids'][0]}`: " if fault["ids"] else ""
    many = "case" if fault["cases"] == 1 else "cases"
    return f"{name}{said} ({fault['cases']:,} {many})"


def page(records: Sequence[Record], made_with: str) -> str:
    """One page without scripts, styles or pictures from elsewhere."""
    rows = "".join(_row(one) for one in records)
    body = "".join(_section(one) for one in records)
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>What attention implementations really compute</title>
<style>{STYLE}</style>
</head>
<body>
<h1>What attention implementations really compute</h1>
<p>Every implementation answers the cases of <code>sparse_ref.check</code>, asked in its own words.
An answer is right if every number is within an error bound derived beforehand, and every NaN and
every exact 0 is where it must be. Of wrong answers the page says which known mistake gives the same
numbers, and draws the mask that was read from outside. A NaN that leaks from a masked key is
counted apart: nearly everybody multiplies where one should select.</p>
<p class="soft">A refusal is no wrong answer, and is not counted. In pictures rows are queries and
columns are keys. Made with {escape(made_with)}.</p>
<div class="wide" role="region" aria-label="all verdicts" tabindex="0"><table>
<caption>Right answers of the cases that each can be asked, and the mistakes that give the others.
</caption>
<thead><tr><th scope="col">implementation</th><th scope="col">asked by</th>
<th scope="col" class="n">right</th><th scope="col">verdict</th><th scope="col">the mistakes</th>
</tr></thead>
<tbody>{rows}</tbody>
</table></div>
{body}</body>
</html>
"""


def _anchor(one: Record) -> str:
    return "".join(c if c.isalnum() else "-" for c in one["name"].lower())


def _row(one: Record) -> str:
    right, asked = _right(one)
    names = ", ".join(f"<code>{escape(x['ids'][0])}</code>" for x in one["faults"] if x["ids"])
    unknown = sum(not x["ids"] for x in one["faults"])
    if unknown:
        names += f"{', and ' if names else ''}{unknown} without a name"
    return (
        f'<tr><th scope="row"><a href="#{_anchor(one)}">{escape(one["name"])}</a> '
        f"<small>{escape(one['version'])}</small></th><td>{escape(one['asked'])}</td>"
        f'<td class="n">{right:,} of {asked:,}</td><td>{_verdict(one["verdict"])}</td>'
        f"<td>{names or 'none'}</td></tr>\n"
    )


def _verdict(name: str) -> str:
    return f'<b class="v {name}" title="{WORDS.get(name, name)}">{name}</b>'


def _section(one: Record) -> str:
    counts = ", ".join(f"{n:,} {name}" for name, n in sorted(one["report"]["counts"].items()))
    refused = "".join(
        f"<li>{escape(why)} <small>({n:,})</small></li>" for why, n in one["unsupported"]
    )
    title = f"{escape(one['name'])} <small>{escape(one['version'])}</small>"
    how = f"{counts}; seed {one['report']['seed']}. Asked by {escape(one['asked'])}."
    parts = [
        f'<h2 id="{_anchor(one)}">{title}</h2>',
        f"<p>{_verdict(one['verdict'])}: {how}</p>",
        *(_fault(fault) for fault in one["faults"]),
        _pictures(one["picture"]),
    ]
    if refused:
        parts.append(f"<details><summary>not supported</summary><ul>{refused}</ul></details>")
    return "\n".join(part for part in parts if part) + "\n"


def _fault(fault: dict[str, Any]) -> str:
    also = f", or {', '.join(fault['ids'][1:4])}" if len(fault["ids"]) > 1 else ""
    title = fault["ids"][0] + also if fault["ids"] else "no known mistake"
    links = " ".join(
        f'<a href="{escape(url, quote=True)}">{escape(url.removeprefix("https://github.com/"))}</a>'
        for url in fault["links"]
    )
    seen = f"<p>A public bug of this kind: {links}</p>" if links else ""
    said = "\n".join(fault["said"])
    return (
        f"<h3>{_verdict(fault['verdict'])} <code>{escape(title)}</code></h3>"
        f"<p>{escape(fault['story'])}: {fault['cases']:,} of the cases. First "
        f"<code>{escape(fault['first'])}</code></p><pre>{escape(said)}</pre>{seen}"
        f"{_pictures(fault['picture'])}"
    )


def _pictures(picture: dict[str, Any] | None) -> str:
    if picture is None:
        return ""
    asked, applied = picture["asked"], picture["applied"]
    missing = sum(a == "#" and b == "." for a, b in _pairs(asked, applied))
    extra = sum(a == "." and b == "#" for a, b in _pairs(asked, applied))
    nan = sum(b == "?" for _, b in _pairs(asked, applied))
    different = [f"{n:,} {word}" for n, word in (
        (missing, "missing (hollow)"), (extra, "too many (filled red)"), (nan, "NaN (crossed)")
    ) if n]  # fmt: skip
    told = ", ".join(different) or "as asked for"
    return (
        f'<div class="pair"><figure>{_svg(asked, asked, "the mask asked for")}'
        f"<figcaption>asked for: <code>{escape(picture['pattern'])}</code></figcaption></figure>"
        f"<figure>{_svg(asked, applied, f'the mask applied: {told}')}<figcaption>applied by head "
        f"{picture['head']}: {told}</figcaption></figure></div>"
    )


def _pairs(asked: Sequence[str], applied: Sequence[str]) -> list[tuple[str, str]]:
    return [pair for a, b in zip(asked, applied, strict=True) for pair in zip(a, b, strict=True)]


def _svg(asked: Sequence[str], applied: Sequence[str], title: str) -> str:
    """A mask; what differs from the one asked for has a form of its own, not only a colour."""
    marks = []
    for i, (wanted, got) in enumerate(zip(asked, applied, strict=True)):
        for j, (a, b) in enumerate(zip(wanted, got, strict=True)):
            x, y = j * CELL, i * CELL
            if b == "?":
                marks.append(
                    f'<path class="nan" d="M{x + 2} {y + 2}l{CELL - 4} {CELL - 4}m0 -{CELL - 4}'
                    f'l-{CELL - 4} {CELL - 4}"/>'
                )
            elif b == "#":
                kind = "same" if a == "#" else "extra"
                marks.append(_rect(kind, x + 0.5, y + 0.5, CELL - 1))
            elif a == "#":
                marks.append(_rect("missing", x + 1.5, y + 1.5, CELL - 3))
    width, height = len(asked[0]) * CELL, len(asked) * CELL
    return (
        f'<svg role="img" width="{width}" height="{height}" viewBox="0 0 {width} {height}">'
        f"<title>{escape(title)}</title>{''.join(marks)}</svg>"
    )


def _rect(kind: str, x: float, y: float, side: float) -> str:
    return f'<rect class="{kind}" x="{x}" y="{y}" width="{side}" height="{side}"/>'
