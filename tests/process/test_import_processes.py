"""An export or import that is interrupted, and the process that reads the file for an import."""

import os
import pty
import signal
import subprocess
import threading
from pathlib import Path
from shlex import quote
from typing import Any

import pytest
from caseload_server.commands.snapshots import open_snapshot
from caseload_server.config import Config
from caseload_server.store import PATIENT, THERAPIST, RelationshipStore
from caseload_server.store.backends.factory import open_store
from caseload_server.store.portability.import_process import read_batches

from tests.process.command_runner import CASELOAD, caseload, last_line, url
from tests.store.store_calls import make
from tests.support.waiting import HUNG_SECONDS, eventually

pytestmark = pytest.mark.usefixtures("unrecorded")

LOOKS = 50
"""How many consecutive samples must find a process asleep until it counts as waiting."""


def test_an_export_ends_when_its_reader_closes(
    tmp_path: Path, database: str, open_stores: list[RelationshipStore]
) -> None:
    open_stores.append(store := open_store(Config(database=database), lambda: 1))
    for number in range(1000):
        make(store, PATIENT, f"p{number}")
    ended = subprocess.run(
        ["sh", "-c", f'"$@" export - --database {quote(database)} | head -c 10', "sh", *CASELOAD],
        capture_output=True,
        text=True,
        check=True,
        timeout=HUNG_SECONDS,
        cwd=tmp_path,
    )
    assert ended.stderr in ("", "caseload: FILE: could not be written: Broken pipe\n")


def unending(folder: Path, target: str) -> "subprocess.Popen[bytes]":
    """An import that has read a whole store except its last line, and waits for input."""
    process = subprocess.Popen(
        # A shell that runs the tests in the background has its children ignore Ctrl-C.
        ["env", "--default-signal=INT", *CASELOAD, "import", "-"],
        cwd=folder,
        env={**os.environ, "CASELOAD_DATABASE": target},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    lines = (folder / "moved.jsonl").read_bytes().splitlines(keepends=True)
    assert process.stdin
    process.stdin.write(b"".join(lines[:-1]))
    process.stdin.flush()
    return process


@pytest.fixture
def many(tmp_path: Path) -> str:
    """The export of a database with more people than one insert adds."""
    source = url(tmp_path / "many.db")
    store = open_store(Config(database=source), lambda: 1)
    for number in range(1500):
        make(store, THERAPIST, f"t{number}")
    store.close()
    assert caseload(tmp_path, "export", "moved.jsonl", "--database", source).returncode == 0
    verified = caseload(tmp_path, "verify", "--database", source)
    return last_line(verified.stdout)


def wait_until_idle(process_id: int) -> None:
    """Waits until the process has read all its input."""
    spent: list[tuple[str, str]] = []

    def is_idle() -> bool:
        """Whether the process slept in each of the last samples and used no CPU between them."""
        fields = state(process_id)
        assert fields
        spent.append((fields[0], fields[11]))
        return len(spent) >= LOOKS and set(spent[-LOOKS:]) == {("S", spent[-1][1])}

    eventually(is_idle)


def state(process_id: int) -> list[str]:
    """The fields of /proc/PID/stat after the name; empty if the process has ended."""
    try:
        fields = Path(f"/proc/{process_id}/stat").read_text().rpartition(")")[2].split()
    except FileNotFoundError:
        return []
    return [] if fields[0] == "Z" else fields


def reader_of(process: "subprocess.Popen[bytes]") -> int:
    """The process that reads the lines of an import."""
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    return int(eventually(lambda: children.read_text().split())[0])


def test_an_import_fails_with_a_message_when_its_reader_process_is_killed(
    tmp_path: Path, many: str, database_url: str
) -> None:
    """The pipe is full at the kill, and its content ends in the middle of a message."""
    process = subprocess.Popen(
        [*CASELOAD, "import", "moved.jsonl"],
        cwd=tmp_path,
        env={**os.environ, "CASELOAD_DATABASE": database_url},
        stderr=subprocess.PIPE,
    )
    reader = reader_of(process)
    process.send_signal(signal.SIGSTOP)
    wait_until_idle(reader)
    os.kill(reader, signal.SIGKILL)
    process.send_signal(signal.SIGCONT)
    _, log = process.communicate(timeout=HUNG_SECONDS)
    line = b"caseload: --database: could not be written, or FILE could not be read\n"
    assert (process.returncode, log) == (2, line)
    again = caseload(tmp_path, "import", "moved.jsonl", CASELOAD_DATABASE=database_url)
    assert (again.returncode, again.stdout) == (0, f"{many}\n")


def test_the_reader_process_ends_when_its_import_is_killed(tmp_path: Path, many: str) -> None:
    """The reader waits for lines that never arrive."""
    assert many
    process = unending(tmp_path, url(tmp_path / "target.db"))
    reader = reader_of(process)
    wait_until_idle(reader)
    process.kill()
    process.wait()
    eventually(lambda: not state(reader))
    process.communicate()


def test_the_reader_process_ends_on_ctrl_c_during_its_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    begun = []

    class Begun(subprocess.Popen[bytes]):
        def __init__(self, *arguments: Any, **settings: Any) -> None:
            super().__init__(*arguments, **settings)
            begun.append(self)
            signal.pthread_kill(threading.get_ident(), signal.SIGINT)

    monkeypatch.setattr(subprocess, "Popen", Begun)
    (tmp_path / "lines").touch()
    with (tmp_path / "lines").open("rb") as lines, pytest.raises(KeyboardInterrupt), read_batches(lines, "0001"):
        pass
    assert [process.returncode for process in begun] == [-signal.SIGKILL]
    assert signal.pthread_sigmask(signal.SIG_BLOCK, ()) == set()


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_an_interrupted_import_leaves_the_database_empty(
    tmp_path: Path, many: str, database_url: str, number: signal.Signals
) -> None:
    process = unending(tmp_path, database_url)
    wait_until_idle(process.pid)
    process.send_signal(number)
    _, log = process.communicate(timeout=HUNG_SECONDS)
    if number != signal.SIGKILL:
        assert (process.returncode, log) == (128 + number, b"caseload: interrupted\n")
    again = caseload(tmp_path, "import", "moved.jsonl", CASELOAD_DATABASE=database_url)
    assert (again.returncode, again.stdout) == (0, f"{many}\n")
    verified = caseload(tmp_path, "verify", CASELOAD_DATABASE=database_url)
    assert (verified.returncode, last_line(verified.stdout)) == (0, many)


def test_progress_is_shown_only_on_a_terminal(tmp_path: Path, many: str) -> None:
    assert many
    for arguments in (
        ("import", "moved.jsonl", "--database", url(tmp_path / "target.db")),
        ("export", "again.jsonl", "--database", url(tmp_path / "target.db")),
        ("verify", "--database", url(tmp_path / "target.db")),
        ("backup", "copy.db", "--database", url(tmp_path / "target.db")),
        ("restore", "copy.db", "--database", url(tmp_path / "restored.db")),
        ("purge", "--deleted-before", "1d", "--database", url(tmp_path / "target.db")),
    ):
        ours, theirs = pty.openpty()
        with os.fdopen(ours, "rb", buffering=0) as terminal:
            ended = subprocess.run(
                [*CASELOAD, *arguments], stderr=theirs, cwd=tmp_path, timeout=HUNG_SECONDS, check=True
            )
            os.close(theirs)
            shown = terminal.read(100_000)
        assert (b"100%" if arguments[0] != "purge" else b"purging") in shown  # there is no record to purge
        assert ended.returncode == 0


def test_an_export_runs_without_database_timeouts(postgres_url: str) -> None:
    with open_snapshot(postgres_url) as transaction:
        for setting in ("statement_timeout", "idle_in_transaction_session_timeout"):
            assert transaction.run(f"SHOW {setting}") == [("0",)]
