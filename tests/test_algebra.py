"""The laws of patterns: Boolean algebra, heads, batch rows, multisets, decoding, JSON, grammar."""

import ast
import inspect
import json
import pkgutil
import textwrap

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import sparse_ref as sr
import sparse_ref.patterns
from tests.strategies import patterns, sets

M, N = 13, 17  # queries and keys; all patterns drawn here cover as many
COVERS = 24


def mask(pattern, m=M, n=N, **options):
    return pattern.mask(m, n, **options)


@given(sets(COVERS), sets(COVERS), sets(COVERS))
def test_boolean_algebra(a, b, c):
    x, y, z = mask(a), mask(b), mask(c)

    assert (mask(a & b) == x & y).all()
    assert (mask(a | b) == x | y).all()
    assert (mask(~a) == ~x).all()
    assert (mask(a - b) == x & ~y).all()
    assert (mask(~(a & b)) == mask(~a | ~b)).all()
    assert (mask(~(a | b)) == mask(~a & ~b)).all()
    assert (mask(a & (b | c)) == (x & y) | (x & z)).all()
    assert (a & b) & c == a & (b & c)
    assert (a | b) | c == a | (b | c)
    assert ~~a == a


@given(patterns(COVERS), patterns(COVERS, multisets=False), st.integers(0, 11))
def test_combinators_distribute_over_heads(a, b, h):
    assert (a & b).at(h) == a.at(h) & b.at(h)
    if not a.multiset:
        assert (a | b).at(h) == a.at(h) | b.at(h)
    assert (~b).at(h) == ~b.at(h)
    assert sr.Blocked(a, 3).at(h) == sr.Blocked(a.at(h), 3)
    assert a.at(h).heads == 1
    assert a.at(h).at(5) == a.at(h)
    assert a.at(h + a.heads) == a.at(h)


@given(sets(COVERS), st.lists(sets(COVERS), min_size=1, max_size=4), st.integers(0, 11))
def test_each_head_of_a_list_meets_the_common_part(a, b, h):
    assert (a & sr.PerHead(b)).at(h) == a & b[h % len(b)]


@given(patterns(COVERS))
def test_masks_stack_the_heads(pattern):
    several = mask(pattern, heads=2 * pattern.heads)

    assert len(mask(pattern)) == pattern.heads
    for h, head in enumerate(several):
        assert (head == mask(pattern.at(h))[0]).all()


@given(patterns(COVERS), st.integers(1, N))
def test_a_decode_step_is_the_last_row_of_the_prefill(pattern, n):
    whole = pattern.counts(n, n)

    assert (pattern.counts(1, n)[:, 0] == whole[:, -1]).all()
    assert (pattern.counts(n, n, q_start=0) == whole).all()
    assert (pattern.counts(1, n, q_start=0)[:, 0] == whole[:, 0]).all()


@given(patterns(COVERS), st.integers(0, 9), st.data())
def test_key_slots_are_where_their_positions_say(pattern, m, data):
    positions = data.draw(st.lists(st.integers(-3, N - 1), min_size=m, max_size=m))
    got = mask(pattern, M, m, q_start=2, kv_positions=positions)
    square = mask(pattern, M, N, q_start=2)

    for slot, position in enumerate(positions):
        want = square[..., position] if position >= 0 else False
        assert (got[..., slot] == want).all()


@given(patterns(COVERS))
def test_json_is_exact(pattern):
    text = json.dumps(sr.to_dict(pattern), allow_nan=False)
    again = sr.from_dict(json.loads(text))

    assert again == pattern
    assert hash(again) == hash(pattern)
    assert repr(again) == repr(pattern)
    assert json.dumps(sr.to_dict(again)) == text


@given(st.lists(sets(COVERS), min_size=1, max_size=4), sets(COVERS))
def test_multisets_add_up(members, cut):
    many = sr.Multi(members)
    total = sum(mask(member).astype(int) for member in members)

    assert (many.counts(M, N) == total).all()
    assert (mask(many) == (total > 0)).all()
    assert ((many & cut).counts(M, N) == total * mask(cut)).all()
    assert ((many - cut).counts(M, N) == total * ~mask(cut)).all()
    nested = sr.Multi([many, cut])
    assert (nested.counts(M, N) == total + mask(cut)).all()
    assert (sr.Blocked(many, 2).counts(M, N) == total_of_blocks(members)).all()
    for illegal in (lambda: many | cut, lambda: cut | many, lambda: cut & many,
                    lambda: cut - many, lambda: ~many):  # fmt: skip
        with pytest.raises(ValueError, match="multiset"):
            illegal()


def total_of_blocks(members):
    return sum(mask(sr.Blocked(member, 2)).astype(int) for member in members)


@given(st.lists(sets(COVERS), min_size=1, max_size=4), sets(COVERS))
def test_batch_rows_choose_their_pattern(members, common):
    pattern = sr.PerHead([common, sr.PerBatch(members) & common])

    assert pattern.batches == len(members)
    for i, member in enumerate(members):
        got = mask(pattern, batch=i)
        assert (got[0] == mask(common)[0]).all()
        assert (got[1] == (mask(member) & mask(common))[0]).all()
    with pytest.raises(ValueError, match="PerBatch parts must have one length"):
        _ = (sr.PerBatch(members) & sr.PerBatch([*members, common])).batches
    with pytest.raises(ValueError, match="must hold no PerBatch itself"):
        sr.PerBatch([sr.PerBatch(members)])


def test_a_choice_has_no_predicate_of_its_own():
    for pattern in (sr.PerHead([sr.Full()]), sr.PerBatch([sr.Full()])):
        with pytest.raises(TypeError, match="has no single predicate: choose one with"):
            pattern(1, 0)
    assert (sr.Causal() & sr.PerHead([sr.Full()])).at(0)(1, 0)
    assert sr.PerHead([sr.PerHead([sr.Full(), sr.Causal()]), sr.Sink(0)]).heads == 2
    assert sr.PerHead([sr.Full()] * 2 + [sr.PerHead([sr.Causal()] * 4)]).heads == 12


def test_what_does_not_change_is_kept():
    """A pattern without heads is its own head: tables are not built again."""
    pattern = sr.Causal() & sr.RandomKeys(2, 0, N, exclude=sr.Sink(1))

    assert pattern.at(3) is pattern
    both = pattern & sr.PerHead([sr.Full(), sr.Sink(2)])
    assert both.at(1).patterns[1] is pattern.patterns[1]


@settings(max_examples=300)
@given(patterns(COVERS), st.integers(-30, 60), st.integers(-30, 60))
def test_a_predicate_is_total_and_one_answer_whatever_the_position_is(pattern, q, k):
    """Python ints give a bool; 0-d, 1-element and larger arrays agree, negative or not."""
    one = pattern.at(0)
    answer = one(q, k)

    assert type(answer) is bool
    assert bool(one(np.int64(q), np.int64(k))) is answer
    assert bool(one(np.array(q), np.array(k))) is answer
    assert np.broadcast_to(one(np.array([q]), np.array([k])), 1).tolist() == [answer]
    assert bool(one(np.array([q]), k)) is answer
    grid = np.broadcast_to(one(q + np.arange(-1, 2)[:, None], k + np.arange(-1, 2)), (3, 3))
    assert grid.dtype == bool
    assert bool(grid[1, 1]) is answer
    assert (~one)(q, k) is (not answer) if not one.multiset else True


def predicates():
    """Every `__call__` of the patterns package, as its syntax tree."""
    package = sparse_ref.patterns
    for info in pkgutil.iter_modules(package.__path__, package.__name__ + "."):
        module = __import__(info.name, fromlist=["_"])
        for kind in vars(module).values():
            own = inspect.isclass(kind) and kind.__module__ == module.__name__
            if own and issubclass(kind, sr.Pattern) and "__call__" in vars(kind):
                source = textwrap.dedent(inspect.getsource(inspect.unwrap(vars(kind)["__call__"])))
                yield pytest.param(ast.parse(source).body[0], id=kind.__name__)


ALLOWED = (
    ast.FunctionDef, ast.arguments, ast.arg, ast.Return, ast.Assign, ast.AnnAssign, ast.For,
    ast.Expr, ast.Name, ast.Load, ast.Store, ast.Constant, ast.Tuple, ast.Attribute,
    ast.Subscript, ast.BinOp, ast.UnaryOp, ast.Compare, ast.Call, ast.keyword,
    ast.Add, ast.Sub, ast.Mult, ast.FloorDiv, ast.Mod, ast.BitAnd, ast.BitOr, ast.Invert, ast.USub,
    ast.Eq, ast.NotEq, ast.Lt, ast.LtE, ast.Gt, ast.GtE,
)  # fmt: skip


@pytest.mark.parametrize("tree", list(predicates()))
def test_predicates_keep_to_the_grammar(tree):
    """Operators, one comparison at a time, look-ups and loops over fields: nothing NumPy's own."""
    body = [node for node in tree.body if not is_docstring(node)]
    if all(isinstance(node, ast.Raise) for node in body):
        return  # the abstract ones
    for node in (inner for outer in body for inner in ast.walk(outer)):
        where = ast.unparse(node)
        assert isinstance(node, ALLOWED), where
        if isinstance(node, ast.Compare):
            assert len(node.ops) == 1, f"a chain: {where}"
        if isinstance(node, ast.Call):
            assert callee(node.func), f"a call: {where}"
            assert {word.arg for word in node.keywords} <= {"strict"}, where
        if isinstance(node, ast.For):
            loops_over_fields(node)


def is_docstring(node):
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)


def callee(func):
    """A pattern (of a field, or of a loop over one), or a helper of loops over fields."""
    names = {"abs", "pattern", "reversed", "zip"}
    on_self = isinstance(func, ast.Attribute) and ast.unparse(func.value) == "self"
    return on_self or ast.unparse(func) in names


def loops_over_fields(node):
    """What is looped over is known before any position is: fields and what earlier loops name."""
    positions = {"q", "k", "allowed", "found"}
    assert not positions & {n.id for n in ast.walk(node.iter) if isinstance(n, ast.Name)}
    assert not node.orelse


def test_the_grammar_test_bites():
    bad = {
        "k <= q and k >= 0": "and", "0 <= k <= q": "chain", "k ^ q": "xor",
        "min(q, k) > 3": "minimum", "np.abs(q - k) < 3": "numpy", "k in self.tokens": "in",
        "True if k else False": "if", "not k": "not", "q / k > 1": "true division",
    }  # fmt: skip
    for source in bad:
        tree = ast.parse(f"def call(self, q, k):\n    return {source}").body[0]
        with pytest.raises(AssertionError):
            test_predicates_keep_to_the_grammar(tree)
