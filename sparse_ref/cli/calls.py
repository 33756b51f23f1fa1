"""The function that is judged, and how it wants to be called: options of several commands."""

from __future__ import annotations

import argparse
import inspect
import shlex
from typing import Any

from .command import Refusal, add_outputs, seconds

PLAIN = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
TYPES = ("float32", "float64", "float16", "bfloat16")


def add_function(parser: Any) -> None:
    """The function, how it wants to be called, and what both commands take."""
    parser.add_argument(
        "function", metavar="MODULE:FUNCTION",
        help="where it is; FILE.py:FUNCTION works too, and the current directory counts",
    )  # fmt: skip
    call = parser.add_argument_group("how it is called")
    call.add_argument("--layout", choices=("bhsd", "bshd", "thd", "paged"),
                      help="axes of its arrays (default: bhsd)")  # fmt: skip
    call.add_argument("--page-size", type=int, metavar="N",
                      help="keys in a page of layout paged (default: 16)")  # fmt: skip
    call.add_argument("--arrays", choices=("numpy", "torch", "jax", "dlpack"),
                      help="whose arrays it takes (default: numpy)")  # fmt: skip
    call.add_argument("--spell", metavar="API",
                      help="say the pattern as flash_attn, sdpa, xformers, ... do")  # fmt: skip
    call.add_argument("--device", help="where torch or jax put the arrays")
    call.add_argument("--dtype-in", metavar="TYPE", choices=TYPES,
                      help="what the inputs are converted to")  # fmt: skip
    parser.add_argument("--isolate", action="store_true",
                        help="run it in a process of its own: a crash is a verdict")  # fmt: skip
    parser.add_argument("--timeout", type=seconds, metavar="S", help="seconds for one case")
    parser.add_argument("--seed", type=int, metavar="N", help="of the values, to repeat a report")
    add_outputs(parser)


def implementation(arguments: argparse.Namespace, pattern: Any) -> Any:
    """The function, in the form that every judge takes."""
    from sparse_ref.conformance import Candidate, fixed

    from .given import function_of

    fn = function_of(arguments.function)
    form = {"layout": arguments.layout, "arrays": arguments.arrays, "device": arguments.device,
            "dtype": arguments.dtype_in, "spell": arguments.spell,
            "page_size": arguments.page_size}  # fmt: skip
    form = {name: value for name, value in form.items() if value is not None}
    called = fn
    if form:
        try:
            called = Candidate(fn, **form)
        except ValueError as error:
            raise Refusal(error) from None
    if "spell" not in form and not takes_pattern(fn):
        if pattern is None:
            raise Refusal(f"{arguments.function} takes no pattern: say its own with --pattern")
        called = fixed(called)
    return _apart(called, arguments.timeout) if arguments.isolate else called


def _apart(called: Any, timeout: float | None) -> Any:
    """In a process of its own, which imports it by its name."""
    from sparse_ref.conformance import isolated

    try:
        return isolated(called, timeout)
    except ValueError as error:
        raise Refusal(error) from None


def takes_pattern(fn: Any) -> bool:
    """Whether it is meant to be called fn(q, k, v, pattern); one that says nothing of it may be."""
    try:
        parameters = [*inspect.signature(fn).parameters.values()]
    except (TypeError, ValueError):
        return True
    needed = [x for x in parameters if x.kind in PLAIN and x.default is x.empty]
    rest = any(x.kind is x.VAR_POSITIONAL for x in parameters)
    return len(needed) > 3 or rest or any(x.name == "pattern" for x in parameters)


def as_typed(arguments: argparse.Namespace) -> str:
    """The function and how it is called, as it was typed."""
    given = [arguments.function]
    for name in ("layout", "page_size", "arrays", "spell", "device", "dtype_in"):
        if (value := getattr(arguments, name)) is not None:
            given += [f"--{name.replace('_', '-')}", str(value)]
    given += ["--isolate"] * arguments.isolate
    return shlex.join(given)
