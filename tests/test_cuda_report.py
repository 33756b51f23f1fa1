"""`tools/cuda_report.py` on machines without a GPU: it says so; its parts are run on the CPU."""

import json

import pytest

import sparse_ref as sr
from tools import cuda_report

PATTERNS = {"heads differ": sr.PerHead([sr.Causal(), sr.Causal() & sr.SlidingWindow(9, 0)])}


@pytest.fixture
def _short(monkeypatch):
    monkeypatch.setattr(cuda_report, "DTYPES", ("float32",))
    monkeypatch.setattr(cuda_report, "LENGTH", 65)


def test_without_a_cuda_device_it_ends_with_3_and_writes_nothing(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(cuda_report, "torch_device", lambda: None)
    monkeypatch.setattr(cuda_report, "onnx_missing", lambda: "ONNX Runtime has none")
    assert cuda_report.main(["-o", str(tmp_path / "report.json")]) == 3
    said = capsys.readouterr().err
    assert said == "there is no CUDA device: torch sees none, and ONNX Runtime has none\n"
    assert not list(tmp_path.iterdir())


@pytest.mark.usefixtures("_short")
def test_torch_is_held_against_the_oracle(monkeypatch):
    torch = pytest.importorskip("torch")
    torch.set_num_threads(1)
    rows = list(cuda_report.torch_rows("cpu", PATTERNS))
    assert [row["name"] for row in rows] == [
        f"{x}, heads differ, float32" for x in ("sdpa", "flex")
    ]
    assert all(row["ok"] and 0 < row["share"] <= 1 for row in rows)

    def one_key_more(q, k, v, pattern):
        return cuda_report.sdpa(q, k, v, pattern | sr.SlidingWindow(0, 1))

    wrong = cuda_report._compared("x", one_key_more, sr.Causal(), "float32", "cpu")
    assert not wrong["ok"]
    assert wrong["wrong"][0].endswith("numbers beyond the bound")


@pytest.mark.usefixtures("_short")
def test_files_are_validated_and_the_report_is_json(tmp_path, monkeypatch):
    pytest.importorskip("onnxruntime")
    rows = list(cuda_report.onnx_rows("CPUExecutionProvider", PATTERNS))
    assert [row["name"].split(", ")[1] for row in rows] == ["custom", "standard"]
    monkeypatch.setattr(cuda_report, "torch_device", lambda: {"name": "none"})
    monkeypatch.setattr(cuda_report, "onnx_missing", lambda: None)
    monkeypatch.setattr(cuda_report, "onnx_rows", lambda provider: iter(rows))
    monkeypatch.setattr(cuda_report, "torch_rows", lambda device: iter(()))
    assert cuda_report.main(["-o", str(tmp_path / "report.json")]) == 0
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["ok"] is True
    assert len(report["environment"]["sources_sha256"]) == 64
    assert report["rows"][0]["report"]["runs"][0]["placed"]
    monkeypatch.setattr(cuda_report, "torch_rows", lambda device: iter([
        {"name": "x", "ok": False, "share": 2.0, "wrong": ["it is"]}
    ]))  # fmt: skip
    assert cuda_report.main(["-o", str(tmp_path / "report.json")]) == 1
