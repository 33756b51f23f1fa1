"""The function that is judged, and how it wants to be called: options of several commands."""

from __future__ import annotations

import argparse
import inspect
import shlex
from dataclasses import dataclass
from typing import Any

from .command import Refusal, add_outputs, seconds

PLAIN = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
TYPES = ("float32", "float64", "float16", "bfloat16")


def add_function(parser: Any) -> None:
    """The function, how it wants to be called, and what both commands take."""
    parser.add_argument(
        "function", metavar="MODULE:FUNCTION",
        help="where it is; FILE.py:FUNCTION works too, and the current directory counts; or the "
        "path of a FILE.onnx with inputs q, k, v and perhaps mask",
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


@dataclass(frozen=True)
class Named:
    """A function by its name: to pickle it imports nothing, to read it back makes it.

    So that a process of its own is all that ever imports what may crash.
    """

    name: str
    form: dict[str, Any]
    alone: bool  # one pattern is asked for: it need not take any

    def __reduce__(self) -> Any:
        return _made_there, (self.name, self.form, self.alone)

    def made(self) -> Any:
        """The function, in the form that every judge takes."""
        from sparse_ref.conformance import Candidate, fixed

        from .given import function_of

        if self.name.endswith(".onnx"):
            return self._file()
        fn = function_of(self.name)
        try:
            called = Candidate(fn, **self.form) if self.form else fn
        except ValueError as error:
            raise Refusal(error) from None
        if "spell" in self.form or takes_pattern(fn):
            return called
        if not self.alone:
            raise Refusal(f"{self.name} takes no pattern: say its own with --pattern")
        return fixed(called)

    def _file(self) -> Any:
        from sparse_ref.conformance import Candidate

        try:
            found = Candidate(self.name, **self.form)
            found.called  # noqa: B018 - opens it
        except Exception as error:  # whatever ONNX Runtime says of a stranger's file
            raise Refusal(f"{self.name} cannot be used: {error}") from None
        return found


def _made_there(name: str, form: dict[str, Any], alone: bool) -> Any:
    """As `Named.made`, in another process: what is wrong with a name is said there."""
    try:
        return Named(name, form, alone).made()
    except Refusal as refusal:
        raise ImportError(str(refusal)) from None


def implementation(arguments: argparse.Namespace, pattern: Any) -> Any:
    """The function, in the form that every judge takes; with --isolate nothing is imported."""
    from sparse_ref.conformance import Candidate, isolated

    form = {"layout": arguments.layout, "arrays": arguments.arrays, "device": arguments.device,
            "dtype": arguments.dtype_in, "spell": arguments.spell,
            "page_size": arguments.page_size}  # fmt: skip
    form = {name: value for name, value in form.items() if value is not None}
    named: Any = Named(arguments.function, form, pattern is not None)
    if not arguments.isolate:
        return named.made()
    if not arguments.function.endswith(".onnx") and not all(arguments.function.rpartition(":")):
        raise Refusal(f"the function must be given as MODULE:FUNCTION, got {arguments.function!r}")
    try:
        Candidate(print, **form)  # its words are judged here
    except ValueError as error:
        raise Refusal(error) from None
    return isolated(named, arguments.timeout)


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
