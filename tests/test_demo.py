"""`sparse-ref demo` with a few training steps: what it writes, says and refuses to pass."""

import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest

import sparse_ref as sr
from sparse_ref.cli import main

onnx = pytest.importorskip("onnx")
torch = pytest.importorskip("torch")
for needed in ("matplotlib", "onnxruntime", "onnxscript", "rich", "sklearn", "tqdm"):
    pytest.importorskip(needed)

from exporters import files  # noqa: E402
from sparse_ref.cli import checks, demo, digits, network  # noqa: E402


@pytest.fixture(scope="module")
def data():
    whole = digits.load()
    return replace(whole, held_tokens=whole.held_tokens[:23], held_labels=whole.held_labels[:23])


@pytest.fixture(scope="module")
def model(data):
    return digits.train(data, seed=0, steps=12)


@pytest.fixture(scope="module")
def path(model, data, tmp_path_factory):
    path = tmp_path_factory.mktemp("demo") / "digits.onnx"
    demo.save(model, path, data.held_tokens[:2])
    return path


def failed(found):
    return [one.name for one in found if one.holds is False]


def test_the_held_out_digits_are_360_in_proportion():
    whole = digits.load()
    assert whole.held_tokens.shape == (360, 64)
    assert whole.tokens.shape == (1437, 64)
    assert whole.tokens.min() == 0
    assert whole.tokens.max() == digits.GREYS - 1
    assert np.bincount(whole.held_labels).min() >= 34


def test_two_layers_see_everything_before_them():
    local, strided = (pattern.mask(64, 64)[0] for pattern in digits.patterns())
    reach = strided.astype(int) @ local
    np.testing.assert_array_equal(reach > 0, np.tri(64, dtype=bool))


def test_training_is_repeatable(data, model):
    again = digits.train(data, seed=0, steps=12)
    other = digits.train(data, seed=1, steps=12)
    for name, value in model.state_dict().items():
        assert torch.equal(value, again.state_dict()[name])
    assert not torch.equal(model.value.weight, other.value.weight)


def test_the_model_is_the_size_that_was_planned(model):
    assert sum(parameter.numel() for parameter in model.parameters()) == 26_858


def test_an_untrained_model_passes_all_but_accuracy(model, path, data):
    found = demo.check(model, path, data, judged=True)
    assert failed(found) == ["accuracy, 23 held-out digits", "macro-F1, 23 held-out digits"]
    assert failed(demo.check(model, path, data, judged=False)) == []


def test_the_numpy_network_in_float64_is_pytorchs(model, data):
    import copy

    double = copy.deepcopy(model).double()
    state = {name: value.numpy() for name, value in double.state_dict().items()}
    with torch.no_grad():
        expected = double(torch.from_numpy(data.held_tokens)).numpy()
    for attend in (network.oracle, network.dense):
        got = network.logits(state, data.held_tokens, model.patterns, model.heads, attend)
        np.testing.assert_allclose(got, expected, rtol=0, atol=1e-14)


def edited(path, edit):
    """A copy of the file with something changed."""
    loaded = onnx.load(path)
    edit(loaded)
    copy = path.with_name("edited.onnx")
    onnx.save(loaded, copy)
    return copy


def wider_window(loaded):
    """The first layer's window one key too far to the left."""
    node = next(node for node in loaded.graph.node if node.domain == "sparse_ref")
    wrong = sr.to_blocks(sr.Causal() & sr.SlidingWindow(8, 0), 64, 64, block_size=16, heads=4)
    masks = next(one for one in loaded.graph.initializer if one.name == node.input[6])
    assert list(masks.dims) == list(wrong.tile_masks.shape)
    masks.CopyFrom(onnx.numpy_helper.from_array(wrong.tile_masks, masks.name))


def changed_weight(loaded):
    """One number of the classifier off by a thousandth."""
    bias = next(one for one in loaded.graph.initializer if one.name == "classify.bias")
    values = onnx.numpy_helper.to_array(bias).copy()
    values[3] += 1e-3
    bias.CopyFrom(onnx.numpy_helper.from_array(values, bias.name))


def test_a_window_off_by_one_in_the_file_is_found(model, path, data):
    found = failed(demo.check(model, edited(path, wider_window), data, judged=False))
    assert any(name.startswith("attention 1, max error") for name in found)
    assert "logits, ONNX Runtime to oracle" in found
    assert not any(name.startswith("attention 2") or "PyTorch" in name for name in found)


def test_a_changed_weight_in_the_file_is_found(model, path, data):
    found = failed(demo.check(model, edited(path, changed_weight), data, judged=False))
    assert "logits, ONNX Runtime to oracle" in found
    assert not any(name.startswith("attention") for name in found)


def test_a_missing_node_is_found(path, data):
    found = list(checks.within_bound(path, digits.patterns()[:1], data.held_tokens))
    assert failed(found) == ["attention nodes in the file"]


def test_predictions_that_differ_are_found():
    same = np.eye(3)
    assert failed(checks.agree(checks.Runs(same, same, same + 1e-7, same))) == []
    other = same[[0, 2, 1]]
    assert "predictions equal, all three" in failed(
        checks.agree(checks.Runs(same, other, same + 1e-7, same))
    )


@pytest.fixture
def few(monkeypatch, data):
    monkeypatch.setattr(digits, "load", lambda: data)


@pytest.mark.usefixtures("few")
def test_the_command_writes_two_files_and_says_what_it_checked(tmp_path, capsys):
    assert main(["demo", "--steps", "3", "--out", str(tmp_path / "new")]) == 0
    assert sorted(one.name for one in (tmp_path / "new").iterdir()) == [
        "attention.png",
        "digits.onnx",
    ]
    assert (tmp_path / "new" / "attention.png").read_bytes()[:4] == b"\x89PNG"
    printed, progress = capsys.readouterr()
    assert "not judged" in printed
    assert "Every check holds." in printed
    assert progress.splitlines()[-1].startswith("training: step 3 of 3, loss 2.")


@pytest.mark.usefixtures("few")
def test_the_command_fails_if_the_file_disagrees(tmp_path, capsys, monkeypatch):
    save = demo.save

    def sabotaged(model, path, example):
        save(model, path, example)
        edited(path, wider_window).replace(path)

    monkeypatch.setattr(demo, "save", sabotaged)
    assert main(["demo", "--steps", "3", "--out", str(tmp_path)]) == 1
    assert "FAILED: attention 1" in capsys.readouterr().out


def test_a_crash_leaves_the_old_file(tmp_path):
    path = tmp_path / "file"
    files.write_atomically(path, b"old")
    with pytest.raises(TypeError):
        files.write_atomically(path, "not bytes")
    assert path.read_bytes() == b"old"
    assert [one.name for one in tmp_path.iterdir()] == ["file"]


def test_a_missing_package_is_named():
    code = (
        "import sys; sys.modules['rich'] = None\n"
        "from sparse_ref.cli import main; sys.exit(main(['demo']))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr == "sparse-ref demo needs rich: pip install 'sparse-ref[all]'\n"


@pytest.mark.parametrize("steps", ["0", "-1", "many"])
def test_steps_must_be_positive(steps, capsys):
    with pytest.raises(SystemExit, match="2"):
        main(["demo", "--steps", steps])
    assert "--steps" in capsys.readouterr().err


def test_help_and_version_load_nothing_heavy():
    code = (
        "import sys; from sparse_ref.cli import main\n"
        "try: main(['--help'])\n"
        "except SystemExit as left: assert left.code == 0\n"
        "print(sorted({'torch', 'onnx', 'sklearn', 'matplotlib', 'rich'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "sparse-ref demo" in done.stdout
    assert done.stdout.endswith("[]\n")
    done = subprocess.run(
        [sys.executable, "-m", "sparse_ref", "--version"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert done.stdout == f"sparse-ref {sr.__version__}\n"


@pytest.mark.parametrize(
    ("got", "ratio"),
    [
        ([1.0, 0.0], 0.0),
        ([1.0 + 2e-3, 0.0], 2.0),
        ([1.0 + 2e-3, 1e-9], np.inf),
        ([1.0, 1e-9], np.inf),
        ([np.nan, 0.0], np.nan),
        ([1.0, np.nan], np.nan),
    ],
)
def test_no_output_hides_behind_a_nan_or_a_bound_of_zero(got, ratio):
    """The second element is of a row that sees no key: it must be exactly 0."""
    want, bound = np.array([1.0, 0.0]), np.array([1e-3, 0.0])

    np.testing.assert_allclose(checks.share_of_bound(np.array(got), want, bound), ratio)
    assert (checks.share_of_bound(np.array(got), want, bound) <= 1) == (got == [1.0, 0.0])
