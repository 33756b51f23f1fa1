"""The library that ONNX Runtime loads: one exported function that jumps to ours.

`SessionOptions.register_custom_ops_library` takes a file. Where there is a C compiler, three lines
of C are compiled; on Linux x86-64 the file can also be written out byte by byte, which is off
unless asked for, since a hardened system may refuse what no compiler has made.
"""

from __future__ import annotations

import ctypes
import shutil
import struct
import subprocess
import sys
import sysconfig
from pathlib import Path

SOURCE = """\
typedef void *(*entry)(void *, const void *);
static entry ours;
__attribute__((visibility("default"))) void sparse_ref_set(entry f) { ours = f; }
__attribute__((visibility("default"))) void *RegisterCustomOps(void *o, const void *a)
{ return ours ? ours(o, a) : 0; }
"""


def compiler() -> list[str] | None:
    """The command of a C compiler; None if there is none."""
    for name in (sysconfig.get_config_var("CC") or "", "cc", "gcc", "clang"):
        parts = str(name).split()
        if parts and shutil.which(parts[0]):
            return parts[:1]
    return None


def compiled(folder: Path, entry: int) -> Path:
    """The library from three lines of C; raises RuntimeError if they do not compile."""
    command = compiler()
    if command is None:
        raise RuntimeError("there is no C compiler (cc, gcc or clang)")
    source, library = folder / "shim.c", folder / "libsparse_ref.so"
    source.write_text(SOURCE, encoding="ascii")
    run = [*command, "-O1", "-shared", "-fPIC", "-o", str(library), str(source)]
    done = subprocess.run(run, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{run[0]} failed: {done.stderr.strip()}")
    ctypes.CDLL(str(library)).sparse_ref_set(ctypes.c_void_p(entry))
    return library


def written(folder: Path, entry: int) -> Path:
    """The library byte by byte: a shared object whose one function jumps to `entry`."""
    machine = sysconfig.get_platform()
    if sys.platform != "linux" or not machine.endswith("x86_64"):
        raise RuntimeError(f"a library without a compiler is for Linux on x86-64, not {machine}")
    library = folder / "libsparse_ref.so"
    library.write_bytes(_elf(entry))
    return library


def _elf(entry: int) -> bytes:
    """One page to be run (headers, code, symbols), one to be written (.dynamic, as glibc does)."""
    code = b"\x48\xb8" + struct.pack("<Q", entry) + b"\xff\xe0"  # movabs rax, entry; jmp rax
    names = b"\0RegisterCustomOps\0libsparse_ref.so\0"
    header, program, page = 64, 56, 0x1000
    at_code = header + 4 * program
    at_symbols = _aligned(at_code + len(code))
    at_hash = at_symbols + 2 * 24
    at_names = at_hash + 5 * 4
    end = at_names + len(names)
    dynamic = (  # tag and value: SONAME, HASH, STRTAB, SYMTAB, STRSZ, SYMENT, NULL
        (14, 19), (4, at_hash), (5, at_names), (6, at_symbols), (10, len(names)), (11, 24), (0, 0),
    )  # fmt: skip
    size = 16 * len(dynamic)
    segments = (  # type, flags, offset, size, alignment: LOAD r-x, LOAD rw-, DYNAMIC, GNU_STACK
        (1, 5, 0, end, page), (1, 6, page, size, page), (2, 6, page, size, 8),
        (0x6474E551, 6, 0, 0, 16),
    )  # fmt: skip
    image = bytearray(page + size)
    magic = b"\x7fELF\x02\x01\x01" + bytes(9)
    image[:header] = struct.pack(
        "<16sHHIQQQIHHHHHH", magic, 3, 62, 1, 0, header, 0, 0, header, program, 4, 64, 0, 0
    )
    for i, (kind, flags, at, length, aligned) in enumerate(segments):
        start = header + i * program
        image[start : start + program] = struct.pack(
            "<IIQQQQQQ", kind, flags, at, at, at, length, length, aligned
        )
    image[at_code : at_code + len(code)] = code
    symbol = struct.pack("<IBBHQQ", 1, 0x12, 0, 1, at_code, len(code))  # a global function
    image[at_symbols + 24 : at_symbols + 48] = symbol
    image[at_hash:at_names] = struct.pack("<5I", 1, 2, 1, 0, 0)
    image[at_names:end] = names
    image[page:] = b"".join(struct.pack("<QQ", *pair) for pair in dynamic)
    return bytes(image)


def _aligned(offset: int) -> int:
    return (offset + 7) & ~7
