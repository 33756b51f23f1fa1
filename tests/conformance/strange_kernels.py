"""Implementations that end their process, or never end: asked in processes of their own."""

import ctypes
import os
import sys
import threading

import numpy as np

import sparse_ref as sr
from sparse_ref.conformance import case


def right(q, k, v, pattern):
    """Nothing strange."""
    return sr.attention(q, k, v, pattern).out.astype(q.dtype)


def with_gradients(q, k, v, pattern):
    """The answer of one that has gradients too."""
    return right(q, k, v, pattern)


with_gradients.vjp = lambda q, k, v, pattern, dout: sr.attention_vjp(q, k, v, pattern, dout)[:3]


def segfaults(q, k, v, pattern):
    """Reads address 0 where there are more keys than queries."""
    if k.shape[2] > q.shape[2]:
        ctypes.string_at(0)
    return right(q, k, v, pattern)


def exits(q, k, v, pattern):
    """Ends without a word."""
    os._exit(3)


def aborts(q, k, v, pattern):
    """As a failed assertion in C does."""
    os.abort()


def leaves(q, k, v, pattern):
    """As a script does."""
    sys.exit("done")


def hangs(q, k, v, pattern):
    """Waits for ever where there are more keys than queries."""
    if k.shape[2] > q.shape[2]:
        threading.Event().wait()
    return right(q, k, v, pattern)


def raises(q, k, v, pattern):
    """An error of the implementation's own."""
    raise ZeroDivisionError("a block of 0")


def refuses(q, k, v, pattern):
    """What it cannot do."""
    raise NotImplementedError("not today")


def tampers(q, k, v, pattern):
    """Makes the oracle agree with it."""
    zero = case.attention(q, k, v, pattern)
    case.attention = lambda *given, **more: type(zero)(0 * zero.out, 0 * zero.lse)
    return np.zeros(zero.out.shape, q.dtype)
