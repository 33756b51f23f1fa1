"""Golden files of unknown origin: read whole, or refused in one sentence."""

import json
import os
import random
import re
import shutil
import struct
from dataclasses import replace
from pathlib import Path

import pytest

from sparse_ref.golden import GoldenError, files, load
from tests.golden_sets import seal, seal_sums
from tools.golden.build import build
from tools.golden.files import directory
from tools.golden.plan import plans


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """A golden directory of three cases, one of them inline."""
    place = tmp_path_factory.mktemp("small")
    wanted = [
        "by-hand/causal/b1h1g1-4x3-d1e2/random", "special/full/b1h2g1-0x5-d3e2/random",
        "special/causal/b1h2g1-5x0-d3e2/random",
    ]  # fmt: skip
    cases = [build(plan) for plan in plans() if plan.id in wanted]
    for name, data in directory(cases, wanted[:1], {}).items():
        (place / name).write_bytes(data)
    return place


@pytest.fixture
def copy(small, tmp_path):
    return Path(shutil.copytree(small, tmp_path / "golden"))


def refused(place):
    with pytest.raises(GoldenError) as error:
        load(place)
    return str(error.value).removeprefix(str(place)).lstrip("/")


def truncate(copy, step):
    for path in sorted(copy.iterdir()):
        whole = path.read_bytes()
        for length in range(0, len(whole), step):
            path.write_bytes(whole[:length])
            refused(copy)
        path.write_bytes(whole + b" ")
        refused(copy)
        path.write_bytes(whole)
    assert len(load(copy)) == 3


def flip(copy, step):
    for path in sorted(copy.iterdir()):
        whole = path.read_bytes()
        for bit in range(0, 8 * len(whole), step):
            flipped = bytearray(whole)
            flipped[bit // 8] ^= 1 << bit % 8
            path.write_bytes(flipped)
            refused(copy)
        path.write_bytes(whole)


def test_truncated_files_and_flipped_bits_are_refused(copy):
    truncate(copy, step=37)
    flip(copy, step=331)


@pytest.mark.slow
def test_every_truncation_and_every_flipped_bit_is_refused(copy):
    truncate(copy, step=1)
    flip(copy, step=1)


def fuzz(copy, times, seed):
    """Bytes changed at random, with right hashes: no error but GoldenError, and no crash."""
    rng, whole = random.Random(seed), (copy / "manifest.json").read_bytes()
    blob = copy / "special.safetensors"
    body = blob.read_bytes()
    for _ in range(times):
        manifest = bytearray(whole)
        for _ in range(rng.choice([1, 1, 2, 8])):
            manifest[rng.randrange(len(whole))] = rng.choice(b'0123456789{}[]",:.#b-tx \xff')
        (copy / "manifest.json").write_bytes(manifest)
        seal_sums(copy)
        try_to_load(copy)
    (copy / "manifest.json").write_bytes(whole)
    for _ in range(times):
        data = bytearray(body)
        data[rng.choice([rng.randrange(8), rng.randrange(len(body))])] = rng.randrange(256)
        blob.write_bytes(data)
        seal(copy)
        try_to_load(copy)


def try_to_load(place):
    """Read it or refuse it; what is wrong with a pattern's own fields may be a TypeError."""
    try:
        for case in load(place):
            _ = case.counts
            case.call()
    except (ValueError, TypeError) as sentence:
        if " must " not in str(sentence):
            raise


def test_whatever_is_written_and_sealed_is_read_or_refused(copy):
    fuzz(copy, times=200, seed=0)


@pytest.mark.slow
def test_much_more_is_read_or_refused(copy):
    fuzz(copy, times=3_000, seed=1)


def test_changed_structures_are_refused(copy):
    """Every value of the manifest replaced by one of another type, hashes right."""
    whole = json.loads((copy / "manifest.json").read_text())

    def paths(value, path=()):
        yield path
        if isinstance(value, dict | list):
            for key in value if isinstance(value, dict) else range(len(value)):
                yield from paths(value[key], (*path, key))

    for path in list(paths(whole))[1::5]:
        for other in (None, [], {}, 7, -1, "x", [[]]):
            changed = json.loads(json.dumps(whole))
            at = changed
            for key in path[:-1]:
                at = at[key]
            at[path[-1]] = other
            (copy / "manifest.json").write_text(json.dumps(changed))
            seal_sums(copy)
            try_to_load(copy)


ENTRY = {"dtype": "F64", "shape": [1], "data_offsets": [0, 8]}
HEADERS = {
    "overlap": ({"a": ENTRY, "b": ENTRY}, 8, "must follow each other, got 0 where 8 was due"),
    "hole": ({"a": ENTRY | {"data_offsets": [8, 16]}}, 16, "got 8 where 0 was due"),
    "rest": ({"a": ENTRY}, 24, "tensors must fill the file's 24 bytes, got 8"),
    "short": ({"a": ENTRY}, 4, "'a' must end within 4 bytes, got 8"),
    "shape": ({"a": ENTRY | {"shape": [2]}}, 8, "'a' must be 16 aligned bytes, got [0, 8)"),
    "overflow": ({"a": ENTRY | {"shape": [2**25, 2**25, 2**14]}}, 8, "'a' must be"),
    "vast": ({"a": ENTRY | {"shape": [2**62]}}, 8, "'a' must have extents and offsets of 0 to"),
    "negative": ({"a": ENTRY | {"data_offsets": [-8, 0]}}, 8, "'a' must have extents and offsets"),
    "backwards": ({"a": ENTRY | {"data_offsets": [8, 0]}}, 8, "[begin, end) in order"),
    "bool": ({"a": ENTRY | {"shape": [True]}}, 8, "'a' must have extents and offsets"),
    "dtype": ({"a": ENTRY | {"dtype": "O"}}, 8, "'a' must be of F64, F32 or F16, got O"),
    "type": ({"a": ENTRY | {"dtype": ["F64"]}}, 8, "'a' must be of F64, F32 or F16"),
    "extra": ({"a": ENTRY | {"url": "x"}}, 8, "'a' must have dtype, shape and data_offsets"),
    "metadata": ({"__metadata__": {"a": "b"}}, 0, "must have dtype, shape and data_offsets"),
    "list": ([], 0, "the header must be an object"),
    "axes": ({"a": ENTRY | {"shape": [1] * 9}}, 8, "up to 8 axes"),
    "unaligned": (
        {"a": {"dtype": "F16", "shape": [1], "data_offsets": [0, 2]},
         "b": ENTRY | {"data_offsets": [2, 10]}}, 10, "'b' must be 8 aligned bytes, got [2, 10)",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", HEADERS)
def test_lying_headers_are_refused(name):
    header, size, sentence = HEADERS[name]
    raw = json.dumps(header).encode()
    with pytest.raises(GoldenError, match=re.escape(sentence)):
        files.tensors("blob", struct.pack("<Q", len(raw)) + raw + bytes(size))


@pytest.mark.parametrize("length", [9, 2**31, 2**63, 2**64 - 1])
def test_a_header_beyond_the_file_is_refused(length):
    with pytest.raises(GoldenError, match="the header must end within the file"):
        files.tensors("blob", struct.pack("<Q", length) + b"{}")


@pytest.mark.parametrize(
    ("raw", "sentence"),
    [
        (b'{"a": 1, "a": 2}', "must not have a key twice, got 'a'"),
        (b'{"a": NaN}', "must hold finite numbers, got NaN"),
        (b"[" * 100_000, "must nest at most 200 deep, got 100000"),
        (b'{"a": ' * 300, "must nest at most 200 deep, got 300"),
        (b"\xff{}", "must be JSON in UTF-8"),
        (b"", "must be JSON in UTF-8"),
        (b"1" * 100_000, "must be JSON in UTF-8"),
    ],
)
def test_json_that_is_not_plain_is_refused(raw, sentence):
    with pytest.raises(GoldenError, match=re.escape(sentence)):
        files.parse("here", raw)


@pytest.mark.parametrize(
    "name",
    [
        "../outside",
        "/etc/passwd",
        "a/b.safetensors",
        "..",
        ".",
        "",
        "A",
        "a\x00b",
        "c\\x",
        "a" * 70,
    ],
)
def test_paths_that_lead_elsewhere_are_refused(copy, name):
    manifest = json.loads((copy / "manifest.json").read_text())
    manifest["blobs"] = {name: manifest["blobs"]["special.safetensors"]}
    (copy / "manifest.json").write_text(json.dumps(manifest))
    seal_sums(copy)
    assert "a file name must be lower case letters" in refused(copy) or name in ("..", ".")


def test_links_pipes_devices_and_folders_are_refused(copy, tmp_path):
    blob = copy / "special.safetensors"
    blob.rename(tmp_path / "elsewhere")
    assert (
        refused(copy) == "special.safetensors: must be a readable file: No such file or directory"
    )
    blob.symlink_to(tmp_path / "elsewhere")
    assert refused(copy) == "special.safetensors: must be a plain file, got a symbolic link"
    blob.unlink()
    blob.symlink_to("/dev/zero")
    assert refused(copy) == "special.safetensors: must be a plain file, got a symbolic link"
    blob.unlink()
    os.mkfifo(blob)
    assert refused(copy) == "special.safetensors: must be a plain file"
    blob.unlink()
    blob.mkdir()
    assert "must be a plain file" in refused(copy)


def test_a_directory_that_is_none_is_refused(tmp_path):
    assert (
        refused(tmp_path / "none")
        == "SHA256SUMS: must be a readable file: No such file or directory"
    )


def test_a_format_of_the_future_is_refused(copy):
    manifest = json.loads((copy / "manifest.json").read_text()) | {"format": 2}
    (copy / "manifest.json").write_text(json.dumps(manifest))
    seal_sums(copy)
    assert refused(copy) == "manifest.json: format must be 1"


def test_a_pattern_too_large_for_a_case_is_refused():
    case = load()["tokens/documents/b1h2g1-13x13-d5e3/even"]
    vast = {"kind": "Document", "ids": {"table": [[0, 2**26]], "fill": -1}, "key_ids": None}
    with pytest.raises(ValueError, match="pattern must have tables of at most"):
        _ = replace(case, _pattern=vast).pattern


def test_withdrawn_cases_are_named_and_not_asked(tmp_path):
    gone = {"windows/full/b1h1g1-1x1-d1e1/random": "it was wrong"}
    cases = [build(plan) for plan in plans()[:2]]
    for name, data in directory(cases, [cases[0][0]["id"]], gone).items():
        (tmp_path / name).write_bytes(data)
    golden = load(tmp_path)
    assert (len(golden), golden.withdrawn) == (2, gone)
