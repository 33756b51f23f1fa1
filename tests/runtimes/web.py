"""onnxruntime-web for the tests: what package-lock.json names, installed once into a cache."""

import hashlib
import os
import shutil
import subprocess
import tempfile
from functools import cache
from pathlib import Path

HERE = Path(__file__).parent
FILES = ("package.json", "package-lock.json")
PACKAGE = Path("node_modules") / "onnxruntime-web" / "package.json"
SECONDS = 180
NPM = ["npm", "ci", "--ignore-scripts", "--no-audit", "--no-fund"]


@cache
def missing():
    """Why there is no onnxruntime-web, or None: then the environment says where it is."""
    for place in (os.environ.get("ONNXRUNTIME_WEB"), HERE):
        if place and (Path(place) / PACKAGE).exists():
            return None
    if not shutil.which("node") or not shutil.which("npm"):
        return "node and npm are not installed"
    content = b"".join((HERE / name).read_bytes() for name in FILES)
    root = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "sparse_ref"
    folder = root / f"onnxruntime-web-{hashlib.sha256(content).hexdigest()[:16]}"
    if not (folder / PACKAGE).exists() and (reason := _install(folder)):
        return reason
    os.environ["ONNXRUNTIME_WEB"] = str(folder)
    return None


def _install(folder):
    """`npm ci` beside the folder, which then takes its place: whoever comes second finds it."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    made = Path(tempfile.mkdtemp(dir=folder.parent))
    try:
        for name in FILES:
            shutil.copy(HERE / name, made)
        done = subprocess.run(
            NPM, cwd=made, capture_output=True, text=True, timeout=SECONDS, check=False
        )
        if done.returncode:
            said = [line for line in done.stderr.splitlines() if line.startswith("npm error")]
            return f"npm ci failed: {(said or ['no reason given'])[0]}"
        if not folder.exists():
            made.rename(folder)
    except subprocess.TimeoutExpired:
        return f"npm ci took more than {SECONDS} s"
    finally:
        shutil.rmtree(made, ignore_errors=True)
    return None
