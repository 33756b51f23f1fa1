"""`sparse-ref` patterns, show, check, diagnose, conventions, golden and doctor."""

import inspect
import json
import shlex
import struct
import subprocess
import sys
from xml.etree import ElementTree

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import sparse_ref as sr
from sparse_ref.cli import cells, doctor, introduce, main, patterns, screen
from sparse_ref.cli.command import Refusal
from sparse_ref.cli.expressions import parse
from sparse_ref.cli.given import MOST, function_of, mask_of
from sparse_ref.cli.statistics import statistics

KERNELS = """
import numpy as np
import sparse_ref as sr

def right(q, k, v, pattern, *, scale=None):
    return sr.attention(q, k, v, pattern, scale=scale).out.astype(q.dtype)

def wider(q, k, v, pattern):
    if isinstance(pattern, sr.And):
        pattern = sr.Causal() & sr.SlidingWindow(pattern.patterns[1].left + 1, 0)
    return sr.attention(q, k, v, pattern).out.astype(q.dtype)

def banded(q, k, v, window=3):
    return sr.attention(q, k, v, sr.conventions.hf(window)).out.astype(q.dtype)

def cannot(q, k, v, pattern):
    raise NotImplementedError("not today")

def packed(q, k, v, *, causal, window_size):
    sides = (None if x < 0 else x for x in window_size)
    q, k, v = (x.swapaxes(1, 2) for x in (q, k, v))
    return sr.attention(q, k, v, sr.SlidingWindow(*sides)).out.swapaxes(1, 2).astype(np.float32)

def crashes(q, k, v, pattern):
    import os
    os.abort()

def recent(q, k, v, pattern):
    return sr.attention(q, k, v, pattern & sr.SlidingWindow(11, None)).out.astype(q.dtype)

class Family:
    @staticmethod
    def member(q, k, v, pattern):
        return sr.attention(q, k, v, pattern).out.astype(q.dtype)

number = 3
"""
WINDOW = "Causal() & SlidingWindow(3, 0)"
SMALL = ["--quick", "--only", "window-1/", "--no-options"]
ONE = ["--only", "window/b1h6g2-13x13-d5e7/even/float32"]


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A directory with a module of kernels, as the current one."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    for name in ("strange_kernels", "strange_broken"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    (tmp_path / "strange_kernels.py").write_text(KERNELS)
    (tmp_path / "strange_broken.py").write_text("x = 1\ny = x / 0\n")
    yield tmp_path
    for name in ("strange_kernels", "strange_broken"):
        sys.modules.pop(name, None)


def said(capsys, *command):
    """Exit status, stdout and stderr of a command."""
    status = main(list(command))
    out, err = capsys.readouterr()
    return status, out, err


# patterns


def test_every_pattern_and_recipe_is_listed():
    examples = [text for texts in patterns.WORDS.values() for text in texts]
    listed = {patterns._word(text) for text in examples}
    public = (getattr(sr, name) for name in sr.__all__)
    classes = {x.__name__ for x in public if inspect.isclass(x) and issubclass(x, sr.Pattern)}
    recipes = {f"recipes.{name}" for name in sr.recipes.__all__}
    assert classes - {"Pattern"} | recipes | {"from_mask"} == listed
    assert len(set(examples)) == len(examples)


def test_a_tiny_picture_has_every_pair(capsys):
    texts = [text for texts in patterns.WORDS.values() for text in texts]
    status, out, _ = said(capsys, "patterns", "--json")
    assert status == 0
    for one, text in zip(json.loads(out), texts, strict=True):
        pattern = parse(text)
        first = pattern.patterns[0] if isinstance(pattern, sr.PerBatch) else pattern
        n = min(16, first.covers or 16)
        expected = first.mask(min(8, n), n)[0]
        np.testing.assert_array_equal(np.array([list(r) for r in one["picture"]]) == "#", expected)
        dots = np.zeros((8, 16), dtype=bool)
        order = [(0, 0), (1, 0), (2, 0), (0, 1), (1, 1), (2, 1), (3, 0), (3, 1)]  # Unicode's
        for i, line in enumerate(patterns.braille(expected)):
            for j, sign in enumerate(line):
                for bit, (row, column) in enumerate(order):
                    dots[4 * i + row, 2 * j + column] = (ord(sign) - 0x2800) >> bit & 1
        np.testing.assert_array_equal(dots[: len(expected), :n], expected)
        assert dots.sum() == expected.sum()
        assert one["summary"]


def test_one_pattern_alone_is_explained(capsys):
    status, out, _ = said(capsys, "patterns", "longnet")
    assert status == 0
    assert out.startswith("recipes.longnet(segments: Sequence[int]")
    assert "arXiv:2307.02486" in out
    assert said(capsys, "patterns", "stride")[1].count("recipes.") == 1
    assert said(capsys, "patterns", "longnt") == (
        2, "", "sparse-ref patterns: no pattern is named 'longnt'; did you mean longnet?\n"
    )  # fmt: skip


# show


def test_show_draws_as_draw_does(capsys):
    status, out, _ = said(capsys, "show", WINDOW, "-n", "6", "--q-len", "5")
    assert status == 0
    assert f"5 queries down, 6 keys across\n\n{sr.draw(parse(WINDOW), 5, 6)}\n\npairs " in out
    assert " 17 of 30\n" in out


def test_show_says_how_two_differ(capsys):
    hf, gym = "conventions.hf(3)", "conventions.attention_gym(3)"
    status, out, _ = said(capsys, "show", hf, gym, "-n", "6")
    assert status == 1
    expected = sr.compare(parse(hf), parse(gym), 6)
    assert expected.picture in out
    assert "b sees 1 more key on the left" in out
    assert "first difference: head 0, query 3, key 0" in out
    assert said(capsys, "show", hf, "SlidingWindow(2, 0)", "--quiet") == (0, "", "")
    assert said(capsys, "show", hf, gym, "-q") == (1, "", "")


def test_show_has_a_grid_of_blocks(capsys):
    _, out, _ = said(capsys, "show", "Causal()", "-n", "5", "--block", "2")
    assert (
        """\
# . | . . | .
# # | . . | .
= = = = = = =
# # | # . | .
# # | # # | .
= = = = = = =
# # | # # | #
"""
        in out
    )
    _, out, _ = said(capsys, "show", "Causal()", "-n", "8192", "--block", "64", "--json")
    shown = json.loads(out)
    assert shown["square"] == 128
    assert shown["pictures"][0]["rows"][1] == "#o" + "." * 62


def test_show_draws_heads_that_are_alike_once(capsys):
    text = "PerHead([Causal(), Full()])"
    _, out, _ = said(capsys, "show", text, "-n", "3", "--heads", "5", "--json")
    found = json.loads(out)["pictures"]
    assert [one["heads"] for one in found] == [[0, 2, 4], [1, 3]]
    _, out, _ = said(capsys, "show", text, "-n", "3", "--head", "1")
    assert "heads 1" not in out
    assert "head 1\n# # #\n# # #\n# # #\n" in out


def test_pictures_are_files(capsys, tmp_path):
    pytest.importorskip("matplotlib")
    png, svg, again = (tmp_path / name for name in ("a.png", "a.svg", "b.svg"))
    command = ["show", WINDOW, "PrefixLM(3)", "-n", "130", "--block", "64", "--svg"]
    status, out, _ = said(capsys, *command, str(svg), "--png", str(png))
    assert (status, out.splitlines()[-2:]) == (1, [f"Written: {png}", f"Written: {svg}"])
    assert said(capsys, *command, str(again), "-q") == (1, "", "")
    assert png.read_bytes().startswith(b"\x89PNG")
    assert svg.read_bytes() == again.read_bytes()
    assert "</svg>" in svg.read_text()


@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    st.sampled_from([text for texts in patterns.WORDS.values() for text in texts]),
    st.integers(1, 16), st.integers(1, 16), st.integers(1, 7), st.integers(1, 3),
)  # fmt: skip
def test_squares_sum_up_the_mask(text, q_len, kv_len, size, heads):
    pattern = parse(text)
    kv_len = min(kv_len, pattern.covers or 16)
    q_len = min(q_len, kv_len)
    first = pattern.patterns[0] if isinstance(pattern, sr.PerBatch) else pattern
    mask = first.mask(q_len, kv_len, heads=heads)
    found = cells.of_pattern(pattern, q_len, kv_len, size=size, heads=heads)
    assert sorted(head for one in found for head in one.heads) == list(range(heads))
    for one in found:
        for head in one.heads:
            assert one.signs.tolist() == squares(mask[head], size)
    other = np.roll(mask, 1, axis=-1)
    for one in cells.of_two(mask, other, size=size):
        for head in one.heads:
            assert one.signs.tolist() == squares(mask[head], size, other[head])


def squares(mask, size, other=None):
    """The signs, from each square by itself."""
    rows = []
    for i in range(0, len(mask), size):
        rows.append([])
        for j in range(0, mask.shape[1], size):
            a = mask[i : i + size, j : j + size]
            b = a if other is None else other[i : i + size, j : j + size]
            more, less = (a & ~b).any(), (b & ~a).any()
            alike = "#" if (a & b).all() else "o" if (a | b).any() else "."
            rows[-1].append("x" if more and less else "-" if more else "+" if less else alike)
    return rows


@pytest.mark.parametrize("text", [WINDOW, "~Full()", "PerHead([Sink(2), Strided(3), Causal()])"])
def test_statistics_are_those_of_the_mask(text):
    pattern, n, heads, groups, dim, block = parse(text), 23, 6, 2, 8, 5
    found = statistics(pattern, n, n, heads, groups, head_dim=dim, block=block)
    mask = pattern.mask(n, n, heads=heads)
    touched = [cell for head in mask for row in squares(head, block) for cell in row if cell != "."]
    assert found.nnz == mask.sum()
    assert found.density == mask.mean()
    assert (found.fewest, found.most) == (mask.sum(-1).min(), mask.sum(-1).max())
    assert (found.blocks, found.full_blocks) == (len(touched), touched.count("#"))
    assert found.flops == 4 * dim * mask.sum()
    assert found.dense_flops == 4 * dim * mask.size
    assert found.cache_bytes == 2 * n * dim * 2 * groups
    last = mask[:, -1].reshape(groups, -1, n).any(1).sum()
    assert found.step_bytes == last * dim * 4
    assert found.reach == sr.reach(pattern, n)
    assert found.reachable == (found.reach is not None)


@pytest.mark.parametrize(
    ("command", "sentence"),
    [
        (["show", "Causl()"], "pattern: there is no 'Causl'; did you mean Causal?, at column 1"),
        (["show", "@none.json"], "[Errno 2] No such file or directory: 'none.json'"),
        (["show", "Keys(Runtime('x'))"], "x is an input of an exported graph"),
        (["show", "RandomKeys(2, 3, 8)", "-n", "9"], "q_len, kv_len must stay within the 8"),
        (["show", "Causal()", "Full()", "-n", "4096"], "two patterns are compared on at most"),
        (["show", "Causal()", "-n", "2000000"], "lengths must be <= 1,048,576, got 2,000,000"),
        (["show", "Causal()", "--head", "1"], "--head must be one of the 1 heads, got 1"),
        (["show", "Causal()", "--heads", "6", "--kv-heads", "4"], "--kv-heads must divide the 6"),
        (["conventions", "3"], "pattern: the expression must be a pattern, got 3"),
    ],
)
def test_errors_are_one_sentence(command, sentence, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    status, out, err = said(capsys, *command)
    assert (status, out) == (2, "")
    assert err.startswith(f"sparse-ref {command[0]}: {sentence}")
    assert err.count("\n") == 1


# masks in files


def test_a_mask_from_a_file_is_read_and_drawn(tmp_path, capsys):
    mask = parse(WINDOW).mask(7, 7)
    np.save(tmp_path / "mask.npy", mask[None])
    np.testing.assert_array_equal(mask_of(tmp_path / "mask.npy"), mask[0])
    status, out, _ = said(capsys, "show", f"@{tmp_path / 'mask.npy'}", "SlidingWindow(4, 0)")
    assert status == 1
    assert "b sees 1 more key on the left" in out
    status, out, _ = said(capsys, "conventions", "--mask", str(tmp_path / "mask.npy"))
    assert status == 0
    assert "the same as SlidingWindow(left=3, right=0" in out
    assert "window_size=(3, 0)" in out


def claiming(shape, kind="|b1"):
    """The header of an array of this shape, and nothing behind it."""
    header = f"{{'descr': {kind!r}, 'fortran_order': False, 'shape': {shape}, }}".encode()
    header += b" " * (117 - len(header)) + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header


@pytest.mark.parametrize(
    "content",
    [
        b"", b"no array", claiming((5, 5)), claiming((10**9, 10**9)), claiming((-3, 3)),
        claiming("__import__('os').system('touch hacked')"), claiming((3, 3), "|O"),
        claiming((2, 4), "<f4") + bytes(32), claiming((8,)) + bytes(8), claiming((0, 4)),
        b"\x93NUMPY\x01\x00\xff\xff{'descr'", b"PK\x03\x04" + bytes(60),
    ],
)  # fmt: skip
def test_hostile_masks_are_refused(content, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mask.npy").write_bytes(content)
    status, out, err = said(capsys, "conventions", "--mask", "mask.npy")
    assert (status, out) == (2, "")
    assert err.startswith("sparse-ref conventions: mask.npy must ")
    assert err.count("\n") == 1
    assert [one.name for one in tmp_path.iterdir()] == ["mask.npy"]


def test_pickled_and_large_masks_are_refused(tmp_path):
    np.save(tmp_path / "pickled.npy", np.array([{}]), allow_pickle=True)
    with pytest.raises(Refusal, match=r"must be a \.npy file"):
        mask_of(tmp_path / "pickled.npy")
    with (tmp_path / "large.npy").open("wb") as file:
        file.write(claiming((MOST // 4, 5)))
        file.truncate(128 + MOST // 4 * 5)  # a hole: it takes no room
    with pytest.raises(Refusal, match="must hold at most"):
        mask_of(tmp_path / "large.npy")


# check and diagnose


def test_a_right_kernel_is_ok(here, capsys):
    status, out, _ = said(capsys, "check", "strange_kernels:right", *SMALL)
    assert status == 0
    assert out.startswith("sparse-ref check: 4 PASS")
    assert said(capsys, "check", "strange_kernels.py:Family.member", *SMALL, "-q") == (0, "", "")


def test_a_wrong_kernel_is_named_and_the_repeat_repeats(here, capsys):
    command = ["check", "strange_kernels:wider", *ONE]
    status, out, _ = said(capsys, *command)
    assert status == 1
    assert "window-left+1: the window has one key more on the left" in out
    assert "it sees 1 more key on the left" in out
    repeat = next(line for line in out.splitlines() if line.startswith("repeat: sparse-ref "))
    status, again, _ = said(capsys, *shlex.split(repeat)[2:])
    assert status == 1
    got = [line for line in out.splitlines() if line.startswith("  got ")]
    assert got == [line for line in again.splitlines() if line.startswith("  got ")]
    following = next(line for line in out.splitlines() if line.startswith("next: sparse-ref "))
    assert shlex.split(following)[2] == "diagnose"
    parse(shlex.split(following)[-1])


def test_a_report_for_machines(here, capsys):
    command = ["check", "strange_kernels:wider", *ONE, "--seed", "5"]
    status, out, _ = said(capsys, *command, "--json", "--junit", "made/report.xml")
    assert status == 1
    report = json.loads(out)
    assert report["seed"] == 5
    assert report["ok"] is False
    assert "window-left+1" in report["diagnoses"][0]["ids"]
    suite = ElementTree.parse(here / "made" / "report.xml").getroot()
    failed = [one.get("name") for one in suite if one.find("failure") is not None]
    assert failed == [one["id"] for one in report["results"] if one["verdict"] == "FAIL"] != []


def test_a_known_failure_is_announced(here, capsys):
    known = ["--xfail", "window/=wider by one, #17"]
    assert "1 XFAIL" in said(capsys, "check", "strange_kernels:wider", *ONE, *known)[1]
    status, out, _ = said(capsys, "check", "strange_kernels:right", *ONE, *known)
    assert status == 1  # the note is out of date
    assert "1 XPASS" in out
    known[1] = "window/="
    assert said(capsys, "check", "strange_kernels:right", *ONE, *known)[0] == 2


def test_a_kernel_with_its_pattern_built_in(here, capsys):
    command = ["check", "strange_kernels:banded", "--quick"]
    status, _, err = said(capsys, *command)
    assert (status, err) == (
        2, "sparse-ref check: strange_kernels:banded takes no pattern: say its own with --pattern\n"
    )  # fmt: skip
    status, out, _ = said(capsys, *command, "--pattern", "conventions.hf(3)")
    assert status == 0
    assert "it takes no scale=" in out
    assert said(capsys, *command, "--pattern", "conventions.hf(4)", "-q")[0] == 1


def test_a_kernel_that_speaks_as_flash_attention(here, capsys):
    form = ["--layout", "bshd", "--spell", "flash_attn"]
    status, out, _ = said(capsys, "check", "strange_kernels:packed", *SMALL, *form)
    assert (status, out[:24]) == (0, "sparse-ref check: 4 PASS")
    assert said(capsys, "check", "strange_kernels:packed", *SMALL, "--spell", "greek")[0] == 2


def test_a_crash_in_a_process_of_its_own_is_a_verdict(here, capsys):
    status, out, _ = said(capsys, "check", "strange_kernels:crashes", *ONE, "--isolate")
    assert status == 1
    assert out.startswith("sparse-ref check: 1 ERROR")
    assert "its process was killed by SIGABRT (Aborted)" in out
    assert "repeat: sparse-ref check strange_kernels:crashes --isolate --only" in out
    assert said(capsys, "check", "strange_kernels.py:right", *ONE, "--isolate", "-q") == (0, "", "")


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("strange_fatal:f", "it cannot be loaded: its process was killed by SIGABRT (Aborted)"),
        ("strange_broken:f", "strange_broken cannot be imported: ZeroDivisionError: division by"),
        ("strange_broken.py:f", "strange_broken.py cannot be imported: ZeroDivisionError"),
        ("strange_kernels:rigth", "strange_kernels has no 'rigth'; did you mean right?"),
        ("strange_kernels:banded", "strange_kernels:banded takes no pattern: say its own with"),
    ],
)
def test_what_cannot_be_imported_is_a_verdict_there(here, capsys, name, reason):
    (here / "strange_fatal.py").write_text("import os\nos.abort()\n")
    command = ["check", name, *SMALL, "--isolate"]
    status, out, err = said(capsys, *command)
    assert status == 1, err
    assert out.startswith("sparse-ref check: 4 ERROR")
    assert reason in out
    assert not {"strange_fatal", "strange_broken", "strange_kernels"} & set(sys.modules)


def test_apart_a_kernel_is_called_in_its_own_words(here, capsys):
    form = ["--layout", "bshd", "--spell", "flash_attn", "--isolate", "-q"]
    assert said(capsys, "check", "strange_kernels:packed", *SMALL, *form)[0] == 0
    fixed = ["--quick", "--pattern", "conventions.hf(3)", "--no-options", "--isolate", "-q"]
    assert said(capsys, "check", "strange_kernels:banded", *fixed)[0] == 0
    assert said(capsys, "check", "strange_kernels", *SMALL, "--isolate")[0] == 2
    assert said(capsys, "check", "x:f", *SMALL, "--isolate", "--spell", "greek")[0] == 2


def test_an_onnx_file_is_checked(here, capsys):
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    from exporters import to_onnx

    sizes = {"heads": 6, "kv_heads": 2, "head_dim": 5, "value_dim": 7}
    onnx.save(to_onnx(parse(WINDOW), **sizes), "window.onnx")
    one = ["--pattern", WINDOW, "--only", "13x13-d5e7/even/float32"]
    for apart in ([], ["--isolate"]):
        status, out, err = said(capsys, "check", "window.onnx", *one, *apart)
        assert (status, out[:24]) == (0, "sparse-ref check: 1 PASS"), err
    status, out, _ = said(capsys, "check", "window.onnx", *SMALL)
    assert status == 3
    assert "its pattern is Causal() & SlidingWindow(left=3" in out
    (here / "broken.onnx").write_bytes(b"no file")
    for name in ("nowhere.onnx", "broken.onnx"):
        status, _, err = said(capsys, "check", name, *SMALL)
        assert status == 2
        assert err.startswith(f"sparse-ref check: {name} cannot be used: ")
        assert err.count("\n") == 1


def test_what_skips_on_purpose_has_a_budget(here, capsys):
    one = ["--only", "causal/b1h6g2-13x13-d5e7/even/float32", "--no-options"]
    command = ["check", "strange_kernels:recent", *one[:-1], "--quick"]
    assert said(capsys, *command, "-q")[0] == 1
    status, out, _ = said(capsys, *command, "--error", "0.5", "--recall", "0.9")
    assert status == 0
    assert "APPROXIMATE" in out.splitlines()[0]
    status, out, _ = said(capsys, *command, "--error", "1e-9")
    assert status == 1
    assert "the budget is error 1e-09, recall 0.9" in out
    assert said(capsys, *command, "--recall", "2")[0] == 2


def test_nothing_but_unsupported_is_3(here, capsys):
    status, out, _ = said(capsys, "check", "strange_kernels:cannot", *SMALL)
    assert status == 3
    assert "not today" in out


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("strange_kernels", "the function must be given as MODULE:FUNCTION, got 'strange_kernels'"),
        ("strange_kernels:", "the function must be given as MODULE:FUNCTION"),
        ("strange_kernels:rigth", "strange_kernels has no 'rigth'; did you mean right?"),
        ("strange_kernels:number", "strange_kernels:number must be a function, got int"),
        ("nowhere_at_all:f", "nowhere_at_all cannot be imported: ModuleNotFoundError"),
        ("strange_broken:f", "strange_broken cannot be imported: ZeroDivisionError: division"),
        ("nowhere.py:f", "nowhere.py cannot be imported: FileNotFoundError"),
    ],
)  # fmt: skip
def test_what_is_no_function_is_named(here, name, sentence):
    with pytest.raises(Refusal) as refused:
        function_of(name)
    assert str(refused.value).startswith(sentence)
    assert ("(strange_broken.py, line 2)" in str(refused.value)) == ("broken" in name)


def test_diagnose_names_the_mistake(here, capsys, monkeypatch):
    every = sr.conformance.cases
    monkeypatch.setattr(
        sr.conformance, "cases", lambda **how: every(**how, only=["7x19-d5e3/even", "13-d5e7/ramp"])
    )
    command = ["diagnose", "strange_kernels:banded", "--pattern"]
    status, out, _ = said(capsys, *command, "conventions.hf(4)")
    assert status == 1
    assert out.splitlines()[2].startswith("window-left-1: ")
    assert out.startswith("sparse-ref diagnose: 2 FAIL of 2 cases; seed ")
    status, out, _ = said(capsys, *command, "conventions.hf(3)")
    assert status == 0
    assert out.endswith("nothing is wrong, so there is nothing to name\n")


# conventions, golden, doctor


def test_conventions_are_listed_and_spelled(capsys):
    status, out, _ = said(capsys, "conventions", "--json")
    assert status == 0
    rows = json.loads(out)
    assert len(rows) == len(sr.conventions.table().splitlines()) - 2
    assert all("`" not in cell for row in rows for cell in row.values())
    status, out, _ = said(capsys, "conventions", "conventions.hf(128)", "--json")
    assert json.loads(out)["spelled"] == sr.conventions.describe(sr.conventions.hf(128))
    status, out, _ = said(capsys, "conventions", "Xor([1])")
    assert status == 3
    assert "pass it as a mask" in out


def test_golden_files_are_verified(here, capsys):
    command = ["golden", "verify", "--flag", "WindowLeft"]
    status, out, _ = said(capsys, *command, "--self")
    assert status == 0
    assert "the oracle: " in out
    assert "FAIL" not in out
    status, out, _ = said(capsys, *command, "strange_kernels:wider")
    assert status == 1
    assert "FAIL by-hand/window-0/" in out
    assert said(capsys, *command, "strange_kernels:cannot", "-q")[0] == 3
    assert said(capsys, "golden", "verify", "--self", "--files", str(here))[0] == 2
    assert said(capsys, "golden", "verify", "--self", "--flag", "Nothing")[0] == 2


def test_the_doctor_looks_at_everything(capsys, monkeypatch):
    monkeypatch.setattr(doctor, "_cuda", lambda: iter(()))  # torch takes its time to load
    status, out, _ = said(capsys, "doctor", "--quick", "--json")
    found = json.loads(out)["findings"]
    assert status == (0 if not any(one["broken"] for one in found) else 1)
    assert {"versions", "threads", "small numbers"} <= {one["topic"] for one in found}
    assert found[0] == {
        "topic": "versions", "name": "sparse_ref", "found": sr.__version__, "broken": False
    }  # fmt: skip


def test_the_doctor_finds_what_is_broken(monkeypatch, capsys):
    def _onnx(**_):
        raise OSError("a library is\nmissing")
        yield

    def _kernels():
        raise ImportError("half a release", name="sparse_ref.kernels")
        yield

    for name in ("_threads", "_cuda"):
        monkeypatch.setattr(doctor, name, lambda: iter(()))
    monkeypatch.setattr(doctor, "_kernels", _kernels)
    monkeypatch.setattr(doctor, "_onnx", _onnx)
    monkeypatch.setattr(doctor, "_versions", _absent)
    status, out, _ = said(capsys, "doctor", "--quick")
    assert status == 1
    assert "OSError: a library is missing" in out
    assert "nothing_like_it is not installed" in out
    assert "ERROR kernels, cannot be loaded: half a release" in out
    assert out.count("ERROR") == 2


def _absent():
    yield from ()
    import nothing_like_it  # noqa: F401


# the whole


def test_the_overview_finds_its_mistake(capsys):
    assert introduce() == 0
    out = capsys.readouterr().out
    assert "query - key <= window" in out
    assert "window-left+1" in out
    assert "  + # # # # . .\n" in out


def test_the_overview_needs_numpy_and_scipy_only():
    blocked = ["numba", "torch", "onnx", "onnxruntime", "rich", "matplotlib"]
    code = f"""
import runpy, sys
sys.modules.update(dict.fromkeys({blocked}))
sys.argv = ["sparse_ref"]
runpy.run_module("sparse_ref", run_name="__main__")
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert "window-left+1" in done.stdout


def test_help_loads_nothing_that_it_does_not_need():
    code = """
import sys
from sparse_ref.cli import main
try:
    main(["--help"])
except SystemExit:
    pass
heavy = ("conformance", "golden", "kernels", "recipes", "conventions")
loaded = [name for name in heavy if f"sparse_ref.{name}" in sys.modules]
loaded += [n for n in ("rich", "matplotlib", "numba", "torch", "onnx") if n in sys.modules]
sys.exit(f"loaded {loaded}" if loaded else 0)
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert "start here:" in done.stdout


@pytest.mark.parametrize(
    "command", ["patterns", "show", "check", "diagnose", "conventions", "doctor", "golden"]
)
def test_help_teaches(command, capsys):
    with pytest.raises(SystemExit) as done:
        main([command, "--help"])
    assert done.value.code == 0
    out = capsys.readouterr().out
    assert "example" in out
    assert f"  sparse-ref {command}" in out
    if command != "patterns":
        assert "exit status: 0" in out


def test_no_command_is_a_usage_error(capsys):
    status, out, err = said(capsys)
    assert (status, out) == (2, "")
    assert "start here:" in err


def test_a_terminal_gets_colours_and_no_color_none(monkeypatch, capsys):
    pytest.importorskip("rich")
    monkeypatch.setattr(screen, "unicode", lambda: True)
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.delenv("NO_COLOR", raising=False)
    command = ["show", "SlidingWindow(1, 0)", "SlidingWindow(2, 0)", "-n", "4"]
    _, out, _ = said(capsys, *command)
    assert "\x1b[34m██" in out
    assert "++" in out
    monkeypatch.setenv("NO_COLOR", "1")
    _, out, _ = said(capsys, *command)
    assert "\x1b[34m" not in out
    assert "██" in out


def test_output_that_nobody_reads_is_no_error():
    code = "from sparse_ref.cli import main; import sys; sys.exit(main(['patterns']))"
    with subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        process.stdout.close()
        _, err = process.stderr.read(), process.wait(timeout=60)
        assert process.returncode == 0
        assert err == 0
