"""Data, metrics, schedule, checkpoints, and runs that are taken up again; `sparse-ref train`."""

import csv
import json
import math
import os
import struct

import numpy as np
import pytest

import sparse_ref as sr
from sparse_ref.cli import main

torch = pytest.importorskip("torch")
for needed in ("matplotlib", "onnxruntime", "onnxscript", "safetensors", "sklearn", "tokenizers"):
    pytest.importorskip(needed)

from exporters.files import write_atomically  # noqa: E402
from exporters.pytorch import SparseTransformer  # noqa: E402
from exporters.pytorch.training import (  # noqa: E402
    BytePairs,
    History,
    Settings,
    Shuffled,
    Windows,
    accuracy,
    bits,
    checkpoint,
    curves,
    fit,
    held_out,
    macro_f1,
    next_token_loss,
    perplexity,
)
from sparse_ref.cli import train_bytes, train_csv, train_run  # noqa: E402

TEXT = torch.arange(200) * 7 % 11


@pytest.fixture(autouse=True)
def _repeatable():
    torch.manual_seed(0)
    torch.set_num_threads(1)


def model(**options):
    torch.manual_seed(0)
    pattern = sr.Causal() & sr.SlidingWindow(2, 0)
    options = {"blocks": 1, "dim": 8, "heads": 2, "dropout": 0.2} | options
    return SparseTransformer(11, None, (3, 4), [pattern], **options)


def run(trained, steps=12, seed=0, **options):
    settings = Settings(steps=steps, peak=1e-2, seed=seed)
    options = {"quiet": True, "judge": judged, "judge_every": 4} | options
    return fit(trained, Windows(TEXT, 12, batch=3), next_token_loss, settings, **options)


def judged(trained):
    return {"loss": next_token_loss(trained, (TEXT[None, :12], TEXT[None, 1:13])).item()}


# -- data -----------------------------------------------------------------------------------------


def test_an_epoch_shows_every_example_once():
    order = Shuffled(12, 4, seed=3)
    first, second = (torch.cat([order(step) for step in range(i, i + 3)]) for i in (0, 3))
    assert first.sort().values.tolist() == second.sort().values.tolist() == list(range(12))
    assert not torch.equal(first, second)
    assert torch.equal(order(4), Shuffled(12, 4, seed=3)(4))
    assert not torch.equal(order(4), Shuffled(12, 4, seed=4)(4))
    assert Shuffled(3, 16, seed=0)(0).sort().values.tolist() == [0, 1, 2]


def test_windows_say_what_follows():
    windows = Windows(torch.arange(23), 5, batch=2)
    read, follows = windows(0)
    assert torch.equal(follows, read + 1)
    pieces = [read for read, _ in windows.pieces()]
    assert torch.cat(pieces).tolist() == torch.arange(20).view(4, 5).tolist()
    with pytest.raises(ValueError, match="text must be longer than length = 23, got 23"):
        Windows(torch.arange(23), 23, batch=2)


def test_every_class_is_held_out_in_proportion():
    labels = torch.tensor([0] * 50 + [1] * 10 + [2])
    kept, held = held_out(labels, 0.2, seed=0)
    assert labels[held].bincount().tolist() == [10, 2]
    assert torch.cat([kept, held]).sort().values.tolist() == list(range(61))
    assert not torch.equal(held, held_out(labels, 0.2, seed=1)[1])


def test_byte_pairs_read_any_text_and_are_padded_behind():
    pairs = BytePairs.learn(["the cat sat on the mat"] * 3, vocabulary=270)
    texts = ["the cat", "", "naïve \U0001f600 \x00"]
    tokens, lengths = pairs.encode(texts)
    assert [pairs.decode(row[:n]) for row, n in zip(tokens, lengths, strict=True)] == texts
    assert lengths[1] == 0
    for row, n in zip(tokens, lengths, strict=True):
        assert not row[n:].any()
        assert row[:n].all()
    cut, fewer = pairs.encode(texts, length=2)
    assert torch.equal(cut, tokens[:, :2])
    assert fewer.tolist() == lengths.clamp(max=2).tolist()
    again = BytePairs.read(pairs.written())
    assert torch.equal(again.encode(texts)[0], tokens)
    assert again.vocabulary == pairs.vocabulary <= 270
    with pytest.raises(ValueError, match="vocabulary must be >= 257, got 256"):
        BytePairs.learn(texts, vocabulary=256)


# -- metrics and schedule -------------------------------------------------------------------------


def test_metrics_are_scikit_learns():
    from sklearn.metrics import accuracy_score, f1_score

    rng = np.random.default_rng(0)
    for classes in (2, 3, 7):
        labels, found = rng.integers(0, classes, (2, 31))
        assert accuracy(labels, found) == accuracy_score(labels, found)
        want = f1_score(labels, found, average="macro")
        assert macro_f1(labels, found) == pytest.approx(want, abs=1e-15)
    assert macro_f1([0, 0], [1, 1]) == 0.0
    with pytest.raises(ValueError, match="labels and predictions must be as many"):
        accuracy([0], [0, 1])


def test_bits_and_perplexity_of_a_coin():
    assert bits(math.log(2)) == 1.0
    assert perplexity(math.log(2)) == pytest.approx(2.0)


def test_the_rate_warms_up_and_falls_as_a_cosine():
    settings = Settings(steps=50, peak=2.0, warmup=10)
    rates = [settings.rate(step) for step in range(51)]
    assert rates[:10] == pytest.approx([0.2 * i for i in range(1, 11)])
    assert rates[30] == pytest.approx(1.0)
    assert rates[50] == pytest.approx(0.0)
    assert np.diff(rates[10:]).max() < 0
    assert Settings(steps=50, peak=1.0).warmup == 5
    assert Settings(steps=3, peak=1.0).rate(0) == 1.0


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"steps": 0}, "steps must be >= 1, got 0"),
        ({"peak": 0.0}, "peak must be > 0, got 0.0"),
        ({"warmup": 6}, r"warmup must be in \[0, 5\], got 6"),
        ({"seed": -1}, "seed must be in"),
        ({"precision": "float8"}, "precision must be one of"),
    ],
)
def test_settings_are_checked(options, sentence):
    with pytest.raises(ValueError, match=sentence):
        Settings(**{"steps": 5, "peak": 1.0} | options)


# -- the loop -------------------------------------------------------------------------------------


def test_training_learns_and_is_repeatable():
    first, second, other = model(), model(), model()
    history = run(first, 60)
    torch.randn(3)  # what the caller draws changes nothing
    assert run(second, 60).losses == history.losses
    assert history.losses[-1][1] < 0.7 * history.losses[0][1]
    run(other, 60, seed=1)
    for name, value in first.state_dict().items():
        assert torch.equal(value, second.state_dict()[name])
    assert not torch.equal(first.classify.weight, other.classify.weight)


def test_the_callers_generator_is_left_alone():
    before = torch.get_rng_state()
    expected = torch.randn(1)
    torch.set_rng_state(before)
    run(trained := model())
    torch.set_rng_state(before)
    run(trained)
    assert torch.equal(torch.randn(1), expected)


@pytest.mark.parametrize("stop", [1, 4, 7])
def test_an_interrupted_run_ends_with_the_bits_of_an_unbroken_one(stop, tmp_path):
    whole, path = model(), tmp_path / "run.safetensors"
    history = run(whole, path=tmp_path / "whole.safetensors")
    run(model(), path=path, save_every=3, until=stop)
    resumed = model(dim=8)
    torch.nn.init.normal_(resumed.classify.weight)  # of no matter: the checkpoint has it
    assert run(resumed, path=path, resume=True) == history
    for name, value in whole.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[name])
    ends = [checkpoint.load(one) for one in (path, tmp_path / "whole.safetensors")]
    assert ends[0].state == ends[1].state
    assert all(torch.equal(x, ends[1].tensors[name]) for name, x in ends[0].tensors.items())


def test_a_run_that_ended_is_not_trained_again(tmp_path):
    path = tmp_path / "run.safetensors"
    history = run(model(), path=path)
    content = path.read_bytes()
    assert run(model(), path=path, resume=True) == history
    assert path.read_bytes() == content


def test_a_checkpoint_of_another_run_is_refused(tmp_path):
    path = tmp_path / "run.safetensors"
    run(model(), path=path, until=2, about={"data": "a"})
    for options, sentence in (
        ({"seed": 1, "about": {"data": "a"}}, "seed must be 0 to go on from .*, got 1"),
        ({"steps": 13, "about": {"data": "a"}}, "steps must be 12 to go on from"),
        ({"about": {"data": "b"}}, "data must be 'a' to go on from .*, got 'b'"),
    ):
        with pytest.raises(ValueError, match=sentence):
            run(model(), path=path, resume=True, **options)
    with pytest.raises(ValueError, match="the checkpoint must be of this model"):
        run(model(dim=10), path=path, resume=True, about={"data": "a"})


def test_what_is_no_checkpoint_is_refused(tmp_path):
    path = tmp_path / "run.safetensors"
    huge = struct.pack("<Q", 2**62) + b"{}"
    for content in (b"", b"PK\x03\x04 a zip with a pickle", huge, struct.pack("<Q", 2) + b"{}"):
        path.write_bytes(content)
        with pytest.raises(ValueError, match="must be a checkpoint of a training run"):
            run(model(), path=path, resume=True)


def test_nothing_in_a_checkpoint_is_code(tmp_path):
    path = tmp_path / "run.safetensors"
    run(model(), path=path, until=3)
    content = path.read_bytes()
    (size,) = struct.unpack("<Q", content[:8])
    header = json.loads(content[8 : 8 + size])
    state = json.loads(header.pop("__metadata__")[checkpoint.KEY])
    assert state["step"] == 3
    assert {one.partition(".")[0] for one in header} == {"model", "step", "exp_avg", "exp_avg_sq"}
    assert {one["dtype"] for one in header.values()} == {"F32"}


def test_a_crash_while_writing_leaves_the_last_checkpoint(tmp_path, monkeypatch):
    path = tmp_path / "run.safetensors"
    run(model(), path=path, until=3)
    old = path.read_bytes()

    def crash(_):
        raise OSError("no space left")

    monkeypatch.setattr(os, "fsync", crash)
    with pytest.raises(OSError, match="no space left"):
        run(model(), path=path, resume=True)
    assert path.read_bytes() == old
    assert [one.name for one in tmp_path.iterdir()] == ["run.safetensors"]


def test_a_loss_that_is_not_finite_stops_the_run_before_its_weights():
    def broken(trained, batch):
        return next_token_loss(trained, batch) * math.nan

    trained = model()
    before = trained.classify.weight.clone()
    with pytest.raises(FloatingPointError, match="the loss of step 1 is nan: lower the peak rate"):
        fit(trained, Windows(TEXT, 12, 3), broken, Settings(steps=2, peak=1.0), quiet=True)
    assert torch.equal(trained.classify.weight, before)


def test_bfloat16_trains_and_float16_needs_cuda():
    settings = Settings(steps=40, peak=1e-2, precision="bfloat16")
    trained, windows = model(), Windows(TEXT, 12, batch=3)
    history = fit(trained, windows, next_token_loss, settings, quiet=True)
    assert history.losses[-1][1] < 0.8 * history.losses[0][1]
    assert {one.dtype for one in trained.parameters()} == {torch.float32}
    settings = Settings(steps=2, peak=1e-2, precision="float16")
    with pytest.raises(ValueError, match="precision must be 'bfloat16' or 'float32' on a CPU"):
        fit(trained, windows, next_token_loss, settings, quiet=True)


def test_gradients_are_clipped():
    weight = torch.nn.Linear(1, 1, bias=False)
    seen = []
    step = torch.optim.AdamW.step

    def look(self, *args, **kwargs):
        seen.append(self.param_groups[0]["params"][0].grad.norm().item())
        return step(self, *args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.optim.AdamW, "step", look)
        fit(
            weight, lambda _: torch.ones(1, 1), lambda m, x: 1e6 * m(x).sum(),
            Settings(steps=2, peak=1.0, clip=0.5), quiet=True,
        )  # fmt: skip
    assert seen == pytest.approx([0.5, 0.5])


def test_progress_is_four_lines_where_nobody_watches(capsys):
    run(model(), 8, quiet=False)
    lines = capsys.readouterr().err.splitlines()
    assert [line.partition(", loss")[0] for line in lines] == [
        f"training: step {step} of 8" for step in (2, 4, 6, 8)
    ]


def test_curves_are_a_picture():
    history = History([(1, 2.0), (2, 1.5)], [(2, {"accuracy": 0.5, "macro-F1": 0.25})])
    png = curves(history, "a run")
    assert png[:4] == b"\x89PNG"
    heights = [struct.unpack(">I", one[20:24])[0] for one in (png, curves(History(), "nothing"))]
    assert heights[0] > 1.9 * heights[1]  # three panels
    assert png == curves(history, "a run")


def test_files_are_whole_or_not_there(tmp_path):
    path = tmp_path / "new" / "file"
    write_atomically(path, b"old")
    with pytest.raises(TypeError):
        write_atomically(path, "not bytes")
    assert path.read_bytes() == b"old"
    assert [one.name for one in path.parent.iterdir()] == ["file"]


# -- the command ----------------------------------------------------------------------------------

WRITTEN = {"checkpoint.safetensors", "training.json", "training.png"}


@pytest.fixture
def reviews(tmp_path):
    path = tmp_path / "reviews.csv"
    good, bad = ("good soup, warm", "a warm, good place"), ("cold and late", "bad: late again")
    with path.open("w", encoding="utf-8", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["id", "review", "stars"])
        rows.writerows([i, good[i % 2], "five"] for i in range(12))
        rows.writerows([i, bad[i % 2], "one"] for i in range(8))
        rows.writerow([99, "", "one"])
    return path


def trained(path, out, *options):
    small = ["--length", "12", "--window", "2", "--vocabulary", "280", "--steps", "6"]
    columns = ["--text", "review", "--label", "stars"]
    return main(["train", "csv", str(path), *columns, *small, "--out", str(out), *options])


def test_a_csv_becomes_a_validated_file(reviews, tmp_path, capsys):
    import onnxruntime

    out = tmp_path / "out"
    assert trained(reviews, out, "--json") == 0
    assert {one.name for one in out.iterdir()} == WRITTEN | {"csv.onnx", "tokenizer.json"}
    found = json.loads(capsys.readouterr().out)
    assert found["valid"]
    assert found["about"]["labels"] == ["five", "one"]
    assert found["about"]["rows"] == 20
    assert found["about"]["held out"] == 4
    pairs = BytePairs.read((out / "tokenizer.json").read_text(encoding="utf-8"))
    tokens, lengths = pairs.encode(["good soup"], 12)
    session = onnxruntime.InferenceSession(out / "csv.onnx")
    feed = {"tokens": tokens.numpy(), "key_length": lengths.numpy()}
    assert session.run(None, feed)[0].shape == (1, 2)


def test_the_command_refuses_in_one_sentence(reviews, tmp_path, capsys):
    def said(*options, path=reviews):
        assert trained(path, tmp_path / "out", *options) == 2
        lines = capsys.readouterr().err.splitlines()
        return lines[-1]

    assert said("--text", "body").endswith(
        f"{reviews} must have a column 'body', got ['id', 'review', 'stars']"
    )
    assert "cannot be read" in said(path=tmp_path / "none.csv")
    assert "vocabulary must be >= 257, got 3" in said("--vocabulary", "3")
    assert "--delimiter must be one character, got 'ab'" in said("--delimiter", "ab")
    assert "seed must be in" in said("--seed", "-1")
    alike = tmp_path / "alike.csv"
    alike.write_text("review,stars\ngood,five\nwarm,five\n", encoding="utf-8")
    assert "column 'stars' must hold two labels or more" in said(path=alike)
    alike.write_bytes(b"review,stars\n\xff\xfe,five\n")
    assert "cannot be read" in said(path=alike)


def test_a_file_that_is_not_the_oracles_is_said(reviews, tmp_path, capsys, monkeypatch):
    export = train_run.exporters.to_onnx

    def sabotaged(trained_model, example):
        for block in trained_model.blocks:
            block.attention.pattern = sr.SlidingWindow(1, 2)
        made = export(trained_model, example)
        text = json.dumps(sr.to_dict(sr.SlidingWindow(2, 2)))
        for node in made.graph.node:
            for entry in node.metadata_props:
                if entry.key == "sparse_ref.pattern":
                    entry.value = text
        return made

    monkeypatch.setattr(train_run.exporters, "to_onnx", sabotaged)
    assert trained(reviews, tmp_path / "out") == 1
    assert capsys.readouterr().out.endswith("FAILED: the file does not agree with the oracle\n")


def test_labels_and_texts_come_as_they_are_written(tmp_path):
    """A byte order mark, a quoted line break, blanks around a label, rows with a hole."""
    path = tmp_path / "a.csv"
    text = '\ufefftext;label\n"two\nlines; quoted";x\nb; y \n;x\nd;\ne;y\n'
    path.write_text(text, encoding="utf-8")
    assert train_csv.read(path, "text", "label", ";") == (
        ["two\nlines; quoted", "b", "e"],
        ["x", "y", "y"],
    )


def test_the_corpus_is_pythons_own():
    text = train_bytes.corpus()
    assert len(text) > 400_000
    assert text.decode().isprintable() is False
    half = len(text) // 2
    assert 4 < train_bytes.unigram(text[:half], text[half:]) < 5.5
    assert train_bytes.packed(b"abcd" * 999, b"abcd" * 999) < 0.2


def test_help_loads_nothing_heavy():
    import subprocess
    import sys

    code = (
        "import sys; from sparse_ref.cli import main\n"
        "try: main(['train', 'bytes', '--help'])\n"
        "except SystemExit as left: assert left.code == 0\n"
        "print(sorted({'torch', 'onnx', 'sklearn', 'matplotlib', 'rich'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "--resume" in done.stdout
    assert done.stdout.endswith("[]\n")


@pytest.mark.slow
@pytest.mark.parametrize("task", ["digits", "bytes"])
def test_the_whole_command(task, tmp_path, capsys):
    """What is promised: 94 % of the digits, 2.45 bits per byte."""
    assert main(["train", task, "--json", "--out", str(tmp_path)]) == 0
    assert {one.name for one in tmp_path.iterdir()} == WRITTEN | {f"{task}.onnx"}
    found = json.loads(capsys.readouterr().out)
    assert found["valid"]
    if task == "digits":
        assert found["held out"]["accuracy"] >= 0.94
    else:
        assert found["held out"]["bits per byte"] <= 2.45
