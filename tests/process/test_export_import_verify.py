"""`caseload export`, `import` and `verify` as an operator runs them."""

import stat
import subprocess
from contextlib import closing
from pathlib import Path
from shlex import quote

import apsw
import pytest
from caseload_server.config import Config
from caseload_server.store import THERAPIST, RelationshipStore
from caseload_server.store.backends.factory import open_store
from caseload_server.store.backends.migrations import migrations
from caseload_server.store.backends.sqlite import migrate as sqlite_migrate

from tests.process.acknowledged_writes import Writers
from tests.process.command_runner import CASELOAD, SECRET, caseload, last_line, refusal, url
from tests.store.store_calls import make, run
from tests.support.servers import ServerProcess
from tests.support.waiting import HUNG_SECONDS

pytestmark = pytest.mark.usefixtures("unrecorded")

NO_FILE = "FILE: the file does not exist or cannot be read"


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


def run_in_shell(folder: Path, commands: str) -> "subprocess.CompletedProcess[str]":
    """Runs shell commands in a folder. In them, "$@" is the caseload command."""
    command = ["sh", "-c", commands, "sh", *CASELOAD]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=HUNG_SECONDS, check=False)


def test_export_and_import_can_use_standard_streams(tmp_path: Path, database: str) -> None:
    target = url(tmp_path / "target.db")
    commands = f'"$@" export - --database {quote(database)} | "$@" import - --database {quote(target)}'
    piped = run_in_shell(tmp_path, commands)
    assert (piped.returncode, piped.stderr) == (0, "")
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
    assert rows == (
        "1 store, 1 therapist, 1 patient, 0 same_person, 0 assignment, 2 change_set, 2 change, 0 therapist_version,"
        " 0 patient_version, 0 assignment_version, 0 request, 0 purged"
    )
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
    """A moved oldest revision must not hide other changes."""
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
    [(root,)] = connection.execute("SELECT rootpage FROM sqlite_schema WHERE name = 'therapist_by_live_status'")
    [(size,)] = connection.execute("PRAGMA page_size")
    connection.close()
    with path.open("r+b") as file:
        file.seek((root - 1) * size + size // 2)
        file.write(bytes(size // 4))
    ended = caseload(tmp_path, "verify", "--database", url(path))
    assert ended.returncode in (1, 2)
    assert "the file is sound" in ended.stdout or ended.stderr.startswith("caseload: --database: ")


UNREADABLE = {
    "UPDATE change_set SET actor = CAST(x'ff41' AS TEXT)": [
        *("each text in change_set is valid UTF-8", "each text in the change log is valid UTF-8"),
    ],
    "UPDATE therapist SET display_name = CAST(x'ff41' AS TEXT)": ["each text in therapist is valid UTF-8"],
    "UPDATE therapist_name_word SET therapist_id = CAST(x'ff41' AS TEXT)": [
        *("each therapist_id in therapist_name_word exists in therapist", "therapist_name_word matches the records"),
    ],
    "DELETE FROM store": ["the table store has one row"],
}


@pytest.mark.parametrize(("statement", "rules"), UNREADABLE.items(), ids=range(len(UNREADABLE)))
def test_verify_reports_what_it_cannot_read(tmp_path: Path, database: str, statement: str, rules: list[str]) -> None:
    """The other checks still run."""
    connection = apsw.Connection(str(tmp_path / "source.db"))
    connection.execute("PRAGMA foreign_keys = OFF")
    connection.execute(statement)
    connection.execute("UPDATE patient SET active_therapist_count = 7")
    connection.close()
    ended = caseload(tmp_path, "verify", "--database", database)
    assert (ended.returncode, ended.stderr) == (1, "")
    broken = [line.split(": ")[1] for line in ended.stdout.splitlines() if line.startswith("broken: ")]
    assert {*rules, "active_therapist_count is the number of active assignments"} <= {*broken}


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
        (("import", "source.db", "--database", missing), "FILE: line 1: is a SQLite database: use caseload restore"),
        (("import", exported.name, "--database", database), "--database: is not empty"),
        (("import", exported.name), "--database: the directory of the file does not exist"),
    ):
        assert refusal(tmp_path, *arguments).startswith(line)


def test_an_import_needs_a_migrated_and_empty_postgresql(tmp_path: Path, database: str, postgres_url: str) -> None:
    assert caseload(tmp_path, "export", "moved.jsonl", "--database", database).returncode == 0
    target = {"CASELOAD_DATABASE": postgres_url}
    assert caseload(tmp_path, "import", "moved.jsonl", **target).returncode == 0
    assert refusal(tmp_path, "import", "moved.jsonl", **target) == "--database: is not empty"


def test_a_backup_of_an_older_version_is_restored_and_migrated_before_it_is_read(tmp_path: Path) -> None:
    backup, restored = tmp_path / "backup.db", url(tmp_path / "restored.db")
    sqlite_migrate.migrate(backup, migrations("sqlite")[:1])
    with closing(apsw.Connection(str(backup))) as older:
        older.pragma("journal_mode", "delete")
    for arguments in (("verify",), ("export", "lines"), ("log", "head")):
        line = refusal(tmp_path, *arguments, "--database", url(backup))
        assert line.endswith("If it is a backup, restore it first, and migrate the restored file")
    for arguments in (("restore", "backup.db"), ("migrate",), ("verify",), ("export", "lines")):
        ended = caseload(tmp_path, *arguments, "--database", restored)
        assert ended.returncode == 0, ended.stderr


@pytest.mark.parametrize("command", [("migrate",), None], ids=["migrated", "without tables"])
def test_an_import_fills_the_migrated_file_of_the_servers_user(
    tmp_path: Path, database: str, command: tuple[str] | None
) -> None:
    """The file keeps its owner and mode, though root imports."""
    target = tmp_path / "target.db"
    assert caseload(tmp_path, "export", "moved.jsonl", "--database", database).returncode == 0
    if command is None:
        target.touch(0o600)
        line = refusal(tmp_path, "import", "moved.jsonl", "--database", url(target))
        assert line == "--database: its schema is not up to date: run caseload migrate"
        return
    assert caseload(tmp_path, *command, "--database", url(target)).returncode == 0
    with ServerProcess(url(target)):
        line = refusal(tmp_path, "import", "moved.jsonl", "--database", url(target))
        assert line == "--database: is served: stop its instances first"
    target.chmod(0o660)
    before = target.stat()
    assert caseload(tmp_path, "import", "moved.jsonl", "--database", url(target)).returncode == 0
    after = target.stat()
    assert (after.st_ino, after.st_mode, after.st_uid) == (before.st_ino, before.st_mode, before.st_uid)
    assert {path.name for path in tmp_path.iterdir()} == {"source.db", "target.db", "moved.jsonl"}


@pytest.mark.parametrize("pack", ["gzip -c moved.jsonl", "cat moved.jsonl moved.jsonl"])
def test_an_import_from_a_pipe_reads_gzip_and_rejects_a_second_export(tmp_path: Path, database: str, pack: str) -> None:
    assert caseload(tmp_path, "export", "moved.jsonl", "--database", database).returncode == 0
    lines = len((tmp_path / "moved.jsonl").read_text().splitlines())
    command = f'{pack} | "$@" import - --database {quote(url(tmp_path / "target.db"))}'
    ended = run_in_shell(tmp_path, command)
    if pack.startswith("gzip"):
        assert (ended.returncode, ended.stderr) == (0, "")
    else:
        text = f"caseload: FILE: line {lines + 1}: follows the line that ends the export\n"
        assert (ended.returncode, ended.stderr) == (2, text)
