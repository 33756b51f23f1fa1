"""`sparse-ref train`: from data to a validated ONNX file; each task is a module of its own."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from .command import add_outputs, declare, positive

ABOUT = """\
Train a Sparse Transformer (Child et al. 2019, arXiv:1904.10509) on a CPU, export it to ONNX, and
hold every attention of the file against the NumPy oracle.
"""

END = """\
  sparse-ref train digits                              images: 64 pixels, strided attention
  sparse-ref train bytes                               text: the next byte of 1,024, fixed attention
  sparse-ref train csv reviews.csv --text review --label stars        your own texts and labels

`sparse-ref train TASK --help` says what each learns, how well, and what it writes.

exit status: 0 if the exported file agrees with the oracle, 1 if not, 2 if something to train with
is missing, wrong, or of another run
"""

WRITES = """\
writes into DIR:
  {name}.onnx{pad}  the trained model, runs wherever ONNX runs: nothing needs to be registered
  checkpoint.safetensors  weights, Adam's moments, and where the run is; nothing in it is code
  training.png            the loss, and the metrics on what was held out
  training.json           the same as numbers, and what they were measured on
"""

RESUMES = """\
interrupted? Repeat the command with --resume: the result has the bits of an unbroken run.
"""

DIGITS = """\
Learn to read handwritten digits: 8 x 8 grey levels as 64 tokens, embeddings of rows and columns.
The first layer sees the row (a token and 7 before it), the second the column: strided attention.
"""

BYTES = """\
Learn to write Python's own documentation (`pydoc_data.topics`, 466 kB), byte by byte: the next byte
of 1,024, by fixed attention: a byte sees its line of the grid, 16 bytes long, and from the second
layer on the last 4 bytes of every line before.
What counts are bits per byte on the last tenth, which is not trained on.
"""

CSV = """\
Learn the label of a text from your own file. Byte pairs are learnt from its texts, which are then
encoded and padded; every token attends to its neighbours, and to and from the first one. A fifth,
every label in proportion, is held out.
"""

CSV_END = """\
the file is CSV with a header, in UTF-8, comma-separated (or --delimiter), for instance
  review,stars
  "The best soup in town.",5
  "Cold, and late.",1

writes tokenizer.json too: what turns a text into the model's tokens (the `tokenizers` library)
"""


def add_to(commands: Any) -> None:
    """The command, its tasks and their options."""
    brief = "train a sparse transformer on digits, on text or on your own CSV"
    parser = declare(commands, "train", brief, ABOUT, END)
    tasks = parser.add_subparsers(metavar="task", dest="task", required=True)
    digits = _task(tasks, "digits", "8 x 8 images, classified", DIGITS, steps=2000)
    digits.set_defaults(run=_digits)
    text = _task(tasks, "bytes", "the next byte of Python's documentation", BYTES, steps=BYTE_STEPS)
    text.set_defaults(run=_bytes)
    csv = _task(tasks, "csv", "the label of a text, from your own file", CSV, 600, CSV_END)
    csv.add_argument("file", type=Path, metavar="FILE", help="a CSV file with a header")
    csv.add_argument("--text", required=True, metavar="COLUMN", help="the column of the texts")
    csv.add_argument("--label", required=True, metavar="COLUMN", help="the column of the labels")
    csv.add_argument("--delimiter", default=",", metavar="C", help="between columns (default: ,)")
    csv.add_argument(
        "--length", type=positive, default=256, metavar="N",
        help="tokens of a text; longer ones are cut (default: %(default)s)",
    )  # fmt: skip
    csv.add_argument(
        "--window", type=positive, default=16, metavar="N",
        help="neighbours on each side that a token sees (default: %(default)s)",
    )  # fmt: skip
    csv.add_argument(
        "--vocabulary", type=positive, default=1024, metavar="N",
        help="of the byte pairs, at least 257 (default: %(default)s)",
    )  # fmt: skip
    csv.set_defaults(run=_csv)


BYTE_STEPS = 1600


def _task(
    tasks: Any, name: str, brief: str, about: str, steps: int, more: str = ""
) -> argparse.ArgumentParser:
    written = WRITES.format(name=name, pad=" " * (len("checkpoint.safetensors") - len(name) - 5))
    parser: argparse.ArgumentParser = declare(
        tasks, name, brief, about, "\n".join(filter(None, [more, written, RESUMES]))
    )
    parser.add_argument(
        "--out", type=Path, default=Path(f"train-{name}"), metavar="DIR",
        help="folder for the files, made if missing (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "--steps", type=positive, default=steps, metavar="N",
        help="steps of the whole run (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "--seed", type=int, default=0, metavar="N",
        help="of the weights and the order of examples (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "--resume", action="store_true", help="go on from the checkpoint in DIR, if there is one"
    )
    add_outputs(parser)
    return parser


def _digits(arguments: argparse.Namespace) -> int:
    from . import train_digits as task
    from .train_run import finished

    return finished(arguments, task.run)


def _bytes(arguments: argparse.Namespace) -> int:
    from . import train_bytes as task
    from .train_run import finished

    return finished(arguments, task.run)


def _csv(arguments: argparse.Namespace) -> int:
    from . import train_csv as task
    from .train_run import finished

    return finished(arguments, task.run)
