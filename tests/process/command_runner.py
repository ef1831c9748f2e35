"""Runs `caseload` to its end, and inspects the files that it left."""

import hashlib
import os
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from caseload_server.store import backends

from tests.support.waiting import HUNG_SECONDS

CASELOAD = (sys.executable, "-m", "caseload_server")
SERVE = ("serve", "--address", "127.0.0.1:0", "--drain-seconds", "0")
DRY_RUN = ("migrate", "--dry-run")
SECRET = "do-not-repeat-me"
"""A secret that no line may contain."""
STEPS = sorted(path.stem for path in (Path(backends.__file__).parent / "sqlite" / "migrations").glob("*.sql"))
"""The migrations as `migrate` lists them, the same for both databases."""
RECORD = re.compile(r'^\{"event":"command_(?:started|ended)".*\n', re.MULTILINE)
MODE_OBEYING = (sys.executable, str(Path(__file__).with_name("unprivileged_command.py")))


def url(path: Path) -> str:
    return f"sqlite:///{path}"


def caseload(
    folder: Path, *arguments: str, command: Sequence[str] = CASELOAD, **variables: str
) -> "subprocess.CompletedProcess[str]":
    """Runs the command in the folder, with only these CASELOAD_ variables. Removes its record from standard error."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("CASELOAD_")} | variables
    ended = subprocess.run(
        [*command, *arguments],
        cwd=folder,
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=HUNG_SECONDS,
        check=False,
    )
    ended.stderr = without_record(ended.stderr)
    return ended


def without_record(stderr: str) -> str:
    """Removes the lines that say who ran a command."""
    return RECORD.sub("", stderr)


def contents(folder: Path) -> dict[str, tuple[int, str]]:
    """Every file below the folder with its mode and, if readable, a hash of its content.

    Without the content of -shm files: a server that runs meanwhile writes into its own whenever it reads.
    """
    return {str(path.relative_to(folder)): (path.lstat().st_mode, _digest(path)) for path in folder.rglob("*")}


def _digest(path: Path) -> str:
    has_hash = path.is_file() and not path.name.endswith("-shm") and os.access(path, os.R_OK)
    return hashlib.sha256(path.read_bytes()).hexdigest() if has_hash else ""


def refusal(folder: Path, *arguments: str, command: Sequence[str] = CASELOAD, **variables: str) -> str:
    """Asserts that the start fails like every bad start. Returns its one line."""
    before = contents(folder)
    ended = caseload(folder, *arguments, command=command, **variables)
    assert contents(folder) == before
    assert (ended.returncode, ended.stdout) == (2, ""), ended.stderr
    assert ended.stderr.startswith("caseload: ")
    assert ended.stderr.count("\n") == 1, ended.stderr
    assert ended.stderr.endswith("\n")
    return ended.stderr.removeprefix("caseload: ").rstrip("\n")


def last_line(text: str) -> str:
    return text.splitlines()[-1]
