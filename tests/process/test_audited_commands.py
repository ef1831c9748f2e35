"""Commands that copy, export, import or erase data leave a record of who ran them."""

import json
import os
import pwd
import re
import signal
import subprocess
from pathlib import Path
from typing import Any

import click
import pytest
from caseload_server.commands.audited import AuditedCommand
from caseload_server.commands.options import database_option

from tests.process.command_runner import CASELOAD, RECORD, SECRET, SERVE, caseload, refusal, url
from tests.support.waiting import HUNG_SECONDS, eventually

USER = {"user": pwd.getpwuid(os.getuid()).pw_name, "uid": os.getuid()}


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def record(path: Path, command: str) -> list[dict[str, Any]]:
    return [line for line in lines(path) if line["command"] == command]


OWN_FILE = "is a file that another setting or argument names: it needs a file of its own"
COMMANDS: dict[str, tuple[str, ...]] = {
    "migrate": (),
    "backup": ("copy.db",),
    "restore": ("copy.db",),
    "export": ("lines.jsonl",),
    "import": ("lines.jsonl",),
    "purge": ("--deleted-before", "30d"),
}
"""The arguments of each command, in an order in which all succeed."""


def test_each_command_records_its_user_and_its_outcome(tmp_path: Path) -> None:
    log = tmp_path / "access.log"
    for command, arguments in COMMANDS.items():
        database = f"{command}.db" if command in {"restore", "import"} else "caseload.db"
        extra = ("--database", f"sqlite:///{database}", "--access-log", str(log))
        assert caseload(tmp_path, command, *arguments, *extra).returncode == 0
        started, ended = record(log, command)
        assert (started["event"], ended["event"]) == ("command_started", "command_ended")
        assert {name: started[name] for name in USER} == {name: ended[name] for name in USER} == USER
        assert started["pid"] == ended["pid"]
        assert started["arguments"]["database"] == f"sqlite:///{database}"
        assert set(arguments) - {"--deleted-before"} <= set(started["arguments"].values())
        assert (ended["outcome"], "outcome" in started) == ("ok", False)
        assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", started["time"])
    assert log.stat().st_mode & 0o777 == 0o600


def test_without_a_file_the_record_goes_to_standard_error(tmp_path: Path) -> None:
    command = [*CASELOAD, "migrate", "--database", url(tmp_path / "caseload.db")]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=HUNG_SECONDS, check=True)
    assert len(RECORD.findall(ended.stderr)) == 2
    assert RECORD.sub("", ended.stderr) == ""


def test_a_command_that_fails_records_that(tmp_path: Path) -> None:
    log = tmp_path / "access.log"
    ended = caseload(tmp_path, "export", "-", "--database", url(tmp_path / "no.db"), "--access-log", str(log))
    assert ended.returncode == 2
    assert [line.get("outcome") for line in lines(log)] == [None, "failed"]


def test_a_password_is_not_in_the_record(tmp_path: Path) -> None:
    log = tmp_path / "access.log"
    for database in (f"postgresql://ann:{SECRET}@localhost:1/db", f"postgresql://[{SECRET}", f"mysql://ann:{SECRET}@h"):
        ended = caseload(tmp_path, "export", "-", "--access-log", str(log), CASELOAD_DATABASE=database)
        assert ended.returncode == 2
    assert len(lines(log)) == 6
    assert SECRET not in log.read_text()


def test_a_command_that_cannot_be_recorded_does_nothing(tmp_path: Path) -> None:
    target = tmp_path / "caseload.db"
    faults = {"/dev/full": "its file system has no space left", "missing/access.log": "No such file or directory"}
    for log, fault in faults.items():
        ended = caseload(tmp_path, "migrate", "--database", url(target), "--access-log", log)
        assert (ended.returncode, ended.stderr) == (2, f"caseload: --access-log: cannot be written: {fault}\n")
    assert not target.exists()


@pytest.mark.parametrize("log", ["caseload.db", "caseload.db-wal", "copy.db", "link"])
def test_the_record_is_not_written_into_a_file_of_the_command(tmp_path: Path, log: str) -> None:
    """Lines at the end of a database would be lost, or damage it."""
    database = url(tmp_path / "caseload.db")
    caseload(tmp_path, "migrate", "--database", database)
    (tmp_path / "link").symlink_to("caseload.db")
    line = refusal(tmp_path, "backup", "copy.db", "--database", database, "--access-log", log)
    assert line == f"--access-log: {OWN_FILE}"


@pytest.mark.parametrize("file", ["caseload.db", "copy.db"])
def test_the_time_of_a_backup_replaces_no_database(tmp_path: Path, file: str) -> None:
    database = url(tmp_path / "caseload.db")
    caseload(tmp_path, "migrate", "--database", database)
    arguments = ("backup", "copy.db", "--database", database, "--metrics-file", str(tmp_path / file))
    assert refusal(tmp_path, *arguments) == f"--metrics-file: {OWN_FILE}"


@pytest.mark.parametrize("flag", ["--database", "--keys-file"])
def test_the_access_log_of_a_server_is_a_file_of_its_own(tmp_path: Path, flag: str) -> None:
    (tmp_path / "keys").touch(0o600)
    files = {"--database": "caseload.db", "--keys-file": "keys"}
    arguments = ("--database", "sqlite:///caseload.db", "--keys-file", "keys")
    assert refusal(tmp_path, *SERVE, *arguments, "--access-log", files[flag]) == f"--access-log: {OWN_FILE}"


@pytest.mark.parametrize(("code", "outcome"), [(0, "ok"), (1, "failed"), (2, "failed"), (130, "interrupted")])
def test_a_command_that_exits_early_records_its_outcome(tmp_path: Path, code: int, outcome: str) -> None:
    @click.command(cls=AuditedCommand)
    @database_option
    def early(database: str) -> None:  # noqa: ARG001 - the record has it
        raise click.exceptions.Exit(code)

    log = tmp_path / "access.log"
    assert early.main(["--access-log", str(log)], standalone_mode=False) == code
    assert [line.get("outcome") for line in lines(log)] == [None, outcome]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_an_ended_command_has_left_its_first_line(tmp_path: Path, number: int) -> None:
    log = tmp_path / "access.log"
    command = [*CASELOAD, "import", "-", "--database", url(tmp_path / "new.db"), "--access-log", str(log)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
        eventually(lambda: lines(log))  # it waits for its input
        process.send_signal(number)
        process.wait(HUNG_SECONDS)
    outcomes = [line.get("outcome") for line in lines(log)]
    assert outcomes == ([None] if number == signal.SIGKILL else [None, "interrupted"])
