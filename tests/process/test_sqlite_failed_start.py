"""A start rejects a foreign or unwritable file in one line and does not change it."""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import apsw
import pytest
from caseload_server.store.backends.sqlite.migrate import migrate

from tests.process.command_runner import DRY_RUN, MODE_OBEYING, SECRET, SERVE, caseload, refusal, url


def migrated(path: Path) -> Path:
    """Creates a Caseload database that no process has open."""
    migrate(path)
    return path


def changed(path: Path, sql: str) -> Path:
    with closing(apsw.Connection(str(path))) as connection:
        list(connection.execute(sql))
    return path


@pytest.fixture
def modes_restored(tmp_path: Path) -> Iterator[None]:
    """Restores file modes, so that the folder can be removed after the test."""
    yield
    for folder, _, files in os.walk(tmp_path):
        Path(folder).chmod(0o700)
        for file in files:
            (Path(folder) / file).chmod(0o600)


# --- the address ---


def test_a_name_with_a_meaning_in_sqlite_is_an_ordinary_file(tmp_path: Path) -> None:
    assert caseload(tmp_path, "migrate", "--database", "sqlite:///:memory:").returncode == 0
    assert [path.name for path in tmp_path.iterdir()] == [":memory:"]


def of_another_application(path: Path) -> None:
    changed(path, "CREATE TABLE theirs (x)")


def of_another_application_with_a_log(path: Path) -> None:
    of_another_application(path)
    changed(path, "PRAGMA journal_mode = wal")


def of_no_application(path: Path) -> None:
    path.write_text(SECRET * 100)


def newer_than_this_version(path: Path) -> None:
    changed(migrated(path), "INSERT INTO migration VALUES ('9999_later', '')")


def migrated_with_another_text(path: Path) -> None:
    changed(migrated(path), "UPDATE migration SET checksum = 'edited'")


@pytest.mark.parametrize(
    ("command", "make", "words"),
    [
        (SERVE, of_another_application, "another application"),
        (SERVE, of_another_application_with_a_log, "another application"),
        (SERVE, of_no_application, "not a SQLite database"),
        (SERVE, newer_than_this_version, "newer"),
        (SERVE, migrated_with_another_text, "not the one of this version"),
        (("migrate",), of_another_application_with_a_log, "another application"),
        (DRY_RUN, of_another_application_with_a_log, "another application"),
        (DRY_RUN, of_no_application, "not a SQLite database"),
        (DRY_RUN, newer_than_this_version, "newer"),
    ],
)
def test_a_file_of_another_application_or_version_is_rejected_and_unchanged(
    tmp_path: Path, command: tuple[str, ...], make: Callable[[Path], None], words: str
) -> None:
    make(tmp_path / "caseload.db")
    (tmp_path / "caseload.db").chmod(0o600)
    line = refusal(tmp_path, *command, "--database", url(tmp_path / "caseload.db"))
    assert line.startswith("--database: ")
    assert words in line
    assert str(tmp_path) not in line
    assert SECRET not in line


def test_the_log_of_another_applications_crash_stays_unchanged(tmp_path: Path) -> None:
    path = tmp_path / "theirs.db"
    writes = "PRAGMA journal_mode = wal; CREATE TABLE theirs (x); INSERT INTO theirs VALUES (1)"
    crash = "import apsw, os, sys; c = apsw.Connection(sys.argv[1]); list(c.execute(sys.argv[2])); os._exit(0)"
    subprocess.run([sys.executable, "-c", crash, path, writes], check=True)
    files = [path, Path(f"{path}-wal"), Path(f"{path}-shm")]
    for file in files:
        file.chmod(0o600)
    before = [file.read_bytes() for file in files[:2]]
    ended = caseload(tmp_path, *SERVE, "--database", url(path))
    assert ended.returncode == 2
    assert "another application" in ended.stderr
    assert [file.read_bytes() for file in files[:2]] == before


@pytest.mark.usefixtures("modes_restored")
@pytest.mark.parametrize(("command", "mode"), [(SERVE, 0o400), (SERVE, 0o000), (("migrate",), 0o400)])
def test_an_unwritable_file_is_rejected(tmp_path: Path, command: tuple[str, ...], mode: int) -> None:
    path = migrated(tmp_path / "caseload.db")
    path.chmod(mode)
    line = refusal_obeying_modes(tmp_path, *command, "--database", url(path))
    assert line.startswith("--database: ")
    assert "cannot be written" in line


@pytest.mark.usefixtures("modes_restored")
@pytest.mark.parametrize(("command", "name"), [(SERVE, "caseload.db"), (SERVE, "new.db"), (("migrate",), "new.db")])
def test_an_unwritable_folder_is_rejected(tmp_path: Path, command: tuple[str, ...], name: str) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    migrated(folder / "caseload.db")
    folder.chmod(0o500)
    line = refusal_obeying_modes(tmp_path, *command, "--database", url(folder / name))
    assert line.startswith("--database: ")
    assert "cannot be written" in line


@pytest.mark.usefixtures("modes_restored")
@pytest.mark.parametrize("command", [SERVE, DRY_RUN], ids=" ".join)
def test_an_inaccessible_folder_is_rejected(tmp_path: Path, command: tuple[str, ...]) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    folder.chmod(0o000)
    line = refusal_obeying_modes(tmp_path, *command, "--database", url(folder / "caseload.db"))
    assert line.startswith("--database: ")


def refusal_obeying_modes(folder: Path, *arguments: str) -> str:
    return refusal(folder, *arguments, command=MODE_OBEYING)
