"""Commands that only read need no permission to write, and change nothing."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from caseload_server.store.backends.sqlite.migrate import migrate

from tests.process.command_runner import DRY_RUN, MODE_OBEYING, caseload, contents, refusal, url
from tests.process.test_import_processes import unending, wait_until_idle
from tests.support.api_driver import ApiDriver
from tests.support.servers import ServerProcess

pytestmark = pytest.mark.usefixtures("unrecorded")

READING = [("verify",), ("export", "-"), ("log", "head"), DRY_RUN]
NEEDS_LOG = "--database: its -wal or -journal file has content, which SQLite can use only where it can write:"


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """A folder that can be removed after the test, whatever its mode is then."""
    made = tmp_path / "folder"
    made.mkdir()
    yield made
    made.chmod(0o700)


@pytest.fixture
def killed(folder: Path) -> Path:
    """A database whose last write is only in the -wal file of a killed server."""
    with ServerProcess(url(folder / "killed.db")) as server, ApiDriver(server.address) as api:
        api.therapists("t")
        server.kill()
    return folder / "killed.db"


def close(folder: Path, folder_mode: int = 0o500, file_mode: int = 0o400) -> None:
    for file in folder.iterdir():
        file.chmod(file_mode)
    folder.chmod(folder_mode)


@pytest.mark.parametrize(("folder_mode", "file_mode"), [(0o500, 0o400), (0o500, 0o600), (0o700, 0o400)])
def test_a_file_that_cannot_be_written_can_be_read(
    tmp_path: Path, folder: Path, killed: Path, folder_mode: int, file_mode: int
) -> None:
    backup, restored = folder / "backup.db", folder / "restored.db"
    assert caseload(tmp_path, "backup", str(backup), "--database", url(killed)).stdout == "revision 1\n"
    assert caseload(tmp_path, "restore", str(backup), "--database", url(restored)).stdout == "revision 1\n"
    close(folder, folder_mode, file_mode)
    before = contents(folder)
    for path in (backup, restored):  # one of them is in WAL mode
        for number, command in enumerate([*READING, ("backup", f"{path.name}.copy")]):
            ended = caseload(tmp_path, *command, "--database", url(path), command=MODE_OBEYING)
            assert ended.returncode == 0, ended.stderr
            assert number or ended.stdout.startswith("1 store, 1 therapist,")
    again = caseload(tmp_path, "restore", str(backup), "--database", url(tmp_path / "again.db"), command=MODE_OBEYING)
    assert again.stdout == "revision 1\n"
    assert contents(folder) == before


def test_a_log_that_cannot_be_read_is_not_ignored(tmp_path: Path, folder: Path, killed: Path) -> None:
    close(folder)
    for command in [*READING, ("backup", "copy.db")]:
        line = refusal(tmp_path, *command, "--database", url(killed), command=MODE_OBEYING)
        assert line.startswith(NEEDS_LOG)


def test_a_served_file_that_cannot_be_written_can_be_read(tmp_path: Path, folder: Path, killed: Path) -> None:
    with ServerProcess(url(killed)) as server, ApiDriver(server.address) as api:
        api.therapists("u")
        close(folder)
        for command in READING:
            ended = caseload(tmp_path, *command, "--database", url(killed), command=MODE_OBEYING)
            assert (ended.returncode, ended.stderr) == (0, "") or command == DRY_RUN
        verified = caseload(tmp_path, "verify", "--database", url(killed), command=MODE_OBEYING)
        assert verified.stdout.startswith("1 store, 2 therapist,")


def test_a_file_that_cannot_be_read_is_named_so(tmp_path: Path, folder: Path, killed: Path) -> None:
    close(folder, 0o700, 0o000)
    for command in READING:
        line = refusal(tmp_path, *command, "--database", url(killed), command=MODE_OBEYING)
        assert line == "--database: the file cannot be read"


def test_reading_after_a_kill_keeps_the_log(tmp_path: Path, killed: Path) -> None:
    files = [killed, Path(f"{killed}-wal")]
    before = [file.read_bytes() for file in files]
    for command in READING:
        assert caseload(tmp_path, *command, "--database", url(killed)).returncode == 0
    assert [file.read_bytes() for file in files] == before


def test_an_import_that_was_killed_is_undone_and_not_read_in_part(tmp_path: Path, folder: Path, killed: Path) -> None:
    """Its -journal file has what the database file held before."""
    with ServerProcess(url(killed)) as server, ApiDriver(server.address) as api:
        for batch in range(15):
            api.therapists(*(f"many{batch}-{number}" for number in range(100)))
        server.stop()
    exported = caseload(tmp_path, "export", "moved.jsonl", "--database", url(killed))
    assert exported.returncode == 0
    target = folder / "target.db"
    migrate(target)
    process = unending(tmp_path, url(target))
    wait_until_idle(process.pid)
    process.kill()
    process.communicate()
    assert Path(f"{target}-journal").stat().st_size > 0
    close(folder)
    line = refusal(tmp_path, "verify", "--database", url(target), command=MODE_OBEYING)
    assert line.startswith(NEEDS_LOG)
    close(folder, 0o700, 0o600)
    assert caseload(tmp_path, "verify", "--database", url(target)).stdout.startswith("1 store, 0 therapist,")
    assert caseload(tmp_path, "import", "moved.jsonl", "--database", url(target)).returncode == 0
    with ServerProcess(url(target)):
        assert caseload(tmp_path, "verify", "--database", url(target)).stdout.startswith("1 store, 1501 therapist,")


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("closed/copy.db", "cannot be accessed: no permission, or the path is too long"),
        ("x" * 300, "cannot be accessed: no permission, or the path is too long"),
        ("loop", "the file does not exist"),
    ],
    ids=["closed folder", "long name", "loop of links"],
)
def test_a_restore_of_a_file_that_cannot_be_looked_up_names_the_file(tmp_path: Path, name: str, words: str) -> None:
    closed = tmp_path / "closed"
    closed.mkdir(mode=0)
    (tmp_path / "loop").symlink_to("loop")
    try:
        line = refusal(tmp_path, "restore", name, "--database", url(tmp_path / "new.db"), command=MODE_OBEYING)
    finally:
        closed.chmod(0o700)
    assert line == f"FILE: {words}"


def test_an_import_into_a_folder_without_permission_says_so(tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    folder.mkdir(mode=0o500)
    (tmp_path / "export.jsonl").touch()
    target = url(folder / "caseload.db")
    line = refusal(tmp_path, "import", "export.jsonl", "--database", target, command=MODE_OBEYING)
    assert line == "--database: could not be written, or FILE could not be read: no permission"
