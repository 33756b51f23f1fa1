"""One command for anyone with an NVIDIA GPU: whether CUDA computes what the oracle says.

  python tools/cuda_report.py               writes cuda_report.json
  python tools/cuda_report.py -o FILE

Exports several patterns to ONNX and validates them on ONNX Runtime's CUDA provider (the body that
is meant for it, every floating-point node on the GPU), then holds PyTorch's scaled dot product and
FlexAttention on the GPU against the same oracle. The report names the device, every version and
the hash of every file, so that it can be committed as evidence.

Needs onnxruntime-gpu and a CUDA build of torch; either may be missing, and is then reported so.

exit status: 0 if everything that ran agrees, 1 if something does not, 3 if there is no CUDA device
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.metadata
import json
import platform
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

import sparse_ref as sr
from exporters.files import write_atomically

ROOT = Path(__file__).resolve().parent.parent
HEADS, KV_HEADS, SIZE, LENGTH = 4, 2, 64, 257
WINDOW = sr.Causal() & sr.SlidingWindow(127, 0)
PATTERNS = {
    "causal": sr.Causal(),
    "window": WINDOW,
    "strided": sr.Causal() & (sr.SlidingWindow(31, 0) | sr.Strided(32)),
    "longformer": sr.recipes.longformer(64, global_tokens=[0, 100]),
    "phi3_small": sr.recipes.phi3_small(heads=HEADS, block_size=16, local_blocks=4, vert_stride=8),
    "heads differ": sr.PerHead([WINDOW, sr.Causal() & sr.Strided(5)]),
}
DTYPES = ("float32", "float16", "bfloat16")
PACKAGES = ("numpy", "onnx", "onnxruntime", "onnxruntime-gpu", "torch", "triton")

Row = dict[str, Any]


def main(arguments: list[str] | None = None) -> int:
    """Run everything that can run here, and answer the exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("-o", "--out", type=Path, default=Path("cuda_report.json"), metavar="FILE")
    options = parser.parse_args(arguments)
    device, missing = torch_device(), onnx_missing()
    if device is None and missing:
        print(f"there is no CUDA device: torch sees none, and {missing}", file=sys.stderr)
        return 3
    rows: list[Row] = []
    if missing:
        print(f"ONNX Runtime: not run, {missing}")
    else:
        rows += shown(onnx_rows("CUDAExecutionProvider"))
    if device is None:
        print("torch: not run, it sees no CUDA device")
    else:
        rows += shown(torch_rows("cuda"))
    content = {
        "device": device,
        "onnxruntime_cuda": missing or "ran",
        "environment": environment(),
        "ok": all(row["ok"] for row in rows),
        "rows": rows,
    }
    write_atomically(options.out, json.dumps(content, indent=1).encode())
    wrong = [row["name"] for row in rows if not row["ok"]]
    print(f"Written: {options.out}; {len(rows) - len(wrong)} of {len(rows)} agree")
    return 1 if wrong else 0


def shown(rows: Iterator[Row]) -> Iterator[Row]:
    """The rows, each printed as it comes."""
    for row in rows:
        verdict = "ok" if row["ok"] else f"WRONG: {row['wrong'][:1]}"
        print(f"{row['name']:48} {row['share']:8.3f} of the bound  {verdict}", flush=True)
        yield row


def torch_device() -> Row | None:
    """The GPU as torch describes it; None if torch, or the GPU, is missing."""
    try:
        import torch  # noqa: PLC0415
    except ImportError:
        return None
    if not torch.cuda.is_available():
        return None
    found = torch.cuda.get_device_properties(0)
    cudnn: Any = torch.backends.cudnn
    return {
        "name": found.name,
        "capability": f"{found.major}.{found.minor}",
        "memory_bytes": found.total_memory,
        "cuda": torch.version.cuda,
        "cudnn": cudnn.version(),
    }


def onnx_missing() -> str | None:
    """Why ONNX Runtime cannot use CUDA here; the list of providers alone proves nothing."""
    try:
        from onnx import parser  # noqa: PLC0415

        from exporters.onnx import running  # noqa: PLC0415
    except ModuleNotFoundError as error:
        if error.name not in ("onnx", "onnxruntime"):
            raise
        return f"{error.name} is not installed"
    tiny = parser.parse_model(
        '<ir_version: 8, opset_import: ["": 18]> g (float[1] x) => (float[1] y) { y = Exp (x) }'
    )
    try:
        running.session(tiny, running.CUDA)
    except running.UnavailableError as error:
        return str(error)
    return None


def onnx_rows(provider: str, patterns: dict[str, sr.Pattern] | None = None) -> Iterator[Row]:
    """Every pattern in every type, validated as a file."""
    from exporters import to_onnx  # noqa: PLC0415
    from exporters.onnx.cuda import cuda_gaps  # noqa: PLC0415
    from exporters.onnx.validate import validate_onnx  # noqa: PLC0415

    for name, pattern in (patterns or PATTERNS).items():
        for dtype in DTYPES:
            for mode in ("custom", "standard", "microsoft"):
                try:
                    model = to_onnx(
                        pattern, heads=HEADS, kv_heads=KV_HEADS, head_dim=SIZE, dtype=dtype,
                        mode=mode, body="gather", opset=23 if mode == "standard" else None,
                    )  # fmt: skip
                except NotImplementedError:
                    continue
                if mode != "custom" and any(gap.floating for gap in cuda_gaps(model)):
                    continue  # ONNX Runtime has no such kernel for CUDA
                report = validate_onnx(model, providers=[provider])
                share = max((one.share for one in report.verdicts), default=float("inf"))
                yield {
                    "name": f"ONNX Runtime, {mode}, {name}, {dtype}",
                    "ok": report.ok,
                    "share": share if np.isfinite(share) else 1e308,
                    "wrong": report.wrong + report.unsupported,
                    "report": json.loads(report.to_json()),
                }


def torch_rows(device: str, patterns: dict[str, sr.Pattern] | None = None) -> Iterator[Row]:
    """The scaled dot product with a mask, and FlexAttention, in every type."""
    for name, pattern in (patterns or PATTERNS).items():
        for dtype in DTYPES:
            for peer in (sdpa, flex):
                yield _compared(f"{peer.__name__}, {name}, {dtype}", peer, pattern, dtype, device)


def _compared(name: str, peer: Any, pattern: sr.Pattern, dtype: str, device: str) -> Row:
    """One call of a peer, within the bound of its type or not."""
    import torch  # noqa: PLC0415

    rng = np.random.default_rng(0)
    shapes = (2, HEADS, LENGTH, SIZE), (2, KV_HEADS, LENGTH, SIZE), (2, KV_HEADS, LENGTH, SIZE)
    tensors = [
        torch.from_numpy(rng.standard_normal(shape)).to(device, getattr(torch, dtype))
        for shape in shapes
    ]
    q, k, v = (tensor.to(torch.float64).cpu().numpy() for tensor in tensors)
    want = sr.attention(q, k, v, pattern).out
    # a half kernel may round scores and weights to its type
    inside = sr.Arithmetic(dtype, "float32", dtype, "float32", dtype)
    bound = sr.error_bound(q, k, v, pattern, arithmetic=inside).out
    try:
        start = time.perf_counter()
        out = peer(*tensors, pattern).to(torch.float64).cpu().numpy()
        seconds = time.perf_counter() - start
    except Exception as reason:  # whatever a GPU, a driver or a compiler may say
        said = f"{type(reason).__name__}: {str(reason)[:300]}"
        return {"name": name, "ok": False, "share": 1e308, "wrong": [said]}
    error = np.abs(out - want)
    share = float(np.where(error == 0, 0, error / np.where(bound > 0, bound, 1e-300)).max())
    fine = bool((error <= bound).all())
    wrong = [] if fine else [f"{int((~(error <= bound)).sum())} numbers beyond the bound"]
    return {
        "name": name,
        "ok": fine,
        "share": share if np.isfinite(share) else 1e308,
        "error": float(np.nan_to_num(error, nan=1e308).max()),
        "first_call_seconds": seconds,
        "wrong": wrong,
    }


def sdpa(q: Any, k: Any, v: Any, pattern: sr.Pattern) -> Any:
    """PyTorch's scaled dot product with the pattern as a mask."""
    import torch  # noqa: PLC0415

    mask = torch.from_numpy(pattern.mask(q.shape[2], k.shape[2], heads=q.shape[1])).to(q.device)
    attention = torch.nn.functional.scaled_dot_product_attention
    return attention(q, k, v, attn_mask=mask, enable_gqa=True)


def flex(q: Any, k: Any, v: Any, pattern: sr.Pattern) -> Any:
    """FlexAttention, compiled on a GPU, with the pattern looked up in its mask."""
    import torch  # noqa: PLC0415
    from torch.nn.attention import flex_attention as module  # noqa: PLC0415

    m, n, h = q.shape[2], k.shape[2], q.shape[1]
    seen = torch.from_numpy(pattern.mask(m, n, heads=h)).to(q.device)

    def mask_mod(b: Any, head: Any, i: Any, j: Any) -> Any:
        return seen[head, i, j]

    blocks = module.create_block_mask(mask_mod, None, h, m, n, device=str(q.device))
    call: Any = module.flex_attention
    if q.device.type == "cuda":
        call = torch.compile(call, dynamic=False)
    return call(q, k, v, block_mask=blocks, enable_gqa=True)


def environment() -> Row:
    """Versions, and the hash of every source file that the numbers come from."""
    versions: dict[str, str | None] = {}
    for name in PACKAGES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            versions[name] = None
    content = hashlib.sha256()
    for path in sorted([*ROOT.glob("sparse_ref/**/*.py"), *ROOT.glob("exporters/**/*.py")]):
        content.update(path.relative_to(ROOT).as_posix().encode() + b"\0" + path.read_bytes())
    return {
        "sparse_ref": sr.__version__,
        "sources_sha256": content.hexdigest(),
        "this_file_sha256": hashlib.sha256(Path(__file__).read_bytes()).hexdigest(),
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "packages": versions,
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }


if __name__ == "__main__":
    sys.exit(main())
