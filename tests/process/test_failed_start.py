"""A server that cannot start prints one line that names the setting, exits with 2 and leaves no files."""

import errno
import socket
from pathlib import Path

import click
import pytest
from caseload_server.commands.main import commands
from caseload_server.listening import cannot_listen

from tests.process.command_runner import CASELOAD, DRY_RUN, SECRET, SERVE, caseload, refusal, url
from tests.support import servers
from tests.support.servers import ServerProcess

OPTIONS = [
    (name, option)
    for name, command in commands.commands.items()
    for option in command.params
    if isinstance(option, click.Option)
]


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
def test_an_invalid_address_is_rejected(tmp_path: Path, address: str) -> None:
    database = url(tmp_path / "caseload.db")
    line = refusal(tmp_path, *SERVE, "--database", database, "--address", address, "--allow-insecure")
    assert line.startswith("--address: ")
    assert SECRET not in line


@pytest.mark.parametrize("address", ["192.0.2.1:0", "0.0.0.0:0", "[::]:0", f"{SECRET}.example:0"])
def test_an_address_beyond_loopback_is_rejected_without_allow_insecure(tmp_path: Path, address: str) -> None:
    line = refusal(tmp_path, *SERVE, "--database", url(tmp_path / "caseload.db"), "--address", address)
    assert line.startswith("--address: ")
    assert address.rpartition(":")[0] not in line


def test_an_address_beyond_loopback_is_served_with_a_warning_with_allow_insecure(tmp_path: Path) -> None:
    arguments = ("--address", "0.0.0.0:0", "--allow-insecure")
    with ServerProcess(url(tmp_path / "caseload.db"), *arguments) as server:
        code, log = server.stop()
    assert code == 0
    assert server.address.startswith("0.0.0.0:")
    assert '"level": "warning"' in log.splitlines()[0]
    assert "--allow-insecure" in log.splitlines()[0]


def test_an_address_of_another_machine_is_rejected(tmp_path: Path) -> None:
    arguments = ("--address", "192.0.2.1:0", "--allow-insecure")
    line = refusal(tmp_path, *SERVE, "--database", url(tmp_path / "caseload.db"), *arguments)
    assert line == "--address: cannot listen on this address: it does not belong to this machine"


# localhost has two addresses: one free address is not enough.
@pytest.mark.parametrize(("host", "taken"), [("127.0.0.1", "0.0.0.0"), ("localhost", "127.0.0.1")])
def test_a_port_in_use_by_another_program_is_rejected(tmp_path: Path, host: str, taken: str) -> None:
    with socket.create_server((taken, 0)) as listening:
        port = listening.getsockname()[1]
        line = refusal(tmp_path, *SERVE, "--database", url(tmp_path / "caseload.db"), "--address", f"{host}:{port}")
    assert line == "--address: cannot listen on this address: its port is in use"


def test_the_error_of_a_bind_says_why() -> None:
    assert cannot_listen(PermissionError(errno.EACCES, "")).endswith(": only root may use its port")
    assert cannot_listen(OSError(errno.EAFNOSUPPORT, "")).endswith(": this machine has no IPv6")


def test_a_port_in_use_by_another_caseload_is_rejected(tmp_path: Path) -> None:
    folder = tmp_path / "second"
    folder.mkdir()
    with ServerProcess(url(tmp_path / "first.db")) as server:
        line = refusal(folder, *SERVE, "--database", url(folder / "caseload.db"), "--address", server.address)
    assert line.startswith("--address: ")


@pytest.mark.parametrize("workers", ["1", "2"])
def test_a_machine_that_starts_no_thread_is_named(tmp_path: Path, workers: str) -> None:
    """The limit on memory is one that root has too."""
    migrate = ("migrate", "--database", url(tmp_path / "caseload.db"))
    assert caseload(tmp_path, *migrate).returncode == 0
    command = ("sh", "-c", 'ulimit -v 400000 && exec "$@"', "sh", *CASELOAD)
    ended = caseload(tmp_path, *SERVE, *migrate[1:], "--workers", workers, command=command)
    assert (ended.returncode, ended.stdout) == (2, "")
    assert ended.stderr.splitlines()[-1].startswith("caseload: ulimit -u: no thread can be started: raise this limit")
    assert "Traceback" not in ended.stderr


# --- the database ---


def test_a_deleted_working_directory_is_named(tmp_path: Path) -> None:
    command = ("sh", "-c", 'mkdir gone && cd gone && rmdir ../gone && exec "$@"', "sh", *CASELOAD)
    for arguments in (("verify",), SERVE):
        line = refusal(tmp_path, *arguments, command=command)
        assert line == "--database: the working directory was deleted: give an absolute path"
    (tmp_path / "caseload.db").touch(0o600)
    ended = caseload(tmp_path, "migrate", "--database", url(tmp_path / "caseload.db"), command=command)
    assert ended.returncode == 0


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
def test_an_invalid_database_is_rejected(tmp_path: Path, database: str) -> None:
    line = refusal(tmp_path, *SERVE, "--database", database)
    assert line.startswith("--database: ")
    assert SECRET not in line


@pytest.mark.parametrize("what", ["postgresql", "missing folder", "long name"])
@pytest.mark.parametrize("command", [("migrate",), DRY_RUN], ids=" ".join)
def test_migrate_rejects_an_invalid_database(tmp_path: Path, command: tuple[str, ...], what: str) -> None:
    line = refusal(tmp_path, *command, "--database", NO_DATABASES[what])
    assert line.startswith("--database: ")
    assert SECRET not in line


@pytest.mark.parametrize(
    ("flag", "value"),
    [
        *(("--drain-seconds", value) for value in ("-1", "five", "nan", "inf", "1e300")),
        *(("--grace-seconds", "nan"), ("--max-caller-share", "nan"), ("--max-caller-share", "0")),
    ],
)
def test_an_invalid_number_is_rejected(tmp_path: Path, flag: str, value: str) -> None:
    line = refusal(tmp_path, *SERVE, "--database", url(tmp_path / "caseload.db"), flag, value)
    assert line.startswith(f"{flag}: ")
    assert value not in line.removeprefix(flag)


NEEDED = {"backup": ["copy"], "restore": ["copy"], "export": ["copy"], "import": ["-"]}
NEEDED["purge"] = ["--changes-before", "30d"]


@pytest.mark.parametrize(
    ("command", "missing"), [("backup", "FILE"), ("restore", "FILE"), ("purge", "--deleted-before")]
)
def test_a_missing_argument_is_named(tmp_path: Path, command: str, missing: str) -> None:
    line = refusal(tmp_path, command, "--database", url(tmp_path / "caseload.db"))
    assert line.startswith(f"{missing}: is required")


def test_every_flag_is_also_a_variable() -> None:
    variables = {option.opts[0]: option.envvar for _, option in OPTIONS}
    # These are actions of one run, not settings of the deployment.
    for flag in (
        "--dry-run",
        "--deleted-before",
        "--changes-before",
        "--versions-before",
        "--patient",
        "--therapist",
        "--head",
        "--vacuum",
        "--liveness",
        "--timeout",
    ):
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


def test_an_unknown_variable_is_rejected(tmp_path: Path) -> None:
    line = refusal(tmp_path, *SERVE, "--database", url(tmp_path / "caseload.db"), CASELOAD_ADRESS=SECRET)
    assert line.startswith("CASELOAD_ADRESS: ")
    assert SECRET not in line


def test_variables_for_tests_are_accepted(tmp_path: Path) -> None:
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
def test_an_invalid_command_line_is_rejected(tmp_path: Path, arguments: tuple[str, ...]) -> None:
    line = refusal(tmp_path, *arguments)
    assert SECRET not in line
    flags = [argument.partition("=")[0] for argument in arguments if argument.startswith("--")]
    assert all(flag in line for flag in flags)


@pytest.mark.parametrize("command", [(), *((name,) for name in commands.commands)], ids=str)
def test_help_is_printed(tmp_path: Path, command: tuple[str, ...]) -> None:
    ended = caseload(tmp_path, *command, "--help")
    assert (ended.returncode, ended.stderr) == (0, "")
    assert ended.stdout.startswith("Usage: ")


def test_the_console_script_runs_the_module(tmp_path: Path) -> None:
    script = (str(Path(CASELOAD[0]).with_name("caseload")),)
    ended = caseload(tmp_path, "--version", command=script)
    assert ended.returncode == 0
    assert ended.stdout.startswith("caseload ")
    assert ended.stdout == caseload(tmp_path, "--version").stdout


def test_the_test_helper_reports_the_log_of_a_server_that_never_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(servers, "START_SECONDS", 2)
    silent = ServerProcess("sqlite:///never.db", command=("sh", "-c", "echo its log >&2; exec sleep 1000"))
    with pytest.raises(AssertionError, match=r"^did not start: 2 s went by\nits log$"), silent:
        pass
