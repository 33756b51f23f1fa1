"""A pattern in words, for people who look at a file: netron shows them beside the node."""

from __future__ import annotations

import sparse_ref as sr

MANY = 2  # heads or batch rows that are spelled out


def sentence(pattern: sr.Pattern) -> str:
    """What a query sees, as one sentence.

    >>> sentence(sr.SlidingWindow(511, 0) | sr.Sink(4))
    'A query sees the keys at most 511 before it and none after it, or among the first 4.'
    """
    return f"A query sees the keys {_words(pattern)}."


def _words(pattern: sr.Pattern) -> str:
    match pattern:
        case sr.And(patterns):
            return ", and of these ".join(_within(one) for one in patterns)
        case sr.Or(patterns):
            return ", or ".join(_within(one) for one in patterns)
        case sr.Not(inner):
            return f"that are not ({_words(inner)})"
        case sr.PerHead(patterns):
            return _several("head", patterns)
        case sr.PerBatch(patterns):
            return _several("batch row", patterns)
        case sr.Multi(patterns):
            return "as often as they are " + "; ".join(f"({_words(one)})" for one in patterns)
        case sr.Blocked(inner, size):
            return f"whose block of {size}, among such blocks, is {_within(inner)}"
        case sr.WithinDocument(inner, _):
            return f"of its document that are, counted within it, {_within(inner)}"
        case sr.Permuted(inner, _):
            return f"that are, in a stored order of the tokens, {_within(inner)}"
        case sr.Grid(shape, patterns):
            axes = "; ".join(f"along axis {i} {_words(one)}" for i, one in enumerate(patterns))
            return f"of a grid {' x '.join(map(str, shape))}: {axes}"
    return _positional(pattern) or _chosen(pattern)


def _positional(pattern: sr.Pattern) -> str:
    match pattern:
        case sr.Full():
            return "wherever they are"
        case sr.Causal():
            return "up to its own position"
        case sr.SlidingWindow(left, right, dilation):
            step = f", in steps of {dilation}" if dilation > 1 else ""
            return f"{_most(left, dilation)} before it and {_most(right, dilation)} after it{step}"
        case sr.Chunked(size, 0, 0, _):
            return f"in its own chunk of {size}"
        case sr.Strided(stride, phase):
            what = f"{phase} modulo {stride}" if phase else f"a multiple of {stride}"
            return f"whose distance is {what}"
        case sr.Offsets(offsets):
            return f"at {len(offsets)} chosen distances"
        case sr.PrefixLM(prefix):
            first = f"first {prefix}" if isinstance(prefix, int) else f"prefix, input {prefix.name}"
            return f"up to its own position, or among the {first}"
        case sr.Sink(count):
            return f"among the first {count}"
    return ""


def _chosen(pattern: sr.Pattern) -> str:
    match pattern:
        case sr.Keys(tokens):
            return f"among {_tokens(tokens)}"
        case sr.Rows(tokens):
            return f"wherever they are if it is among {_tokens(tokens)}"
        case sr.Global(tokens):
            return f"among {_tokens(tokens)}, or any if it is one of them"
        case sr.KeyStride(period, residues):
            return f"at {len(residues)} of every {period} positions"
        case sr.RowStride(period, residues):
            return f"wherever they are if it is at {len(residues)} of every {period} positions"
        case sr.Document(ids, _):
            named = f", input {ids.name}" if isinstance(ids, sr.Runtime) else ""
            return f"of its document{named}"
        case sr.Neighborhood():
            return f"in its window of {pattern.kernel} that shifts at both ends of {pattern.length}"
        case sr.RandomKeys():
            return f"among {pattern.count} of its own, drawn with seed {pattern.seed}"
        case sr.Tokens() | sr.BlockPattern():
            return "that are listed for it"
    return f"of {pattern!r}"


def _within(pattern: sr.Pattern) -> str:
    """The words of a part, in brackets where it has parts of its own."""
    words = _words(pattern)
    return f"({words})" if isinstance(pattern, (sr.And, sr.Or)) else words


def _most(count: int | None, step: int) -> str:
    if count is None:
        return "any number"
    return f"at most {count * step}" if count else "none"


def _tokens(tokens: object) -> str:
    if isinstance(tokens, sr.Runtime):
        return f"the tokens of the input {tokens.name}"
    return f"{len(tokens)} chosen tokens"  # type: ignore[arg-type]


def _several(kind: str, patterns: tuple[sr.Pattern, ...]) -> str:
    """One after the other, the first few."""
    said = [f"in {kind} {i} {_within(one)}" for i, one in enumerate(patterns[:MANY])]
    more = f"; in {len(patterns) - MANY} more as stored" if len(patterns) > MANY else ""
    return "; ".join(said) + more
