"""`make` on a machine that cannot make an environment says so in one line, and leaves nothing behind."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.checkout

ROOT = Path(__file__).parents[2]
READ_BY_MAKE = ["Makefile", "pyproject.toml", "client/pyproject.toml", "requirements/dev.txt"]


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """The files an install starts from, and no .venv."""
    folder = tmp_path / "checkout"
    for name in READ_BY_MAKE:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, folder / name)
    return folder


def python(folder: Path, begins_with: str) -> str:
    """A Python that runs this before what `-c` gives it, and does nothing else."""
    program = folder / "python"
    program.write_text(f'#!/bin/sh\n[ "$1" = -c ] && exec "{sys.executable}" -c "{begins_with}; $2"\nexit 1\n')
    program.chmod(0o700)
    return str(program)


def make(folder: Path, *arguments: str) -> "subprocess.CompletedProcess[str]":
    # Under `make test`, the outer make's flags would tell this one to print which folder it enters.
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MAKE")}
    return subprocess.run(
        ["make", *arguments], cwd=folder, env=environment, capture_output=True, text=True, timeout=60, check=False
    )


@pytest.mark.parametrize("target", ["install", "run"])
@pytest.mark.parametrize(
    ("begins_with", "words"),
    [
        ("import sys; sys.version_info = (3, 10, 14, 'final', 0)", "no Python 3.11 or later"),
        ("import sys; sys.modules['ensurepip'] = None", "lacks the venv module"),
        ("import sys; sys.modules['venv'] = None", "lacks the venv module"),
    ],
)
def test_an_unfit_python_is_refused_in_one_line(
    checkout: Path, tmp_path: Path, target: str, begins_with: str, words: str
) -> None:
    before = sorted(checkout.rglob("*"))
    ended = make(checkout, target, f"PYTHON={python(tmp_path, begins_with)}")
    assert (ended.returncode, ended.stdout) == (2, "")
    assert ended.stderr.count("\n") == 1, ended.stderr
    assert words in ended.stderr
    assert sorted(checkout.rglob("*")) == before


def test_no_python_at_all_is_refused_in_one_line(checkout: Path) -> None:
    before = sorted(checkout.rglob("*"))
    ended = make(checkout, "install", "PYTHON=no-such-python")
    assert (ended.returncode, ended.stdout) == (2, "")
    assert ended.stderr.count("\n") == 1, ended.stderr
    assert "no Python 3.11 or later" in ended.stderr
    assert sorted(checkout.rglob("*")) == before
