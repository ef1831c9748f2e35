"""`caseload export`, `import` and `verify` as an operator runs them."""

import os
import pty
import signal
import stat
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import apsw
import pytest
from caseload_server.commands.export_import_verify import open_snapshot
from caseload_server.config import Config
from caseload_server.store import PATIENT, THERAPIST, RelationshipStore
from caseload_server.store.backends.factory import open_store
from caseload_server.store.portability.import_process import read_batches

from tests.process.acknowledged_writes import Writers
from tests.process.command_runner import CASELOAD, SECRET, caseload, refusal, url
from tests.store.store_calls import make, run
from tests.support.servers import ServerProcess
from tests.support.waiting import HUNG_SECONDS, eventually

pytestmark = pytest.mark.usefixtures("unrecorded")

LOOKS = 50
"""How many consecutive samples must find a process asleep until it counts as waiting."""
NO_FILE = "FILE: the file does not exist or cannot be read"


@pytest.fixture
def database(tmp_path: Path) -> str:
    """The URL of a database with a therapist and a patient."""
    address = url(tmp_path / "source.db")
    store = open_store(Config(database=address), lambda: 1)
    make(store, THERAPIST, "t")
    make(store, PATIENT, "p")
    store.close()
    return address


@pytest.fixture
def open_stores() -> Iterator[list[RelationshipStore]]:
    """Stores that are closed after the test."""
    stores: list[RelationshipStore] = []
    yield stores
    for store in stores:
        store.close()


def last_line(text: str) -> str:
    return text.splitlines()[-1]


def test_served_data_can_be_exported_imported_and_verified(
    tmp_path: Path, database_url: str, postgres_url: str
) -> None:
    target = {"CASELOAD_DATABASE": postgres_url}
    with ServerProcess(database_url) as server, Writers(server.address, "w", threads=2) as writers:
        writers.wait_for(patients=5)
        export = caseload(tmp_path, "export", "moved.jsonl", CASELOAD_DATABASE=database_url)
        assert (export.returncode, export.stdout, export.stderr) == (0, "", "")
        verify = caseload(tmp_path, "verify", CASELOAD_DATABASE=database_url)
        assert (verify.returncode, verify.stderr) == (0, "")
        assert "broken" not in verify.stdout
        server.kill()
    assert stat.S_IMODE((tmp_path / "moved.jsonl").stat().st_mode) == 0o600
    moved = caseload(tmp_path, "import", "moved.jsonl", **target)
    assert (moved.returncode, moved.stderr) == (0, "")
    verified = caseload(tmp_path, "verify", **target)
    assert (verified.returncode, verified.stderr) == (0, "")
    assert last_line(verified.stdout) == last_line(moved.stdout)
    assert last_line(verified.stdout).startswith("digest: sha256:")
    with ServerProcess(postgres_url) as server, Writers(server.address, "again", threads=2) as writers:
        writers.wait_for(patients=2)
        server.kill()
    assert caseload(tmp_path, "verify", **target).returncode == 0


def test_export_and_import_can_use_standard_streams(tmp_path: Path, database: str) -> None:
    target = url(tmp_path / "target.db")
    commands = f"export - --database {database} | {{}} import - --database {target}"
    piped = subprocess.run(
        ["sh", "-c", f"{sys.executable} -m caseload_server {commands.format(f'{sys.executable} -m caseload_server')}"],
        capture_output=True,
        text=True,
        check=True,
        timeout=HUNG_SECONDS,
        cwd=tmp_path,
    )
    assert piped.stderr == ""
    assert caseload(tmp_path, "verify", "--database", target).stdout.endswith(piped.stdout)
    assert stat.S_IMODE((tmp_path / "target.db").stat().st_mode) == 0o600


def test_verify_prints_the_ids_of_a_broken_rule_and_exits_with_1(
    tmp_path: Path, database: str, open_stores: list[RelationshipStore]
) -> None:
    open_stores.append(store := open_store(Config(database=database), lambda: 1))
    run(store, "UPDATE therapist SET active_patient_count = 3")
    ended = caseload(tmp_path, "verify", "--database", database)
    broken, rows, digest = ended.stdout.splitlines()
    assert (ended.returncode, ended.stderr) == (1, "")
    assert broken == "broken: active_patient_count is the number of active assignments: 1 (t)"
    assert rows == "1 store, 1 therapist, 1 patient, 0 assignment, 2 change_set, 2 change, 0 request, 0 purged"
    assert digest.startswith("digest: sha256:")


def test_the_head_of_the_log_survives_copies_and_shows_a_cut_end(
    tmp_path: Path, database_url: str, open_stores: list[RelationshipStore]
) -> None:
    open_stores.append(store := open_store(Config(database=database_url), lambda: 1))
    make(store, THERAPIST, "t")
    kept = caseload(tmp_path, "log", "head", CASELOAD_DATABASE=database_url).stdout.strip()
    assert kept == str(store.log_head())
    make(store, THERAPIST, "u")
    assert caseload(tmp_path, "export", "moved.jsonl", CASELOAD_DATABASE=database_url).returncode == 0
    copy = url(tmp_path / "copy.db")
    assert caseload(tmp_path, "import", "moved.jsonl", "--database", copy).returncode == 0
    for at in (database_url, copy):
        heads = [caseload(tmp_path, "log", "head", CASELOAD_DATABASE=at).stdout.strip(), kept]
        assert (
            caseload(tmp_path, "verify", "--head", heads[0], "--head", heads[1], CASELOAD_DATABASE=at).returncode == 0
        )
    for statement in (
        "DELETE FROM change WHERE revision = 2",
        "DELETE FROM change_set WHERE revision = 2",
        "UPDATE store SET head_revision = 1, head_hash = (SELECT hash FROM change_set)",
        "DELETE FROM request",
    ):
        run(store, statement)
    assert caseload(tmp_path, "verify", "--head", kept, CASELOAD_DATABASE=database_url).returncode == 0
    ended = caseload(tmp_path, "verify", "--head", heads[0], CASELOAD_DATABASE=database_url)
    assert ended.returncode == 1
    assert ended.stdout.splitlines()[0] == "broken: the log contains each head that was kept elsewhere: 1 (2)"


@pytest.mark.parametrize("head", ["", "2", ":", "2:", "2:00", f"x:{'0' * 64}", f"2:{'0' * 63}g", f"2:{'0' * 65}"])
def test_verify_rejects_a_head_in_another_form(tmp_path: Path, database: str, head: str) -> None:
    text = "--head: must be REVISION:HASH, as caseload log head prints it"
    assert refusal(tmp_path, "verify", "--database", database, "--head", head) == text


def test_verify_cannot_compare_a_head_that_was_pruned(tmp_path: Path, database: str) -> None:
    head = caseload(tmp_path, "log", "head", "--database", database).stdout.strip()
    for _ in range(2):
        assert caseload(tmp_path, "purge", "--changes-before", "0d", "--database", database).returncode == 0
    ended = caseload(tmp_path, "verify", "--database", database, "--head", head)
    assert (ended.returncode, "broken" in ended.stdout) == (2, False)
    assert ended.stderr == "caseload: --head: the log was pruned up to revision 3: give a later head\n"


def test_a_cut_that_no_purge_recorded_is_shown_beside_the_heads_that_cannot_be_compared(
    tmp_path: Path, database_url: str, open_stores: list[RelationshipStore]
) -> None:
    """Whoever moved the oldest revision must not hide by it what else they changed."""
    open_stores.append(store := open_store(Config(database=database_url), lambda: 1))
    for name in ("t", "u", "v"):
        make(store, THERAPIST, name)
    heads = [argument for revision in (1, 2) for argument in ("--head", f"{revision}:{'f' * 64}")]
    run(store, "UPDATE store SET oldest_revision = 2")
    ended = caseload(tmp_path, "verify", *heads, CASELOAD_DATABASE=database_url)
    assert (ended.returncode, "the log was pruned up to revision 2" in ended.stderr) == (2, True)
    assert "broken: the log begins after the last revision that a recorded purge erased: 1 (2)" in ended.stdout
    assert "broken: the log contains each head that was kept elsewhere: 1 (2)" in ended.stdout


def test_verify_reports_a_damaged_file(tmp_path: Path) -> None:
    path = tmp_path / "source.db"
    store = open_store(Config(database=url(path)), lambda: 1)
    for number in range(300):
        make(store, THERAPIST, f"t{number}")
    store.close()
    connection = apsw.Connection(str(path))
    [(root,)] = connection.execute("SELECT rootpage FROM sqlite_schema WHERE name = 'therapist_by_status'")
    [(size,)] = connection.execute("PRAGMA page_size")
    connection.close()
    with path.open("r+b") as file:
        file.seek((root - 1) * size + size // 2)
        file.write(bytes(size // 4))
    ended = caseload(tmp_path, "verify", "--database", url(path))
    assert ended.returncode in (1, 2)
    assert "the file is sound" in ended.stdout or ended.stderr.startswith("caseload: --database: ")


def test_an_invalid_export_or_import_is_rejected(tmp_path: Path, database: str) -> None:
    exported = tmp_path / "there.jsonl"
    assert caseload(tmp_path, "export", exported.name, "--database", database).returncode == 0
    missing = url(tmp_path / f"{SECRET}.db")
    in_no_folder = f"{SECRET}/{SECRET}.jsonl"
    for arguments, line in (
        (("export", exported.name, "--database", database), "FILE: the file already exists, or a -wal file"),
        (("export", in_no_folder, "--database", database), "FILE: could not be written"),
        (("export", "new.jsonl", "--database", missing), "--database: the file does not exist"),
        (("verify", "--database", missing), "--database: the file does not exist"),
        (("import", SECRET, "--database", missing), NO_FILE),
        (("import", str(tmp_path), "--database", missing), NO_FILE),
        (("import", "source.db", "--database", missing), "FILE: line 1: is not a JSON object with one name,"),
        (("import", exported.name, "--database", database), "--database: the file already exists, or a -wal file"),
        (("import", exported.name), "--database: the directory of the file does not exist"),
    ):
        assert refusal(tmp_path, *arguments).startswith(line)


def test_an_import_needs_a_migrated_and_empty_postgresql(tmp_path: Path, database: str, postgres_url: str) -> None:
    assert caseload(tmp_path, "export", "moved.jsonl", "--database", database).returncode == 0
    target = {"CASELOAD_DATABASE": postgres_url}
    assert caseload(tmp_path, "import", "moved.jsonl", **target).returncode == 0
    assert refusal(tmp_path, "import", "moved.jsonl", **target) == "--database: is not empty"


def test_an_export_ends_when_its_reader_closes(
    tmp_path: Path, database: str, open_stores: list[RelationshipStore]
) -> None:
    open_stores.append(store := open_store(Config(database=database), lambda: 1))
    for number in range(1000):
        make(store, PATIENT, f"p{number}")
    ended = subprocess.run(
        ["sh", "-c", f"{sys.executable} -m caseload_server export - --database {database} | head -c 10"],
        capture_output=True,
        text=True,
        check=True,
        timeout=HUNG_SECONDS,
        cwd=tmp_path,
    )
    assert ended.stderr in ("", "caseload: FILE: could not be written\n")


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


def test_an_export_runs_without_database_timeouts(tmp_path: Path, postgres_url: str) -> None:
    del tmp_path
    with open_snapshot(postgres_url) as transaction:
        for setting in ("statement_timeout", "idle_in_transaction_session_timeout"):
            assert transaction.run(f"SHOW {setting}") == [("0",)]
