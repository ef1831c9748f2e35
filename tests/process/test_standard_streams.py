"""A command whose standard streams are closed, full or without a reader says so, and writes to no other file."""

import os
import subprocess
from pathlib import Path

import pytest

from tests.process.command_runner import CASELOAD, caseload, refusal, url, without_record
from tests.support.api_driver import ApiDriver
from tests.support.servers import ServerProcess
from tests.support.waiting import HUNG_SECONDS

CREATE_KEY = ("key", "create", "--name", "billing", "--permission", "read")
FULL = "standard output: cannot be written: its file system has no space left"


def redirected(folder: Path, redirection: str, *arguments: str, **variables: str) -> "subprocess.CompletedProcess[str]":
    """Runs the command from a shell, with a redirection such as ">&-"."""
    return caseload(folder, *arguments, command=("sh", "-c", f'exec "$@" {redirection}', "sh", *CASELOAD), **variables)


@pytest.mark.parametrize("arguments", [("verify",), ("log", "head"), CREATE_KEY, ("export", "-")])
def test_a_result_that_cannot_be_written_is_a_failure(
    tmp_path: Path, database: str, arguments: tuple[str, ...]
) -> None:
    """Not with exit code 1, with which verify says that a rule is broken."""
    ended = redirected(tmp_path, ">/dev/full", *arguments, CASELOAD_DATABASE=database)
    assert ended.returncode == 2
    assert ended.stderr.replace("FILE: could not", "standard output: cannot") == f"caseload: {FULL}\n"


def test_a_backup_whose_revision_cannot_be_written_is_complete(tmp_path: Path, database: str) -> None:
    arguments = ("backup", "copy.db", "--database", database, "--metrics-file", "backup.prom")
    ended = redirected(tmp_path, ">/dev/full", *arguments)
    assert (ended.returncode, ended.stderr) == (2, f"caseload: {FULL}; the backup is complete\n")
    assert (tmp_path / "backup.prom").exists()
    assert caseload(tmp_path, "verify", "--database", url(tmp_path / "copy.db")).returncode == 0


@pytest.mark.parametrize("arguments", [("verify",), ("export", "-"), CREATE_KEY])
def test_a_closed_standard_output_is_a_failure(tmp_path: Path, database: str, arguments: tuple[str, ...]) -> None:
    ended = redirected(tmp_path, ">&-", *arguments, CASELOAD_DATABASE=database)
    assert ended.returncode == 2
    assert ended.stderr.endswith("be written: Bad file descriptor\n")
    assert ended.stderr.count("\n") == 1


def test_a_reader_that_has_ended_is_a_failure_and_no_broken_rule(database: str) -> None:
    read_end, write_end = os.pipe()
    os.close(read_end)
    command = [*CASELOAD, "verify", "--database", database]
    ended = subprocess.run(command, stdout=write_end, stderr=subprocess.PIPE, timeout=HUNG_SECONDS, check=False)
    os.close(write_end)
    assert ended.returncode == 2
    assert without_record(ended.stderr.decode()) == "caseload: standard output: cannot be written: Broken pipe\n"


@pytest.mark.parametrize("redirection", ["2>&-", "2>/dev/full", "<&- 2>&-"])
def test_a_command_runs_without_standard_error(tmp_path: Path, database: str, redirection: str) -> None:
    ended = redirected(tmp_path, redirection, "export", "-", "--database", database)
    assert ended.returncode == 0
    assert ended.stdout == caseload(tmp_path, "export", "-", "--database", database).stdout


@pytest.mark.parametrize("redirection", ["2>&-", "2>/dev/full"])
def test_the_exit_code_of_a_failure_does_not_need_standard_error(tmp_path: Path, redirection: str) -> None:
    assert redirected(tmp_path, redirection, "verify", "--database", url(tmp_path / "none.db")).returncode == 2


def test_an_import_from_a_closed_standard_input_is_rejected(tmp_path: Path) -> None:
    command = ("sh", "-c", 'exec "$@" <&-', "sh", *CASELOAD)
    line = refusal(tmp_path, "import", "-", "--database", url(tmp_path / "new.db"), command=command)
    assert line == "FILE: line 1: is missing: the file is empty"


def test_a_server_with_closed_standard_streams_serves(tmp_path: Path) -> None:
    command = ("sh", "-c", 'exec "$@" <&- 2>&-', "sh", *CASELOAD)
    with ServerProcess(url(tmp_path / "caseload.db"), command=command) as server, ApiDriver(server.address) as api:
        api.therapists("t1")
        opened = [Path(f"/proc/{server.process.pid}/fd/{number}").readlink() for number in (0, 2)]
        code, _ = server.stop()
    assert code == 0
    assert opened == [Path(os.devnull)] * 2
