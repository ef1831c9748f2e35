"""Interrupted commands leave the database unchanged and no partial file."""

import fcntl
import json
import os
import random
import shutil
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from caseload_server.commands.signals import defer_signals
from caseload_server.config import Config
from caseload_server.store import PATIENT
from caseload_server.store.atomic_file import FILE_EXISTS, atomic_file
from caseload_server.store.backends.factory import open_store
from caseload_server.store.backends.protocol import Value
from caseload_server.store.search import KEY_COLUMNS

from tests.conftest import NewDatabase, in_memory
from tests.process.command_runner import CASELOAD, caseload, url
from tests.store.store_calls import delete, make, run
from tests.support.waiting import HUNG_SECONDS

pytestmark = pytest.mark.usefixtures("unrecorded")

INTERRUPTS = [signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT, signal.SIGALRM]
"""The signals that interrupt a command. SIGALRM repeats an interrupt."""
SIGNALS = [signal.SIGINT, signal.SIGTERM, signal.SIGKILL]
of_each_signal = pytest.mark.parametrize("number", SIGNALS, ids=lambda number: number.name)
PATIENTS, PURGED = 6_000, 5_000
HALF_BYTES = PATIENTS * 2000
"""Patients in the database that is copied."""
TRIES = 50


def fill(database: str, patients: int = PATIENTS) -> None:
    """Adds many patients who were deleted long ago."""
    store = open_store(Config(database=database), lambda: 1)
    patient = make(store, PATIENT, "p", annotations=f'{{"note":"{"x" * 4000}"}}')
    delete(store, PATIENT, "p")
    numbers: dict[str, Value] = {"numbers": json.dumps([*range(patients - 1)])}
    for table, columns in (
        ("patient", (*patient._fields, *KEY_COLUMNS)),
        ("patient_name_word", ("patient_id", "word")),
    ):
        names = ", ".join(columns)
        copied = names.replace("patient_id", "'more' || number.atom", 1)
        run(
            store, f"INSERT INTO {table} ({names}) SELECT {copied} FROM {table}, json_each(:numbers) AS number", numbers
        )
    store.close()


@pytest.fixture(scope="module")
def database(new_database: NewDatabase) -> Iterator[str]:
    """The URL of a database that no test changes."""
    with new_database() as filled:
        fill(filled)
        yield filled


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    """A folder with a database, a copy of it, and its export."""
    made = Path(tempfile.mkdtemp(prefix="caseload-interrupts-", dir=in_memory()))
    fill(url(made / "source.db"))
    for command in (["backup", "copy.db"], ["export", "lines.jsonl"]):
        assert caseload(made, *command, "--database", url(made / "source.db")).returncode == 0
    yield made
    shutil.rmtree(made)


def digest(database: str) -> str:
    verified = caseload(Path(), "verify", CASELOAD_DATABASE=database)
    assert verified.returncode == 0, verified.stdout + verified.stderr
    return verified.stdout


Test = Callable[[], bool]


def stopped(
    folder: Path, is_under_way: Test, *arguments: str, undo: Callable[[], None] | None = None
) -> "subprocess.Popen[str]":
    """A run of the command, stopped (SIGSTOP) at some moment of its work.

    Args: undo, what a whole run did; then it is run again where it was over too soon.
    """
    for _ in range(TRIES):
        process = subprocess.Popen(
            # A shell that runs the tests in the background has its children ignore Ctrl-C.
            ["env", "--default-signal=INT", *CASELOAD, *arguments],
            cwd=folder,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        while process.poll() is None and not is_under_way():
            time.sleep(0.001)
        time.sleep(random.uniform(0, 0.01))
        process.send_signal(signal.SIGSTOP)
        if process.returncode is None:
            os.waitid(os.P_PID, process.pid, os.WSTOPPED | os.WEXITED | os.WNOWAIT)
        if undo is None or (process.poll() is None and is_under_way()):
            return process
        process.send_signal(signal.SIGCONT)
        process.communicate(timeout=HUNG_SECONDS)
        undo()
    raise AssertionError("it is always over before it can be stopped")


def interrupted_run(
    folder: Path, number: signal.Signals, is_under_way: Test, *arguments: str, undo: Callable[[], None] | None = None
) -> tuple[int, str, str]:
    """Sends the signal at some moment of the command's work. Returns the exit code and the output."""
    process = stopped(folder, is_under_way, *arguments, undo=undo)
    process.send_signal(number)
    process.send_signal(signal.SIGCONT)
    printed, log = process.communicate(timeout=HUNG_SECONDS)
    return process.returncode, printed, log


def ended_by(number: signal.Signals) -> tuple[int, str]:
    """The expected exit code and standard error."""
    return (-9, "") if number == signal.SIGKILL else (128 + number, "caseload: interrupted\n")


def is_half_done(part: Path) -> bool:
    """Whether the temporary file has some but not all of its content."""
    with suppress(FileNotFoundError):
        return 0 < part.stat().st_size < HALF_BYTES
    return False


def names(folder: Path) -> list[str]:
    return sorted(file.name for file in folder.iterdir())


@of_each_signal
@pytest.mark.parametrize(
    ("command", "file"),
    [
        (("backup", "{}", "--database", url(Path("source.db"))), "target"),
        (("restore", "copy.db", "--database", "sqlite:///{}"), "target.db"),
        (("export", "{}", "--database", url(Path("source.db"))), "target"),
        (("import", "lines.jsonl", "--database", "sqlite:///{}"), "target.db"),
    ],
    ids=["backup", "restore", "export", "import"],
)
def test_an_interrupted_command_leaves_no_partial_file_and_the_next_run_cleans_up(
    folder: Path, tmp_path: Path, command: tuple[str, ...], file: str, number: signal.Signals
) -> None:
    before = digest(url(folder / "source.db"))
    target = tmp_path / file
    arguments = [argument.format(target) for argument in command]
    part = tmp_path / f".{file}.part" / file
    code, printed, log = interrupted_run(folder, number, lambda: is_half_done(part), *arguments, undo=target.unlink)
    assert (code, log, printed) == (*ended_by(number), "")
    assert names(tmp_path) == ([f".{file}.part"] if number == signal.SIGKILL else [])
    assert digest(url(folder / "source.db")) == before
    again = caseload(folder, *arguments)
    assert (again.returncode, again.stderr) == (0, "")
    assert names(tmp_path) == [file]


def test_two_runs_for_one_file_do_not_remove_each_others_temporary_files(folder: Path, tmp_path: Path) -> None:
    """The first run is stopped in the middle of its work and then continued."""
    arguments = ["backup", str(tmp_path / "target"), "--database", url(folder / "source.db")]
    part = tmp_path / ".target.part" / "target"
    process = stopped(folder, lambda: is_half_done(part), *arguments, undo=(tmp_path / "target").unlink)
    try:
        other = caseload(folder, *arguments)
        assert (other.returncode, other.stderr) == (2, "caseload: FILE: another process is writing the file\n")
    finally:
        process.send_signal(signal.SIGCONT)
    printed, _ = process.communicate(timeout=HUNG_SECONDS)
    assert (process.returncode, printed) == (0, "revision 2\n")
    assert names(tmp_path) == ["target"]


def test_the_next_run_removes_the_temporary_file_of_a_killed_run(folder: Path, tmp_path: Path) -> None:
    """A kill between the final link and the cleanup leaves a second link to the same file."""
    target, left = tmp_path / "target", tmp_path / ".target.part"
    arguments = ["backup", str(target), "--database", url(folder / "source.db")]
    assert caseload(folder, *arguments).returncode == 0
    left.mkdir()
    (left / "target").hardlink_to(target)
    again = caseload(folder, *arguments)
    assert (again.returncode, again.stderr) == (2, f"caseload: FILE: {FILE_EXISTS}\n")
    assert names(tmp_path) == ["target"]
    assert target.stat().st_nlink == 1


@pytest.fixture(params=INTERRUPTS, ids=lambda number: number.name)
def interrupt(request: pytest.FixtureRequest) -> Iterator[Callable[[], None]]:
    """Sends this process a signal that interrupts a command."""

    def raise_interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    previous = signal.signal(request.param, raise_interrupt)
    yield lambda: signal.pthread_kill(threading.get_ident(), request.param)
    signal.signal(request.param, previous)


def test_a_signal_in_a_block_that_defers_signals_waits_for_its_end(interrupt: Callable[[], None]) -> None:
    ends = []

    def deferred() -> None:
        with defer_signals():
            interrupt()
            ends.append("reached")

    with pytest.raises(KeyboardInterrupt):
        deferred()
    assert ends == ["reached"]


def test_a_signal_while_the_temporary_folder_is_made_waits_for_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, interrupt: Callable[[], None]
) -> None:
    lock = fcntl.flock

    def interrupted(descriptor: int, operation: int) -> None:
        interrupt()
        lock(descriptor, operation)

    monkeypatch.setattr(fcntl, "flock", interrupted)
    with pytest.raises(KeyboardInterrupt), atomic_file(tmp_path / "target"):
        pass
    assert names(tmp_path) == []


@pytest.mark.parametrize(("end", "left"), [(Path.touch, ["target"]), (Path.unlink, [])], ids=["whole", "failed"])
def test_a_signal_during_the_final_cleanup_waits_for_it(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    interrupt: Callable[[], None],
    end: Callable[[Path], None],
    left: list[str],
) -> None:
    remove = shutil.rmtree

    def interrupted(folder: Path, **settings: Any) -> None:
        interrupt()
        remove(folder, **settings)

    monkeypatch.setattr(shutil, "rmtree", interrupted)
    with pytest.raises(KeyboardInterrupt), atomic_file(tmp_path / "target") as part:
        end(part)
    assert names(tmp_path) == left


def _is_over(due: float) -> bool:
    return time.monotonic() > due


@of_each_signal
def test_an_interrupted_verify_changes_nothing(
    monkeypatch: pytest.MonkeyPatch, database: str, number: signal.Signals
) -> None:
    monkeypatch.setenv("CASELOAD_DATABASE", database)
    began = time.monotonic()
    before = digest(database)
    took = time.monotonic() - began
    for _ in range(TRIES):  # until the signal arrives after the start and before the result
        due = time.monotonic() + random.uniform(0.3, 1) * took
        code, printed, log = interrupted_run(Path(), number, partial(_is_over, due), "verify")
        if code == ended_by(number)[0] and not printed:
            break
    assert (code, log, printed) == (*ended_by(number), "")
    assert digest(database) == before


TRACES = "caseload: the file may still contain traces of erased records: run purge again\n"


def test_an_interrupted_purge_of_a_file_warns_about_remaining_traces(tmp_path: Path) -> None:
    database = url(tmp_path / "source.db")
    fill(database, PURGED)
    store = open_store(Config(database=database), lambda: 1)
    command = ("purge", "--deleted-before", "1d", "--database", database)
    _, _, log = interrupted_run(
        tmp_path, signal.SIGINT, lambda: bool(run(store, "SELECT 1 FROM purged LIMIT 1")), *command
    )
    store.close()
    assert log == f"{TRACES}caseload: interrupted\n"


@of_each_signal
def test_an_interrupted_purge_of_changes_resumes_where_it_stopped(
    new_database: NewDatabase, number: signal.Signals
) -> None:
    sets = 240_000
    with new_database() as database:
        store = open_store(Config(database=database), lambda: 1)
        run(store, "UPDATE store SET head_revision = :sets", {"sets": sets})
        run(
            store,
            "INSERT INTO change_set (revision, committed_us, actor, method, request_id, hash_version)"
            " SELECT key + 1, 1, 'a', 'm', '', 2 FROM json_each(:numbers)",
            {"numbers": json.dumps([*range(sets)])},
        )

        def purged() -> int:
            [(oldest,)] = run(store, "SELECT oldest_revision FROM store")
            return int(oldest)

        command = ("purge", "--changes-before", "1d", "--database", database)
        code, printed, log = interrupted_run(Path(), number, lambda: purged() > 0, *command)
        gone = purged()
        assert 0 < gone < sets
        assert (code, log) == ended_by(number)
        assert printed == ("" if number == signal.SIGKILL else f"{gone} change sets purged\n")
        kept = run(store, "SELECT actor, COUNT(*) FROM change_set GROUP BY actor ORDER BY actor")
        assert kept == [("a", sets - gone), ("cli:purge", gone / 1000)]  # one for each transaction
        again = caseload(Path(), "purge", "--changes-before", "1d", CASELOAD_DATABASE=database)
        assert again.stdout == f"{sets - gone} change sets purged\n"
        store.close()


@of_each_signal
def test_an_interrupted_purge_keeps_its_commits_and_leaves_the_rest_whole(
    monkeypatch: pytest.MonkeyPatch, new_database: NewDatabase, number: signal.Signals
) -> None:
    with new_database() as database:
        monkeypatch.setenv("CASELOAD_DATABASE", database)
        fill(database, PURGED)
        store = open_store(Config(database=database), lambda: 1)

        def purged() -> int:
            [(count,)] = run(store, "SELECT COUNT(*) FROM purged")
            return int(count)

        code, printed, log = interrupted_run(Path(), number, lambda: purged() > 0, "purge", "--deleted-before", "1d")
        gone = purged()
        assert 0 < gone < PURGED
        exit_code, last = ended_by(number)
        assert (code, log.removeprefix(TRACES)) == (exit_code, last)
        assert printed == ("" if number == signal.SIGKILL else f"{gone} patients, 0 therapists, 0 assignments purged\n")
        assert run(store, "SELECT COUNT(*) FROM patient") == [(PURGED - gone,)]
        digest(database)
        again = caseload(Path(), "purge", "--deleted-before", "1d", CASELOAD_DATABASE=database)
        assert again.stdout.startswith(f"{PURGED - gone} patients, 0 therapists, 0 assignments purged\n")
        digest(database)
        store.close()
