"""A server that cannot start says why in one line that names the setting, exits with 2 and leaves nothing behind."""

import os
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import apsw
import click
import pytest

from service.cli import commands
from service.store.migrate import migrate
from tests.process.starting import CASELOAD, MODE_OBEYING, caseload, refusal, url
from tests.running import ServerProcess

DRY_RUN = ("migrate", "--dry-run")
SERVE = ("serve", "--address", "127.0.0.1:0", "--drain-seconds", "0")
SECRET = "do-not-repeat-me"
OPTIONS = [
    (name, option)
    for name, command in commands.commands.items()
    for option in command.params
    if isinstance(option, click.Option)
]


def migrated(path: Path) -> Path:
    """Makes a database of ours, at rest."""
    migrate(path)
    return path


def changed(path: Path, sql: str) -> Path:
    with closing(apsw.Connection(str(path))) as connection:
        list(connection.execute(sql))
    return path


@pytest.fixture
def modes_restored(tmp_path: Path) -> Iterator[None]:
    """So that what a test forbids itself can be removed after it."""
    yield
    for folder, _, files in os.walk(tmp_path):
        Path(folder).chmod(0o700)
        for file in files:
            (Path(folder) / file).chmod(0o600)


# --- the address ---


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1",
        ":50051",
        "127.0.0.1:65536",
        "127.0.0.1:http",
        "127.0.0.1:٣",
        "[::1]",
        f"unix:{SECRET}:0",
        f"http://{SECRET}:1",
        f"{SECRET}\udcff:0",
    ],
)
def test_an_address_that_is_none_is_refused(tmp_path: Path, address: str) -> None:
    database = url(tmp_path / "caseload.db")
    line = refusal(tmp_path, *SERVE, "--database", database, "--address", address, "--allow-insecure")
    assert line.startswith("--address: ")
    assert SECRET not in line


@pytest.mark.parametrize("address", ["192.0.2.1:0", "0.0.0.0:0", "[::]:0", f"{SECRET}.example:0"])
def test_an_address_beyond_loopback_is_refused_without_allow_insecure(tmp_path: Path, address: str) -> None:
    line = refusal(tmp_path, *SERVE, "--database", url(tmp_path / "caseload.db"), "--address", address)
    assert line.startswith("--address: ")
    assert address.rpartition(":")[0] not in line


def test_an_address_beyond_loopback_is_served_and_warned_about_with_allow_insecure(tmp_path: Path) -> None:
    arguments = ("--address", "0.0.0.0:0", "--allow-insecure")
    with ServerProcess(tmp_path / "caseload.db", *arguments) as server:
        code, log = server.stop()
    assert code == 0
    assert server.address.startswith("0.0.0.0:")
    assert '"level": "warning"' in log.splitlines()[0]
    assert "--allow-insecure" in log.splitlines()[0]


def test_an_address_of_another_machine_is_refused(tmp_path: Path) -> None:
    arguments = ("--address", "192.0.2.1:0", "--allow-insecure")
    line = refusal(tmp_path, *SERVE, "--database", url(tmp_path / "caseload.db"), *arguments)
    assert line.startswith("--address: ")
    assert "192.0.2.1" not in line


# localhost stands for two addresses: one of them is not enough.
@pytest.mark.parametrize(("host", "taken"), [("127.0.0.1", "0.0.0.0"), ("localhost", "127.0.0.1")])
def test_a_port_that_another_program_listens_on_is_refused(tmp_path: Path, host: str, taken: str) -> None:
    with socket.create_server((taken, 0)) as listening:
        port = listening.getsockname()[1]
        line = refusal(tmp_path, *SERVE, "--database", url(tmp_path / "caseload.db"), "--address", f"{host}:{port}")
    assert line.startswith("--address: ")
    assert str(port) not in line


def test_a_port_that_another_caseload_listens_on_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "second"
    folder.mkdir()
    with ServerProcess(tmp_path / "first.db") as server:
        line = refusal(folder, *SERVE, "--database", url(folder / "caseload.db"), "--address", server.address)
    assert line.startswith("--address: ")


# --- the database ---


NO_DATABASES = {
    "postgresql": f"postgresql://user:{SECRET}@host/db",
    "postgres": f"postgres://user:{SECRET}@host/db",
    "two slashes": f"sqlite://{SECRET}.db",
    "no scheme": f"{SECRET}.db",
    "parameters": f"sqlite:///{SECRET}.db?mode=ro",
    "no path": "sqlite:///",
    "missing folder": f"sqlite:///missing-{SECRET}/caseload.db",
    "long name": f"sqlite:///{SECRET * 100}.db",
    "long folder": f"sqlite:///{SECRET * 100}/caseload.db",
    "not UTF-8": f"sqlite:///{SECRET}\udcff.db",
    "a folder": "sqlite:///.",
}


@pytest.mark.parametrize("database", NO_DATABASES.values(), ids=NO_DATABASES)
def test_a_database_that_cannot_be_is_refused(tmp_path: Path, database: str) -> None:
    line = refusal(tmp_path, *SERVE, "--database", database)
    assert line.startswith("--database: ")
    assert SECRET not in line


@pytest.mark.parametrize("what", ["postgresql", "missing folder", "long name"])
@pytest.mark.parametrize("command", [("migrate",), DRY_RUN], ids=" ".join)
def test_migrate_refuses_the_same(tmp_path: Path, command: tuple[str, ...], what: str) -> None:
    line = refusal(tmp_path, *command, "--database", NO_DATABASES[what])
    assert line.startswith("--database: ")
    assert SECRET not in line


def test_a_name_that_means_something_to_sqlite_is_a_file_like_any_other(tmp_path: Path) -> None:
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
def test_a_file_that_is_no_database_of_this_version_is_refused_and_left_as_it_was(
    tmp_path: Path, command: tuple[str, ...], make: Callable[[Path], None], words: str
) -> None:
    make(tmp_path / "caseload.db")
    line = refusal(tmp_path, *command, "--database", url(tmp_path / "caseload.db"))
    assert line.startswith("--database: ")
    assert words in line
    assert str(tmp_path) not in line
    assert SECRET not in line


def test_the_log_another_application_left_in_a_crash_is_left_to_it(tmp_path: Path) -> None:
    path = tmp_path / "theirs.db"
    writes = "PRAGMA journal_mode = wal; CREATE TABLE theirs (x); INSERT INTO theirs VALUES (1)"
    crash = "import apsw, os, sys; c = apsw.Connection(sys.argv[1]); list(c.execute(sys.argv[2])); os._exit(0)"
    subprocess.run([sys.executable, "-c", crash, path, writes], check=True)
    files = [path, Path(f"{path}-wal")]
    before = [file.read_bytes() for file in files]
    ended = caseload(tmp_path, *SERVE, "--database", url(path))
    assert ended.returncode == 2
    assert "another application" in ended.stderr
    assert [file.read_bytes() for file in files] == before


@pytest.mark.usefixtures("modes_restored")
@pytest.mark.parametrize(("command", "mode"), [(SERVE, 0o400), (SERVE, 0o000), (("migrate",), 0o400)])
def test_a_file_that_cannot_be_written_is_refused(tmp_path: Path, command: tuple[str, ...], mode: int) -> None:
    path = migrated(tmp_path / "caseload.db")
    path.chmod(mode)
    line = refusal_obeying_modes(tmp_path, *command, "--database", url(path))
    assert line.startswith("--database: ")
    assert "cannot be written" in line


@pytest.mark.usefixtures("modes_restored")
@pytest.mark.parametrize(("command", "name"), [(SERVE, "caseload.db"), (SERVE, "new.db"), (("migrate",), "new.db")])
def test_a_folder_that_cannot_be_written_is_refused(tmp_path: Path, command: tuple[str, ...], name: str) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    migrated(folder / "caseload.db")
    folder.chmod(0o500)
    line = refusal_obeying_modes(tmp_path, *command, "--database", url(folder / name))
    assert line.startswith("--database: ")
    assert "cannot be written" in line


@pytest.mark.usefixtures("modes_restored")
@pytest.mark.parametrize("command", [SERVE, DRY_RUN], ids=" ".join)
def test_a_folder_that_cannot_be_entered_is_refused(tmp_path: Path, command: tuple[str, ...]) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    folder.chmod(0o000)
    line = refusal_obeying_modes(tmp_path, *command, "--database", url(folder / "caseload.db"))
    assert line.startswith("--database: ")


def refusal_obeying_modes(folder: Path, *arguments: str) -> str:
    return refusal(folder, *arguments, command=MODE_OBEYING)


# --- flags and variables ---


@pytest.mark.parametrize(
    ("flag", "value"),
    [*(("--drain-seconds", value) for value in ("-1", "five", "nan", "inf", "1e300")), ("--grace-seconds", "nan")],
)
def test_a_number_of_seconds_that_is_none_is_refused(tmp_path: Path, flag: str, value: str) -> None:
    line = refusal(tmp_path, *SERVE, "--database", url(tmp_path / "caseload.db"), flag, value)
    assert line.startswith(f"{flag}: ")
    assert value not in line.removeprefix(flag)


NEEDED = {"backup": ["copy.db"], "restore": ["copy.db"], "purge": ["--changes-before", "30d"]}


@pytest.mark.parametrize(
    ("command", "missing"), [("backup", "FILE"), ("restore", "FILE"), ("purge", "--changes-before")]
)
def test_what_a_command_needs_is_named(tmp_path: Path, command: str, missing: str) -> None:
    line = refusal(tmp_path, command, "--database", url(tmp_path / "caseload.db"))
    assert line == f"{missing}: is required"


def test_every_flag_is_also_a_variable() -> None:
    variables = {option.opts[0]: option.envvar for _, option in OPTIONS}
    for flag in ("--dry-run", "--changes-before"):  # are asked for at the moment, and no setting of the place
        assert variables.pop(flag) is None
    assert variables == {flag: "CASELOAD_" + flag.removeprefix("--").replace("-", "_").upper() for flag in variables}


@pytest.mark.parametrize(
    ("command", "option"),
    [pytest.param(*each, id=f"{each[0]} {each[1].opts[0]}") for each in OPTIONS if each[1].envvar],
)
def test_every_variable_is_read(tmp_path: Path, command: str, option: click.Option) -> None:
    variable = str(option.envvar)
    variables = {"CASELOAD_DATABASE": url(tmp_path / "caseload.db"), variable: f"/{SECRET}/"}
    line = refusal(tmp_path, command, *NEEDED.get(command, ()), **variables)
    assert option.opts[0] in line or variable in line
    assert SECRET not in line


def test_an_unknown_variable_is_refused(tmp_path: Path) -> None:
    line = refusal(tmp_path, *SERVE, "--database", url(tmp_path / "caseload.db"), CASELOAD_ADRESS=SECRET)
    assert line.startswith("CASELOAD_ADRESS: ")
    assert SECRET not in line


def test_variables_for_tests_are_let_by(tmp_path: Path) -> None:
    arguments = ("migrate", "--database", url(tmp_path / "caseload.db"))
    assert caseload(tmp_path, *arguments, CASELOAD_TEST_ANYTHING="1").returncode == 0


@pytest.mark.parametrize(
    "arguments",
    [
        (),
        (SECRET,),
        ("serve", f"--no-such-flag={SECRET}"),
        ("serve", f"postgresql://user:{SECRET}@host/db"),
        ("serve", "--address"),
        ("serve", f"--allow-insecure={SECRET}"),
        ("migrate", SECRET),
    ],
    ids=" ".join,
)
def test_a_line_that_is_no_command_is_refused(tmp_path: Path, arguments: tuple[str, ...]) -> None:
    line = refusal(tmp_path, *arguments)
    assert SECRET not in line
    flags = [argument.partition("=")[0] for argument in arguments if argument.startswith("--")]
    assert all(flag in line for flag in flags)


@pytest.mark.parametrize("command", [(), *((name,) for name in commands.commands)], ids=str)
def test_help_is_printed(tmp_path: Path, command: tuple[str, ...]) -> None:
    ended = caseload(tmp_path, *command, "--help")
    assert (ended.returncode, ended.stderr) == (0, "")
    assert ended.stdout.startswith("Usage: ")


def test_the_console_script_is_the_module(tmp_path: Path) -> None:
    script = (str(Path(CASELOAD[0]).with_name("caseload")),)
    ended = caseload(tmp_path, "--version", command=script)
    assert ended.returncode == 0
    assert ended.stdout.startswith("caseload ")
    assert ended.stdout == caseload(tmp_path, "--version").stdout
