"""The files that set a machine up, and the gate itself."""

import re
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tools import check

ROOT = Path(__file__).resolve().parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
PINS = dict(
    re.findall(r"^([\w.-]+)==([\w.]+)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE)
)
EXTRAS = PROJECT["optional-dependencies"]
REQUIREMENTS = PROJECT["dependencies"] + [
    line for name, extra in EXTRAS.items() if name != "all" for line in extra
]


@pytest.mark.parametrize("line", REQUIREMENTS)
def test_every_requirement_is_pinned_to_a_release_it_admits(line):
    requirement = Requirement(line)
    pins = {canonicalize_name(name): version for name, version in PINS.items()}
    assert requirement.specifier.contains(pins[canonicalize_name(requirement.name)])


def test_every_line_of_the_constraints_is_an_exact_pin():
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    assert len(PINS) == sum(not line.startswith("#") for line in lines)


def test_no_requirement_admits_a_newer_torch_than_the_pinned_one():
    torch = Requirement(EXTRAS["torch"][0]).specifier
    release, minor, patch = map(int, PINS["torch"].split("."))
    assert not torch.contains(f"{release}.{minor}.{patch + 1}")
    assert not torch.contains(f"{release}.{minor + 1}.0")


def test_the_gate_runs_every_step_and_names_those_that_failed(capfd):
    def step(name, code):
        return name, [sys.executable, "-c", code]

    failed, table = check.run_all(
        [step("good", "print('one')"), step("bad", "exit(3)"), step("late", "print('two')")]
    )
    assert failed == ["bad"]
    assert [row.split()[:2] for row in table.splitlines()] == [
        ["good", "ok"],
        ["bad", "FAILED"],
        ["late", "ok"],
    ]
    printed = capfd.readouterr().out
    assert printed.split() == ["---", "good", "one", "---", "bad", "---", "late", "two"]


@pytest.mark.parametrize(
    ("chosen", "marks"),
    [
        ({"quick": True, "everything": False}, "not slow and not witness"),
        ({"quick": False, "everything": False}, "not slow"),
        ({"quick": False, "everything": True}, ""),
    ],
)
def test_the_gate_chooses_tests_by_marker(chosen, marks):
    _, command = check.pytest_step(**chosen)
    assert command[-2:] == ["-m", marks]
