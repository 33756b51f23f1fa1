"""`sparse-ref export` and `validate`, and how the patterns that people type are read."""

import json

import pytest

import sparse_ref as sr
from sparse_ref.cli import main
from sparse_ref.cli.expressions import parse

WINDOW = sr.Causal() & sr.SlidingWindow(20, 0)


@pytest.mark.parametrize(
    ("text", "pattern"),
    [
        ("Causal() & SlidingWindow(20, 0)", WINDOW),
        (" sr.Causal()&sparse_ref.SlidingWindow(left=20,right=0) ", WINDOW),
        ("(Causal() | Keys([0, 3])) - Rows(range(2, 5))",
         (sr.Causal() | sr.Keys([0, 3])) - sr.Rows(range(2, 5))),
        ("~Chunked(8, back=-1 , ahead=None)", ~sr.Chunked(8, -1, None)),
        ("recipes.longformer(8, global_tokens=[0])", sr.recipes.longformer(8, [0])),
        ("sr.recipes.sparse_transformer_strided(4, heads='local')",
         sr.recipes.sparse_transformer_strided(4, heads="local")),
        ("conventions.hf(128)", sr.SlidingWindow(127, 0)),
        ("PerHead((Causal(), Full()))", sr.PerHead([sr.Causal(), sr.Full()])),
        ("Grid((2, 3), [Full(), SlidingWindow(0, 0)])",
         sr.Grid((2, 3), [sr.Full(), sr.SlidingWindow(0, 0)])),
        ("Document(Runtime('ids'))", sr.Document(sr.Runtime("ids"))),
        ("Tokens(from_mask([[True, False], [True, True]]).csr)", None),
        ("from_mask([[True, False], [True, True]])", sr.from_mask([[True, False], [True, True]])),
        (json.dumps(sr.to_dict(WINDOW)), WINDOW),
    ],
)  # fmt: skip
def test_expressions_say_patterns(text, pattern):
    if pattern is None:
        with pytest.raises(ValueError, match=r"^pattern: .* at column"):
            parse(text)
    else:
        assert parse(text) == pattern


@pytest.mark.parametrize("pattern", [WINDOW, sr.recipes.phi3_small(4, 16), ~sr.Xor([1, 5])])
def test_what_a_pattern_prints_is_read_back(pattern):
    assert parse(repr(pattern)) == pattern


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("", "this is no expression"),
        ("Causal(", "this is no expression, at column 7"),
        ("Causal", "'Causal' is no pattern: Causal() makes one, at column 1"),
        ("Causl()", "there is no 'Causl'; did you mean Causal?, at column 1"),
        (
            "recipes.longfomer(3)",
            "there is no 'recipes.longfomer'; did you mean recipes.longformer",
        ),
        ("Causal() and Full()", "patterns combine with & | ~ and - only, at column 1"),
        ("Causal() + Full()", "patterns combine with & | ~ and - only, at column 1"),
        ("Causal() & 3", "& joins patterns, got 3, at column 12"),
        ("3", "the expression must be a pattern, got 3"),
        ("SlidingWindow(-3, 0)", "SlidingWindow: left must be >= 0 or None, got -3, at column 1"),
        ("SlidingWindow(3)", "SlidingWindow: SlidingWindow.__init__() missing 1 required"),
        ("Full() & Multi([Full()])", "a multiset must stand on the left of & and -"),
        ('{"kind": "Strided"}', "this JSON is none of `to_dict`: Strided must have the fields"),
        ("{", "this JSON is none of `to_dict`"),
    ],
)
def test_mistakes_are_named_with_their_place(text, sentence):
    with pytest.raises(ValueError) as refused:  # noqa: PT011
        parse(text)
    assert str(refused.value).startswith(f"pattern: {sentence}")
    assert "\n" not in str(refused.value)


HOSTILE = [
    "__import__('os').system('touch hacked')",
    "open('hacked', 'w')",
    "exec('import os')",
    "Full().__class__.__subclasses__()",
    "sr.__builtins__",
    "sr.importlib.import_module('os')",
    "sr.kernels.attention()",
    "sr._importlib",
    "recipes.__loader__.load_module('os')",
    "recipes.models.math.exp(1)",
    "recipes.__dict__['mistral'](3)",
    "Pattern()",
    "conventions.describe(Full())",
    "conventions.table()",
    "to_dict(Full())",
    "(lambda: Full())()",
    "[Full() for _ in range(9)][0]",
    "Full() if 1 else Full()",
    "(x := Full())",
    "f'{Full()}'",
    "Keys([*range(9)])",
    "Full(**{})",
    "Full() or Full()",
    "Causal() < Full()",
    "Keys(range(10 ** 9))",
    "Keys(range(1000000000000))",
    "Keys(range(1048577))",
    "Keys(range(" + "9" * 5000 + "))",
    "SlidingWindow(1e999, 0)",
    "SlidingWindow(1j, 0)",
    "Runtime(b'ids')",
    "Keys(...)",
    "await Full()",
    "yield",
    "Full();Full()",
    "Full()\nFull()",
    "\0",
    "~" * 9000 + "Full()",
    "(" * 3000 + "Full()" + ")" * 3000,
    "a" + ".b" * 4000,
    "Not(" * 400 + "Full()" + ")" * 400,
    "Full()" + " & Full()" * 1000,
    "[" * 4000,
    '{"kind":"Not","pattern":' * 300 + '{"kind":"Full"}' + "}" * 300,
    "Full() " * 10_000,
]


@pytest.mark.parametrize("text", HOSTILE, ids=lambda text: text[:30])
def test_hostile_text_runs_nothing(text, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=r"^pattern"):
        parse(text)
    assert not list(tmp_path.iterdir())


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    path = tmp_path_factory.mktemp("cli") / "window.onnx"
    assert export(path, "Causal() & SlidingWindow(20, 0)") == 0
    return path


def export(path, pattern, *more):
    sizes = ["--heads", "4", "--kv-heads", "2", "--head-dim", "8"]
    return main(["export", "--pattern", pattern, "-o", str(path), *sizes, *more])


def test_an_exported_file_is_valid(file, capsys):
    assert main(["validate", str(file)]) == 0
    printed = capsys.readouterr().out
    assert "CPUExecutionProvider" in printed
    assert printed.splitlines()[-1].startswith("ok: ")
    assert list(file.parent.iterdir()) == [file]  # nothing temporary is left


def test_the_same_pattern_gives_the_same_file(file, tmp_path, capsys):
    pattern = tmp_path / "pattern.json"
    pattern.write_text(json.dumps(sr.to_dict(WINDOW)))
    assert export(tmp_path / "again.onnx", f"@{pattern}", "--json") == 0
    said = json.loads(capsys.readouterr().out)
    assert said["bytes"] == file.stat().st_size
    assert sr.from_dict(said["pattern"]) == WINDOW
    assert (tmp_path / "again.onnx").read_bytes() == file.read_bytes()


def test_a_report_as_json(file, capsys):
    assert main(["validate", str(file), "--provider", "cpu", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["ok"] is True
    assert {one["provider"] for one in report["runs"]} == {"CPUExecutionProvider"}


def test_a_file_that_is_wrong_exits_with_1(file, tmp_path, capsys):
    import onnx

    made = onnx.load(file)
    node = made.graph.node[-1]
    entry = next(one for one in node.metadata_props if one.key == "sparse_ref.pattern")
    entry.value = json.dumps(sr.to_dict(sr.Causal()))
    onnx.save(made, tmp_path / "wrong.onnx")
    assert main(["validate", str(tmp_path / "wrong.onnx")]) == 1
    assert "MISMATCH" in capsys.readouterr().out


def test_what_cannot_be_read_or_written_exits_with_2(file, tmp_path, capsys):
    (tmp_path / "no.onnx").write_text("no model")
    for command, sentence in [
        (["validate", str(tmp_path / "no.onnx")], "model must be an ONNX file, got no.onnx"),
        (["validate", str(tmp_path / "none.onnx")], "No such file"),
        (["export", "--pattern", "Causl()", "-o", "x"], "there is no 'Causl'"),
        (["export", "--pattern", "@none.json", "-o", "x"], "No such file"),
        (["export", "--pattern", "Full()", "-o", "x", "--kv-heads", "3"], "kv_heads must divide"),
        (["export", "--pattern", "Full()", "-o", str(file / "x")], "sparse-ref export: [Errno"),
    ]:
        assert main(command) == 2
        assert sentence in capsys.readouterr().err
    with pytest.raises(SystemExit) as refused:
        main(["export"])
    assert refused.value.code == 2


def test_what_is_not_supported_exits_with_3(file, tmp_path, capsys):
    import onnx
    import onnxruntime

    assert export(tmp_path / "x.onnx", "Strided(3)", "--mode", "microsoft") == 3
    assert "mode 'custom' says any pattern" in capsys.readouterr().err
    onnx.save(onnx.helper.make_model(onnx.helper.make_graph([], "g", [], [])), tmp_path / "e.onnx")
    assert main(["validate", str(tmp_path / "e.onnx")]) == 3
    if "CUDAExecutionProvider" not in onnxruntime.get_available_providers():
        assert main(["validate", str(file), "--provider", "cuda"]) == 3
        assert "NOT RUN" in capsys.readouterr().out
    assert not (tmp_path / "x.onnx").exists()


@pytest.mark.parametrize("command", ["export", "validate"])
def test_help_names_the_exit_statuses(command, capsys):
    with pytest.raises(SystemExit) as done:
        main([command, "--help"])
    assert done.value.code == 0
    assert "exit status: 0 if" in capsys.readouterr().out


def test_an_onnx_file_that_is_not_there_is_named(capsys, tmp_path):
    pytest.importorskip("onnx", reason="onnx is not installed")
    assert main(["xray", str(tmp_path / "no.onnx")]) == 2
    assert "no.onnx cannot be read: No such file or directory" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.witness
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", ["Mistral", "Gemma 3"])
def test_a_stock_export_whose_window_is_lost_is_found_by_the_command(name, tmp_path, capsys):
    """Exported with a window that hides nothing; the config says 7 keys."""
    pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
    from tests.exporters.test_xray_onnx import exported

    model, config = exported(name, "sdpa", sliding_window=4096)
    file, told = tmp_path / "model.onnx", tmp_path / "config.json"
    file.write_bytes(model.SerializeToString())
    kept = {key: value for key, value in config.items() if key != "dtype"}
    told.write_text(json.dumps({**kept, "sliding_window": 7}, default=str))

    assert main(["xray", str(file), "--expect", str(told)]) == 1
    said = [x for x in capsys.readouterr().out.splitlines() if x.startswith("differs: ")]
    assert len(said) == (2 if name == "Mistral" else 1)
    assert said[0].startswith("differs: layer 0: config says sliding_window=7")
    assert "every head has: causal" in said[0]
    assert main(["xray", str(file), "--expect", str(told), "--quiet"]) == 1
    assert capsys.readouterr().out == ""
    assert main(["xray", str(file), "--expect", str(told), "--kv-len", "5"]) == 1
    assert "cannot be seen with 5 keys: read it with 8 or more" in capsys.readouterr().out
