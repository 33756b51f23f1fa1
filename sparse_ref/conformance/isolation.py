"""An implementation in a process of its own, whose crash is a verdict and not the end.

One worker answers case after case, and is started again when it died or was stopped. Inputs and
answers go through a pipe; what the implementation does to its own process stays there.
"""

from __future__ import annotations

import multiprocessing
import pickle
import signal
import weakref
from collections.abc import Callable
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any

from .calling import AnswerError, Implementation, ask, ask_gradients, has_gradients, named

START = 120.0  # seconds to import what it needs
END = 5.0  # and to be gone once it is dead


class CrashError(Exception):
    """What an implementation raised in its process, or how that ended; str() is the reason."""


class Isolated:
    """fn, called in another process: see `isolated`."""

    def __init__(self, fn: Implementation | str, timeout: float | None = None) -> None:
        self.fn, self.timeout = fn, timeout
        self._sent = _pickled(fn)
        self._worker: BaseProcess | None = None
        self._pipe: Connection | None = None
        self._gradients = False
        self._broken: str | None = None

    def __call__(self, q: Any, k: Any, v: Any, pattern: Any = None, **attributes: Any) -> Any:
        return self._asked((q, k, v, pattern, attributes, None))

    @property
    def vjp(self) -> Callable[..., Any]:
        """Its gradients, if it offers them."""
        try:
            self._started()
        except CrashError:  # a case will say so
            raise AttributeError("vjp") from None
        if not self._gradients:
            raise AttributeError("vjp")
        return lambda q, k, v, pattern, dout, **attributes: self._asked(
            (q, k, v, pattern, attributes, dout)
        )

    def close(self) -> None:
        """End the worker, whatever it does; the next call starts another."""
        if self._pipe is not None:
            self._pipe.close()
        if self._worker is not None:
            _end(self._worker)
        self._worker = self._pipe = None

    def _asked(self, question: Any) -> Any:
        pipe = self._started()
        try:
            pipe.send(question)
            if not self._ready(self.timeout):
                self.close()
                raise TimeoutError
            verdict, answer = pipe.recv()
        except (EOFError, BrokenPipeError, ConnectionResetError):
            raise CrashError(self._epitaph()) from None
        if verdict == "answer":
            return answer
        raise {"unsupported": NotImplementedError, "wrong": AnswerError}.get(verdict, CrashError)(
            answer
        )

    def _started(self) -> Connection:
        """The pipe to a worker that is ready."""
        if self._broken is not None:
            raise CrashError(self._broken)
        if self._pipe is not None:
            return self._pipe
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._worker = context.Process(target=_serve, args=(theirs, self._sent), daemon=True)
        self._worker.start()
        theirs.close()
        weakref.finalize(self, _end, self._worker)
        ready: bool
        try:
            ready, said = self._pipe.recv() if self._ready(START) else (False, "it does not start")
        except (EOFError, ConnectionResetError):  # as it will the next time
            ready, said = False, f"it cannot be loaded: {self._epitaph()}"
        if not ready:
            self.close()
            self._broken = str(said)
            raise CrashError(said)
        self._gradients = bool(said)
        return self._pipe

    def _ready(self, timeout: float | None) -> bool:
        """Whether there is something to read, or nothing will ever be, in that time."""
        assert self._worker is not None
        assert self._pipe is not None
        ready = wait([self._pipe, self._worker.sentinel], timeout)
        if ready and not self._pipe.poll():  # it is gone, though a child of its may hold the pipe
            raise EOFError
        return bool(ready)

    def _epitaph(self) -> str:
        """How the worker ended."""
        assert self._worker is not None
        self._worker.join(END)
        code = self._worker.exitcode
        self.close()
        if code is None or code >= 0:
            return f"its process ended with status {code}"
        return f"its process was killed by {signal.Signals(-code).name} ({signal.strsignal(-code)})"


def isolated(fn: Implementation | str, timeout: float | None = None) -> Isolated:
    """`fn` as an implementation that runs in a process of its own.

    Parameters
    ----------
    fn : callable, or "module:function"
        Importable by its name, or picklable.
    timeout : float, optional
        Seconds for one call; after them the process is killed and TimeoutError raised.

    Raises
    ------
    ValueError
        If another process cannot get hold of fn.

    >>> import sparse_ref as sr
    >>> mine = isolated("sparse_ref:attention")
    >>> sr.check(mine, sr.cases(quick=True, only="full/b1h6g2", options=False)).counts
    {'PASS': 2}
    >>> mine.close()
    """
    return Isolated(fn, timeout)


def _pickled(fn: Implementation | str) -> bytes:
    if isinstance(fn, str) and not all(fn.partition(":")):
        raise ValueError(f"fn must be given as module:function, got {fn!r}")
    try:
        return pickle.dumps(fn)
    except Exception as error:  # whatever its parts raise
        raise ValueError(
            f"fn must be importable by its name, or picklable, to run in another process, "
            f"got {fn!r}: {error}"
        ) from None


def _loaded(sent: bytes) -> Implementation:
    fn = pickle.loads(sent)
    return named(fn) if isinstance(fn, str) else fn  # type: ignore[no-any-return]


def _serve(pipe: Connection, sent: bytes) -> None:
    """The worker: answers until the pipe is closed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the one that asks decides
    try:
        fn = _loaded(sent)
        pipe.send((True, has_gradients(fn)))
    except BaseException as error:  # SystemExit too
        pipe.send((False, f"it cannot be loaded: {type(error).__name__}: {error}"))
        return
    while True:
        try:
            question = pipe.recv()
        except EOFError:
            return
        pipe.send(_judged(fn, question))


def _judged(fn: Implementation, question: Any) -> tuple[str, Any]:
    try:
        found: Any = ask_gradients(fn, *question) if question[-1] is not None else None
        return "answer", tuple(found or ask(fn, *question[:-1]))
    except NotImplementedError as refusal:
        return "unsupported", str(refusal)
    except AnswerError as sentence:
        return "wrong", str(sentence)
    except BaseException as error:  # SystemExit too
        return "error", f"{type(error).__name__}: {error}"


def _end(worker: BaseProcess) -> None:
    """It keeps nothing that is worth waiting for."""
    if worker.is_alive():
        worker.kill()
    worker.join(END)
