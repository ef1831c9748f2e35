"""A start rejects a foreign or unwritable file in one line and does not change it."""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import apsw
import pytest
from caseload_server.config import Config, SettingError
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


NO_PLAIN_FILES = [
    *("sqlite:///:memory:", "sqlite://:memory:", "sqlite::memory:", ":memory:", "sqlite:///data/:MEMORY:"),
    *("sqlite://", "sqlite:///", "sqlite:", "sqlite+pysqlite://", "sqlite+pysqlite:///:memory:"),
    *("file:data.db", "file::memory:?cache=shared", "sqlite:///file:data.db", "sqlite:///file:/tmp/data.db?mode=ro"),
    *("sqlite:///file::memory:?cache=shared", "sqlite:///memdb?mode=memory", "sqlite:///data.db?mode=rwc"),
    *("sqlite:///:data.db", "sqlite:///./:memory:", "sqlite:///data%20base.db", "sqlite:///C:\\data.db"),
    *(
        "sqlite:///~data.db",
        "sqlite:///$NAME.db",
        "sqlite:///data.db/",
        "sqlite:///data.db-wal",
        f"sqlite:///{'x' * 248}",
    ),
    *("sqlite+aiosqlite:///data.db", "sqlite3:///data.db", "jdbc:sqlite:data.db", "sqlite:data.db", "sqlite:/data.db"),
]


@pytest.mark.parametrize("database", NO_PLAIN_FILES)
def test_a_spelling_that_means_no_plain_file_is_rejected_with_the_remedy(database: str) -> None:
    with pytest.raises(SettingError) as refused:
        Config(database=database).check()
    text = str(refused.value)
    assert text.startswith("--database: ")
    assert any(
        remedy in text for remedy in ("sqlite:///", "write ", "with /", "a file", "begin", "the database itself", "247")
    )
    assert "data.db" not in text.replace("sqlite:///data/caseload.db", "")


@pytest.mark.parametrize(
    "command", [SERVE, ("migrate",), DRY_RUN, ("verify",), ("log", "head"), ("export", "-"), ("import", "-")]
)
def test_a_database_in_memory_makes_no_file(tmp_path: Path, command: tuple[str, ...]) -> None:
    for database in ("sqlite:///:memory:", "sqlite:///file::memory:?cache=shared"):
        assert refusal(tmp_path, *command, "--database", database).startswith(
            "--database: names no file: give the path"
        )


@pytest.mark.parametrize("command", ["backup", "restore", "export", "import"])
@pytest.mark.parametrize("file", [":memory:", "file:copy.db?mode=rwc", "sqlite:///copy.db", "s3://bucket/copy"])
def test_a_url_is_no_file(tmp_path: Path, command: str, file: str) -> None:
    migrate(tmp_path / "caseload.db")
    line = refusal(tmp_path, command, file, "--database", url(tmp_path / "caseload.db"))
    assert line == "FILE: must be the path of a file, not a URL or a special name of SQLite"


def test_a_url_of_another_database_is_not_taken_for_a_file_with_parameters() -> None:
    with pytest.raises(SettingError, match=r"--database: must be sqlite:///PATH or postgresql://\.\.\."):
        Config(database="jdbc:postgresql://127.0.0.1/db?user=caseload").check()


@pytest.mark.parametrize("command", ["backup", "restore"])
def test_a_copy_does_not_use_standard_streams(tmp_path: Path, command: str) -> None:
    """A file named - would be no backup that anyone finds."""
    line = refusal(tmp_path, command, "-", "--database", url(tmp_path / "caseload.db"))
    assert line == "FILE: must be a file: only export and import use standard output and input"


@pytest.mark.parametrize("command", ["backup", "restore", "export", "import"])
def test_a_folder_is_no_file(tmp_path: Path, command: str) -> None:
    assert refusal(tmp_path, command, "copies/", "--database", url(tmp_path / "caseload.db")) == "FILE: is not valid"


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
@pytest.mark.parametrize(
    ("command", "mode", "words"),
    [(SERVE, 0o400, "cannot be written"), (SERVE, 0o000, "cannot be read"), (("migrate",), 0o400, "cannot be written")],
)
def test_an_unwritable_file_is_rejected(tmp_path: Path, command: tuple[str, ...], mode: int, words: str) -> None:
    path = migrated(tmp_path / "caseload.db")
    path.chmod(mode)
    line = refusal_obeying_modes(tmp_path, *command, "--database", url(path))
    assert line.startswith("--database: ")
    assert words in line


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
