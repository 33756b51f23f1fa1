"""A pattern's predicate written down as PyTorch: it is called on Terms, which note what is done.

A mask_mod made of a pattern's own code would be guarded field by field by torch.compile, and take
NumPy tables along; what is written down here is one plain function of tensors and numbers.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

import sparse_ref as sr
from sparse_ref.patterns.relation import Relation

LOOSEST = 0
BINDS = {"==": 1, "!=": 1, "<": 1, "<=": 1, ">": 1, ">=": 1, "|": 2, "&": 3, "+": 4, "-": 4,
         "*": 5, "//": 5, "%": 5}  # fmt: skip
UNARY, CALL = 6, 7


class Term:
    """A tensor in the function to be: an operator and what it is applied to.

    Equal Terms of one function are one object.
    """

    __array_ufunc__ = None  # a NumPy scalar on the left leaves the operator to us
    __hash__ = object.__hash__

    def __init__(self, owner: Function, kind: str, args: tuple[Any, ...]):
        self.owner, self.kind, self.args = owner, kind, args

    def __bool__(self) -> bool:
        raise TypeError("a Term has no truth value: use & and ~")

    def op(self, kind: str, *args: Any) -> Term:
        """The operator or function `kind` of this and of other arguments."""
        return self.owner.term(kind, self, *args)

    def __add__(self, other: Any) -> Term:
        return self if _is(other, 0) else self.op("+", other)

    def __radd__(self, other: Any) -> Term:
        return self if _is(other, 0) else self.owner.term("+", other, self)

    def __sub__(self, other: Any) -> Term:
        return self if _is(other, 0) else self.op("-", other)

    def __rsub__(self, other: Any) -> Term:
        return self.owner.term("-", other, self)

    def __mul__(self, other: Any) -> Term:
        if _is(other, -1):
            return -self
        return self if _is(other, 1) else self.op("*", other)

    __rmul__ = __mul__

    def __neg__(self) -> Term:
        if self.kind == "-" and len(self.args) == 2:
            return self.owner.term("-", *self.args[::-1])
        return self.op("-")

    def __abs__(self) -> Term:
        return self.op("abs")

    def __floordiv__(self, other: Any) -> Term:
        return self if _is(other, 1) else self.op("//", other)

    def __mod__(self, other: Any) -> Any:
        return self.op("%", other)

    def __lt__(self, other: Any) -> Any:
        return self.op("<", self.owner.number(other))

    def __le__(self, other: Any) -> Any:
        return self.op("<=", self.owner.number(other))

    def __gt__(self, other: Any) -> Any:
        return self.op(">", self.owner.number(other))

    def __ge__(self, other: Any) -> Any:
        return self.op(">=", self.owner.number(other))

    def __eq__(self, other: object) -> Any:
        return self.op("==", self.owner.number(other))

    def __ne__(self, other: object) -> Any:
        return self.op("!=", self.owner.number(other))

    def __and__(self, other: Any) -> Any:
        if isinstance(other, (bool, np.bool_)):
            return self if other else np.False_
        return self if other is self else self.op("&", other)

    def __or__(self, other: Any) -> Any:
        if isinstance(other, (bool, np.bool_)):
            return np.True_ if other else self
        return self if other is self else self.op("|", other)

    __rand__, __ror__ = __and__, __or__

    def __invert__(self) -> Any:
        return self.args[0] if self.kind == "~" else self.op("~")

    def constant(self, value: bool) -> Any:
        """A pattern's literal True or False: it stays one."""
        return np.bool_(value)

    def lookup(self, table: Any) -> Any:
        """The entries of a table at these positions."""
        return self.owner.looked_up(table, self)

    def extent_of(self, table: Any, hi: Any) -> tuple[Any, Any]:
        """The least and the greatest entry of a table over the positions from these to `hi`."""
        both = self.owner.called("extent", self.owner.table(table), self, hi)
        return both.op("[0]"), both.op("[1]")

    def relate(self, relation: Relation, keys: Any) -> Any:
        """Whether an explicit list has the pairs of these positions and `keys`."""
        return self.owner.called("listed", self.owner.pairs(relation), self, keys)

    def pick(self, yes: Any, no: Any) -> Any:
        """Elementwise choice; this value is the condition."""
        return self.owner.called("torch.where", self, yes, no)


class Function:
    """The body of a function in the making, and the tables that it reads.

    `tables` are what its text names: int64 arrays, or a tuple of them for explicit pairs.
    """

    def __init__(self, named: dict[str, Any] | None = None) -> None:
        self.terms: dict[Any, Term] = {}
        self.helpers: set[str] = set()
        self.names: dict[Any, str] = {}
        self.tables: dict[str, Any] = {} if named is None else named

    def argument(self, name: str) -> Term:
        """An argument of the function."""
        return self.term(name)

    def term(self, kind: str, *args: Any) -> Term:
        """The one Term of an operator and its arguments."""
        args = tuple(int(x) if isinstance(x, (int, np.integer)) else x for x in args)
        key = (kind, *(id(x) if isinstance(x, Term) else x for x in args))
        return self.terms.setdefault(key, Term(self, kind, args))

    def called(self, name: str, *args: Any) -> Term:
        """A call of a helper."""
        self.helpers.add(name)
        return self.term(f"{name}()", *args)

    def number(self, x: Any) -> Any:
        """What stands on the other side of a comparison: a `Runtime` has nowhere to come from."""
        return x._refuse() if isinstance(x, sr.Runtime) else x

    def looked_up(self, table: Any, at: Term) -> Any:
        if isinstance(table, sr.Runtime):
            return table._refuse()
        return self.called("look", self.table(table), at)

    def table(self, table: Any) -> str:
        """The name of a table, stored with its fill at both ends."""
        if table not in self.names:
            self._keep(table, np.pad(table.values, 1, constant_values=table.fill), "table")
        return self.names[table]

    def pairs(self, relation: Relation) -> str:
        """The name of an explicit list: where rows start and end, keys and an end mark."""
        if relation not in self.names:
            starts, keys = relation.rows
            bounds = np.pad(starts[:-1], 1), np.pad(starts[1:], 1)
            longest = int(np.diff(starts).max(initial=0))
            self._keep(relation, (*bounds, np.append(keys, -1), longest.bit_length()), "pairs")
        return self.names[relation]

    def _keep(self, what: Any, stored: Any, kind: str) -> None:
        self.names[what] = f"{kind}_{sum(name.startswith(kind) for name in self.tables)}"
        self.tables[self.names[what]] = stored

    def lines(self, *results: Any) -> Iterator[str]:
        """Assignments of what is used twice, then `return` of the results."""
        uses: dict[int, int] = {}
        order: list[Term] = []
        for result in results:
            _count(result, uses, order)
        named: dict[int, str] = {}
        for term in order:
            if uses[id(term)] > 1 and term.args:
                text = _text(term, named, LOOSEST)
                named[id(term)] = f"x{len(named)}"
                yield f"{named[id(term)]} = {text}"
        texts = [_text(result, named, LOOSEST) for result in results]
        one = f"return {texts[0]}"
        yield (
            one
            if len(texts) == 1
            else "\n    ".join(["return (", *(f"{x}," for x in texts)]) + "\n)"
        )


def _count(x: Any, uses: dict[int, int], order: list[Term]) -> None:
    """How often every Term is used, and an order in which each comes after its arguments."""
    if not isinstance(x, Term):
        return
    uses[id(x)] = uses.get(id(x), 0) + 1
    if uses[id(x)] == 1:
        for arg in x.args:
            _count(arg, uses, order)
        order.append(x)


def _text(x: Any, named: dict[int, str], outer: int) -> str:
    """Python for a Term, in brackets if what stands around binds tighter."""
    if not isinstance(x, Term):
        return str(x)
    if id(x) in named:
        return named[id(x)]
    kind, args = x.kind, x.args
    if not args:
        return kind
    if kind in {"[0]", "[1]", ".int()"}:
        return _text(args[0], named, CALL) + kind
    if kind == "abs" or kind.endswith("()"):
        inside = ", ".join(_text(arg, named, LOOSEST) for arg in args)
        return f"{kind.removesuffix('()')}({inside})"
    if len(args) == 1:
        text, binds = kind + _text(args[0], named, UNARY), UNARY
    else:
        binds = BINDS[kind]
        left = binds + (binds == 1)  # comparisons do not chain
        text = f"{_text(args[0], named, left)} {kind} {_text(args[1], named, binds + 1)}"
    return f"({text})" if binds < outer else text


def _is(x: Any, number: int) -> bool:
    return isinstance(x, (int, np.integer)) and not isinstance(x, bool) and int(x) == number
