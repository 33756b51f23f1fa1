"""Functions that only kernels call: linked into them as they are, and optimised there, once.

Numba takes every function through LLVM to machine code, with all that it calls: what lies three
calls deep is optimised four times, and only the last time counts.
"""

# mypy: allow-untyped-defs, allow-untyped-calls
from __future__ import annotations

from typing import Any

from numba.core.codegen import JITCodeLibrary
from numba.core.compiler import Compiler


class Linked(JITCodeLibrary):
    """Code of one function and what it calls, for other libraries; there is no machine code."""

    def _optimize_final_module(self):
        """Left to the library that this is linked into."""

    def _finalize_final_module(self):
        self._finalize_dynamic_globals()
        self._finalized = True

    def get_pointer_to_function(self, name):
        return 0

    @property
    def codegen(self):
        return self

    def set_env(self, name, env):
        """The engine, which Numba would have keep it, does not know this code."""


class Inner(Compiler):
    """Numba's compiler, up to what is linked."""

    def __init__(self, typing: Any, target: Any, library: Any, *args: Any) -> None:
        super().__init__(typing, target, Linked(target.codegen(), "inner"), *args)

    def compile_extra(self, func: Any) -> Any:
        """Refuse what would be freed too early: an array that is returned without being counted."""
        done, state = super().compile_extra(func), self.state
        made = state.targetctx.data_model_manager[done.signature.return_type]
        if made.contains_nrt_meminfo() and not state.flags.nrt:
            raise TypeError(f"{func.__name__} must be an `owner`, for it returns an array")
        return done
