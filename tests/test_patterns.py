"""One picture for every constructor, and for every edge that its docstring names."""

import numpy as np
import pytest

import sparse_ref as sr

# name: (pattern, q_len, kv_len, options of `mask`, picture)
PICTURES = {
    "Full, wide": (sr.Full(), 2, 3, {}, "### ###"),
    "Full, tall": (sr.Full(), 3, 2, {}, "## ## ##"),
    "Causal, square": (sr.Causal(), 4, 4, {}, "#... ##.. ###. ####"),
    "Causal, wide: the queries are the last": (sr.Causal(), 2, 5, {}, "####. #####"),
    "Causal, tall: the first queries see nothing": (sr.Causal(), 5, 2, {}, ".. .. .. #. ##"),
    "Causal from the first key": (sr.Causal(), 2, 5, {"q_start": 0}, "#.... ##..."),
    "Causal before the first key": (sr.Causal(), 3, 2, {"q_start": -2}, ".. .. #."),
    "Causal, keys elsewhere": (
        sr.Causal(), 2, 4, {"q_start": 4, "kv_positions": [5, -1, 0, 4]}, "..## #.##",
    ),
    "SlidingWindow, causal": (sr.SlidingWindow(1, 0), 4, 4, {}, "#... ##.. .##. ..##"),
    "SlidingWindow, asymmetric": (
        sr.SlidingWindow(1, 2), 5, 5, {}, "###.. ####. .#### ..### ...##",
    ),
    "SlidingWindow, only itself": (sr.SlidingWindow(0, 0), 3, 3, {}, "#.. .#. ..#"),
    "SlidingWindow, unbounded to the left": (
        sr.SlidingWindow(None, 1), 4, 4, {}, "##.. ###. #### ####",
    ),
    "SlidingWindow, unbounded to the right": (
        sr.SlidingWindow(1, None), 4, 4, {}, "#### #### .### ..##",
    ),
    "SlidingWindow, wider than all": (sr.SlidingWindow(9, 9), 2, 3, {}, "### ###"),
    "SlidingWindow, tall": (sr.SlidingWindow(1, 0), 4, 2, {}, ".. .. #. ##"),
    "SlidingWindow, past the keys": (
        sr.SlidingWindow(1, 0), 3, 2, {"q_start": 1}, "## .# ..",
    ),
    "SlidingWindow, dilated: left and right count kept keys": (
        sr.SlidingWindow(2, 1, dilation=2), 7, 7, {},
        "#.#.... .#.#... #.#.#.. .#.#.#. #.#.#.# .#.#.#. ..#.#.#",
    ),
    "SlidingWindow, dilated, unbounded": (
        sr.SlidingWindow(None, 0, dilation=3), 5, 5, {}, "#.... .#... ..#.. #..#. .#..#",
    ),
    "Chunked": (sr.Chunked(3), 5, 5, {}, "###.. ###.. ###.. ...## ...##"),
    "Chunked, a look back": (sr.Chunked(2, back=1), 5, 5, {}, "##... ##... ####. ####. ..###"),
    "Chunked, a look ahead": (sr.Chunked(2, ahead=1), 5, 5, {}, "####. ####. ..### ..### ....#"),
    "Chunked, block-causal": (sr.Chunked(2, back=None), 5, 5, {}, "##... ##... ####. ####. #####"),
    "Chunked, strictly earlier": (
        sr.Chunked(2, back=None, ahead=-1), 5, 5, {}, "..... ..... ##... ##... ####.",
    ),
    "Chunked, the chunk before only": (
        sr.Chunked(2, back=1, ahead=-1), 5, 5, {}, "..... ..... ##... ##... ..##.",
    ),
    "Chunked, another origin": (
        sr.Chunked(3, origin=1), 5, 5, {}, "#.... .###. .###. .###. ....#",
    ),
    "Chunked, chunks go on below zero": (
        sr.Chunked(3), 4, 2, {"q_start": -2}, ".. .. ## ##",
    ),
    "Chunked, unbounded": (sr.Chunked(2, back=None, ahead=None), 2, 3, {}, "### ###"),
    "Strided": (sr.Strided(2), 3, 5, {}, "#.#.# .#.#. #.#.#"),
    "Strided, phase": (sr.Strided(3, phase=1), 4, 4, {}, "..#. #..# .#.. ..#."),
    "Offsets": (sr.Offsets([0, 2]), 4, 4, {}, "#... .#.. #.#. .#.#"),
    "Offsets, ahead": (sr.Offsets([-1]), 3, 3, {}, ".#. ..# ..."),
    "Offsets, none": (sr.Offsets([]), 2, 2, {}, ".. .."),
    "Offsets, a range": (sr.Offsets(range(0, 9, 2)), 2, 5, {}, ".#.#. #.#.#"),
    "Keys": (sr.Keys([0, 3]), 2, 5, {}, "#..#. #..#."),
    "Keys, a bool table": (sr.Keys(np.array([0, 1, 1], bool)), 1, 5, {}, ".##.."),
    "Keys, none": (sr.Keys(()), 1, 2, {}, ".."),
    "Rows, by absolute position": (sr.Rows([3]), 2, 4, {}, ".... ####"),
    "Global": (sr.Global([1]), 3, 3, {}, ".#. ### .#."),
    "Global, wide": (sr.Global([0, 3]), 2, 4, {}, "#..# ####"),
    "KeyStride": (sr.KeyStride(3, [0, 1]), 1, 7, {}, "##.##.#"),
    "RowStride": (sr.RowStride(3, [2]), 4, 2, {"q_start": 0}, ".. .. ## .."),
    "RowStride, remainders of negative positions": (
        sr.RowStride(3, [2]), 3, 1, {"q_start": -2}, ". # .",
    ),
    "Xor": (sr.Xor([0, 3]), 4, 4, {}, "#..# .##. .##. #..#"),
    "Xor, none": (sr.Xor([]), 1, 2, {}, ".."),
    "PrefixLM": (sr.PrefixLM(2), 4, 4, {}, "##.. ##.. ###. ####"),
    "PrefixLM, longer than all": (sr.PrefixLM(9), 2, 2, {}, "## ##"),
    "PrefixLM, tall": (sr.PrefixLM(1), 3, 2, {}, "#. #. ##"),
    "Sink": (sr.Sink(2), 2, 4, {}, "##.. ##.."),
    "Sink, none": (sr.Sink(0), 1, 2, {}, ".."),
    "Document": (sr.Document([4, 4, 7, 7]), 4, 4, {}, "##.. ##.. ..## ..##"),
    "Document, interleaved": (sr.Document([0, 1, 0]), 3, 3, {}, "#.# .#. #.#"),
    "Document, a negative id never matches": (sr.Document([-1, 0, -1]), 3, 3, {}, "... .#. ..."),
    "Document, before the first position": (
        sr.Document([0, 0]), 3, 2, {"q_start": -1}, ".. ## ##",
    ),
    "Document, keys with ids of their own": (
        sr.Document([0, 1], key_ids=[1, 0, 0]), 2, 3, {"q_start": 0}, ".## #..",
    ),
    "Neighborhood shifts at the borders": (
        sr.Neighborhood(6, 3), 6, 6, {}, "###... ###... .###.. ..###. ...### ...###",
    ),
    "Neighborhood, an even kernel is wider on the left": (
        sr.Neighborhood(5, 4), 5, 5, {}, "####. ####. ####. .#### .####",
    ),
    "Neighborhood, dilated: a window in every class": (
        sr.Neighborhood(7, 3, dilation=2), 7, 7, {},
        "#.#.#.. .#.#.#. #.#.#.. .#.#.#. ..#.#.# .#.#.#. ..#.#.#",
    ),
    "Neighborhood, strided: a group shares the window of its leader": (
        sr.Neighborhood(6, 3, stride=2), 6, 6, {}, "###... ###... ..###. ..###. ...### ...###",
    ),
    "Neighborhood, causal windows are cut": (
        sr.Neighborhood(5, 3, causal=True), 5, 5, {}, "#.... ##... ###.. .###. ..###",
    ),
    "Neighborhood, a decode row": (sr.Neighborhood(5, 3, causal=True), 1, 4, {}, ".###"),
    "RandomKeys": (sr.RandomKeys(2, 0, 4), 4, 4, {}, ".#.# #..# ##.. ##.."),
    "RandomKeys, all candidates": (sr.RandomKeys(9, 0, 3), 3, 3, {}, "### ### ###"),
    "RandomKeys, causal candidates": (
        sr.RandomKeys(9, 0, 3, causal=True), 3, 3, {}, "#.. ##. ###",
    ),
    "RandomKeys, excluded": (
        sr.RandomKeys(9, 0, 3, exclude=sr.SlidingWindow(0, 0)), 3, 3, {}, ".## #.# ##.",
    ),
    "BlockPattern": (
        sr.BlockPattern(np.array([[1, 0], [1, 1]], bool), 2), 4, 4, {}, "##.. ##.. #### ####",
    ),
    "BlockPattern, cut at both ends, two block sizes": (
        sr.BlockPattern(np.array([[1, 0], [0, 1]], bool), (2, 3)), 3, 4, {},
        "###. ...# ...#",
    ),
    "BlockPattern, keys outside the mask": (
        sr.BlockPattern(np.ones((3, 1), bool), 2), 2, 5, {}, "##... ##...",
    ),
    "Tokens": (sr.Tokens(np.array([[1, 0, 1], [0, 1, 0]], bool)), 2, 3, {"q_start": 0}, "#.# .#."),
    "Tokens, more keys than the list": (
        sr.Tokens(np.eye(3, dtype=bool)), 2, 3, {"kv_positions": [2, 5, 1]}, "..# #..",
    ),
    "Blocked": (sr.Blocked(sr.SlidingWindow(0, 0), 2), 5, 5, {}, "##... ##... ..##. ..##. ....#"),
    "Blocked, by absolute block": (sr.Blocked(sr.Causal(), 2), 2, 3, {}, "##. ###"),
    "Grid, rows of an image": (
        sr.Grid((2, 2), (sr.SlidingWindow(0, 0), sr.Full())), 4, 4, {}, "##.. ##.. ..## ..##",
    ),
    "Grid, a patternless axis of one": (
        sr.Grid((1, 3), (sr.Full(), sr.Causal())), 3, 3, {}, "#.. ##. ###",
    ),
    "Permuted": (sr.Permuted(sr.Causal(), [2, 0, 1]), 3, 3, {}, "### .#. .##"),
    "Permuted, nothing outside": (
        sr.Permuted(sr.Full(), [1, 0]), 2, 2, {"q_start": -1}, ".. ##",
    ),
    "WithinDocument": (
        sr.WithinDocument(sr.Causal() & sr.Strided(2), [3, 3, 3, 5, 5]), 5, 5, {},
        "#.... .#... #.#.. ...#. ....#",
    ),
    "WithinDocument, a gap is not counted": (
        sr.WithinDocument(sr.SlidingWindow(1, 0), [0, 1, 0, -1, 0]), 5, 5, {},
        "#.... .#... #.#.. ..... ..#.#",
    ),
    "And": (sr.Causal() & sr.Keys([0, 2]), 4, 4, {}, "#... #... #.#. #.#."),
    "Or": (sr.Sink(1) | sr.SlidingWindow(0, 0), 3, 3, {}, "#.. ##. #.#"),
    "and-not": (sr.Causal() - sr.Sink(1), 3, 3, {}, "... .#. .##"),
    "Not": (~sr.Causal(), 3, 3, {}, ".## ..# ..."),
    "Multi, its support": (sr.Multi([sr.Sink(1), sr.Keys([0, 2])]), 1, 3, {}, "#.#"),
    "PerBatch": (sr.PerBatch([sr.Full(), sr.Causal()]), 2, 2, {"batch": 1}, "#. ##"),
    "no queries": (sr.Causal(), 0, 3, {}, ""),
    "no keys": (sr.Causal(), 2, 0, {}, " "),
}  # fmt: skip


def drawn(mask):
    return " ".join("".join(row) for row in np.where(mask, "#", "."))


@pytest.mark.parametrize("name", PICTURES)
def test_picture(name):
    pattern, m, n, options, want = PICTURES[name]

    assert drawn(pattern.mask(m, n, **options)[0]) == want


def test_every_constructor_has_a_picture():
    kinds = {kind for pattern, *_ in PICTURES.values() for kind in nodes(pattern)}
    every = {kind for kind in vars(sr).values() if isinstance(kind, type)}
    patterns = {kind for kind in every if issubclass(kind, sr.Pattern)}

    assert patterns - kinds == {sr.Pattern, sr.PerHead}  # the next test draws heads


def nodes(pattern):
    yield type(pattern)
    for child in pattern.children:
        yield from nodes(child)


def test_heads_are_drawn_below_each_other():
    pattern = sr.Causal() & sr.PerHead([sr.Full(), sr.Sink(1)])

    assert sr.draw(pattern, 2) == "head 0\n# .\n# #\nhead 1\n# .\n# ."
    assert sr.draw(pattern.mask(2, 2), 2) == sr.draw(pattern, 2)
    assert sr.draw(np.tri(2, dtype=bool), 2) == "# .\n# #"
    with pytest.raises(ValueError, match="mask must be bool of shape"):
        sr.draw(np.tri(2), 2)


CAUSAL, WINDOW = sr.Causal(), sr.SlidingWindow(2, 0)
SENTENCES = {
    "a and b are the same": (WINDOW, CAUSAL & sr.SlidingWindow(2, 5)),
    "b sees 1 more key on the left": (WINDOW, sr.SlidingWindow(3, 0)),
    "b sees 1 fewer key on the left": (WINDOW, sr.SlidingWindow(1, 0)),
    "b sees 2 more keys on the right": (WINDOW, sr.SlidingWindow(2, 2)),
    "b is a shifted by one key to the left": (sr.Offsets([0, 1]), sr.Offsets([1, 2])),
    "b allows less than a": (CAUSAL, CAUSAL & sr.Chunked(4)),
    "b allows all that a does, and more": (CAUSAL & sr.Chunked(4), CAUSAL),
    "each allows pairs that the other does not": (CAUSAL & sr.Strided(3), sr.Chunked(4)),
}


@pytest.mark.parametrize("sentence", SENTENCES)
def test_comparisons_name_the_mistake(sentence):
    a, b = SENTENCES[sentence]
    found = sr.compare(a, b, 9)
    x, y = a.mask(9, 9)[0], b.mask(9, 9)[0]

    assert found.sentence == sentence
    assert (found.only_a, found.only_b) == ((x & ~y).sum(), (y & ~x).sum())
    assert found.equal == (sentence == "a and b are the same")


def test_a_comparison_points_at_the_first_difference():
    pattern = sr.PerHead([sr.Full(), sr.Causal()])
    found = sr.compare(sr.Full(), pattern, 2, 3)

    assert found.first == (1, 0, 2)
    assert str(found).splitlines()[:6] == ["head 0", "# # #", "# # #", "head 1", "# # -", "# # #"]


def test_a_comparison_names_the_shift_also_where_the_border_uncovers_a_key():
    found = sr.compare(sr.Offsets([1, 2]), sr.Offsets([0, 1]), 6)

    assert found.sentence == "b is a shifted by one key to the right"
    assert sr.compare(sr.Causal(), sr.Causal(), 4).equal
    assert sr.compare(sr.Full(), sr.Causal(), 9).sentence == "b allows less than a"
