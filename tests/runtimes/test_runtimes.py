"""Every runtime that is installed, on the same files: within the bound, or refused by name."""

import dataclasses
import itertools
import json
import re

import numpy as np
import pytest

import sparse_ref as sr

pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")

from tests.runtimes import web
from tools import runtimes
from tools.runners import RUNTIMES, MissingError, RefusedError, Runtime
from tools.runtime_cases import FORMS, HEADS, KV_HEADS, PATTERNS, SIZE, cases, distance, model

WEB_QUICK = {("window", "local function, loop"), ("documents", "inline, gather")}
LENGTHS_ARE_SYMBOLS = "^(Topk|CumSum): TDim is not a number"


def expected(runtime, form, pattern):
    """The verdict, and what is said of it; whatever stands here by name does not work."""
    column = form.partition(",")[0]
    match runtime, column, pattern:
        case "ONNX Runtime Web", "standard", "window":
            return "refused", "Unrecognized attribute: left_window_size for operator Attention"
        case "OpenVINO", "local function", _:
            return (
                "refused",
                r"No conversion rule found for operations: sparse_ref\.SparseAttention",
            )
        case "OpenVINO", "standard", "window":
            return "wrong", "off by .* at 8 of 10 lengths, first 7 x 7"
        case "tract", "standard", "window":
            return "refused", "nonpad_kv_seqlen input is not supported"
        case "tract, folded by ONNX Runtime", "standard", "window":
            return "wrong", "NaN.* at 1 of 10 lengths, first 100 x 33"  # rows that see nothing
        case "tract" | "tract, folded by ONNX Runtime", "standard", _:
            return "wrong", "off by"
        case "tract" | "tract, folded by ONNX Runtime", _, "documents":
            return "refused", "no Unique"
        case "tract", "local function", "neighborhood":
            return "refused", "no SparseAttention"
        case "tract", _, _:
            return "refused", LENGTHS_ARE_SYMBOLS
        case "tract, folded by ONNX Runtime", _, "neighborhood" if form.endswith("gather"):
            return "works", ""
        case "tract, folded by ONNX Runtime", _, _:
            return "refused", "no Loop"
    return "works", ""


def is_quick(runtime, form, pattern):
    """What is refused, and of what runs every pattern once; a file takes seconds on the web."""
    if expected(runtime, form, pattern)[0] == "refused":
        return True
    if runtime == "ONNX Runtime Web":
        return (pattern, form) in WEB_QUICK
    return ([*PATTERNS].index(pattern) + [*FORMS].index(form)) % len(FORMS) == 0


def files():
    for one in itertools.product(RUNTIMES, FORMS, PATTERNS):
        slow = [] if is_quick(*one) else [pytest.mark.slow]
        yield pytest.param(*one, marks=[pytest.mark.witness, *slow])


def installed(name):
    if name == "ONNX Runtime Web" and (reason := web.missing()):
        pytest.skip(reason)
    try:
        RUNTIMES[name].version()
    except MissingError as reason:
        pytest.skip(str(reason))
    return RUNTIMES[name]


@pytest.mark.parametrize(("runtime", "form", "pattern"), [*files()])
def test_a_runtime_agrees_with_the_oracle_or_the_table_says_how_it_does_not(runtime, form, pattern):
    verdict, said = expected(runtime, form, pattern)
    found = runtimes.outcome(installed(runtime), form, pattern)

    assert found.verdict == verdict, found
    assert re.search(said, found.said)


def test_the_lock_file_names_no_registry():
    """npm takes the packages from whatever registry it is set up for; their hashes are fixed."""
    text = (web.HERE / "package-lock.json").read_text()
    assert "resolved" not in text
    assert "//" not in re.sub(r'"integrity": "[^"]*"', "", text)
    packages = json.loads(text)["packages"]
    assert all(one.get("integrity") for name, one in packages.items() if name)


def test_an_install_that_fails_is_a_reason_and_leaves_nothing(monkeypatch, tmp_path):
    monkeypatch.setattr(web, "NPM", ["sh", "-c", "echo npm error 404 >&2; exit 1"])
    assert web._install(tmp_path / "cache" / "web") == "npm ci failed: npm error 404"
    assert not list((tmp_path / "cache").iterdir())
    monkeypatch.setattr(web, "NPM", ["sh", "-c", "mkdir node_modules"])
    assert web._install(tmp_path / "cache" / "web") is None
    assert [one.name for one in (tmp_path / "cache").iterdir()] == ["web"]


@pytest.mark.witness
def test_openvino_ignores_the_windows_of_attention_25():
    case = cases("window")[2]
    (y,) = installed("OpenVINO").run(model("window", "standard"), [case.feed])

    assert distance(case._replace(pattern=sr.Full()), y).share <= 1
    assert distance(case, y).share > 1


@pytest.mark.witness
def test_tract_adds_a_mask_of_truths_to_the_scores_as_ones():
    case = cases("strided")[2]
    (y,) = installed("tract").run(model("strided", "standard"), [case.feed])
    q, k, v = (case.feed[name] for name in "qkv")
    k, v = (np.repeat(x, HEADS // KV_HEADS, axis=1) for x in (k, v))
    weights = np.exp(q @ k.swapaxes(2, 3) * SIZE**-0.5 + case.pattern.mask(33, 33))
    added = weights @ v / weights.sum(axis=-1, keepdims=True)

    np.testing.assert_allclose(y, added, atol=1e-6)
    assert distance(case, y).share > 1


@pytest.mark.parametrize("form", [form for form in FORMS if form != runtimes.THEIRS])
@pytest.mark.parametrize("pattern", PATTERNS)
def test_a_file_is_of_the_first_ir_that_has_metadata_on_nodes(pattern, form):
    """ONNX Runtime 1.20 reads no later one, and onnxruntime-web 1.30 none after 13."""
    assert model(pattern, form).ir_version == 10


def test_the_lengths_are_those_that_catch_people_out():
    """One token first, then more; more than a block; back again; unequal; rows that see nothing."""
    found = [case.label for case in cases("window")]
    assert found[0] == "1 x 1"
    assert {"7 x 7", "33 x 33", "100 x 100", "257 x 257", "1 x 257", "100 x 33"} < set(found)
    assert len(found) > len(set(found))
    for name in ("rows without keys", "documents"):
        assert any(not case.pattern.mask(33, 33)[0].any(axis=1).all()
                   for case in cases(name) if case.label == "33 x 33")  # fmt: skip
    assert cases("neighborhood")[4].label == "257 x 257"


def test_the_same_case_is_drawn_every_time():
    for one, other in zip(cases("documents"), cases("documents"), strict=True):
        for name, x in one.feed.items():
            np.testing.assert_array_equal(x, other.feed[name])


def answer(case):
    """What a perfect runtime says."""
    return sr.attention(*(case.feed[x] for x in "qkv"), case.pattern).out.astype(np.float32)


@pytest.mark.parametrize(
    ("break_it", "wrong"),
    [
        (lambda y: y, False),
        (lambda y: y * np.float32(1 + 1e-4), True),
        (lambda y: np.where(np.arange(y.shape[2])[:, None] == y.shape[2] - 1, np.nan, y), True),
        (lambda y: y[:, ::-1], True),
        (lambda y: y.astype(np.float64), True),
        (lambda y: y[..., :2], True),
    ],
    ids=["right", "far", "NaN", "heads swapped", "wrong type", "wrong shape"],
)
def test_what_is_wrong_is_found(break_it, wrong):
    case = cases("window")[2]
    broken = break_it(answer(case))
    assert (distance(case, broken).share > 1) == wrong


def fake(run):
    return Runtime("fake", lambda: "1.2", run)


def perfect(_, feeds):
    return [answer(case) for case in cases("window")[: len(feeds)]]


def stale(_, feeds):
    """Right at its first length only: the answer for one token, whatever comes."""
    return [np.zeros_like(y) if i else y for i, y in enumerate(perfect(_, feeds))]


def unable(model_, feeds):
    raise RefusedError("no Loop | of any kind")


def test_an_outcome_says_where_a_runtime_is_wrong():
    form = "inline, loop"
    assert runtimes.outcome(fake(perfect), form, "window").verdict == "works"
    found = runtimes.outcome(fake(stale), form, "window")
    assert found.verdict == "wrong"
    assert re.fullmatch("off by .*, at 9 of 10 lengths, first 7 x 7", found.said)
    refused = runtimes.outcome(fake(unable), form, "window")
    assert (refused.verdict, refused.said) == ("refused", "no Loop | of any kind")


def test_the_table_has_a_row_for_every_runtime():
    loop, gather = "inline, loop", "inline, gather"
    one = runtimes.Outcome("fake", "1.2", loop, "window", "works", share=0.1)
    found = [
        *(dataclasses.replace(one, form=form) for form in FORMS if form != gather),
        dataclasses.replace(one, pattern="strided", verdict="refused", said="no | Loop"),
        dataclasses.replace(one, form=gather, verdict="wrong", said="2.5 of the bound at 1 x 1"),
    ]
    lines = runtimes.table(found, {"other": "it is not installed"}).splitlines()
    assert lines == [
        "| runtime | local function | inline, loop | inline, gather | `Attention`, dense |",
        "| --- | --- | --- | --- | --- |",
        (
            "| fake 1.2 | works | works: window; refused: strided (no / Loop) "
            "| wrong (2.5 of the bound at 1 x 1) | works |"
        ),
        "| other | not run: it is not installed |  |  |  |",
    ]


def test_the_command(monkeypatch, capsys):
    def absent():
        raise MissingError("it is not installed")

    monkeypatch.setattr(
        runtimes, "RUNTIMES", {"fake": fake(unable), "gone": Runtime("gone", absent, None)}
    )
    assert runtimes.main([]) == 0
    assert "| fake 1.2 | refused (no Loop / of any kind) |" in capsys.readouterr().out
    monkeypatch.setattr(runtimes, "RUNTIMES", {"fake": fake(stale)})
    monkeypatch.setattr(runtimes, "PATTERNS", ["window"])
    assert runtimes.main(["--json"]) == 1
    assert '"verdict": "wrong"' in capsys.readouterr().out
    with pytest.raises(SystemExit):
        runtimes.main(["unheard of"])
