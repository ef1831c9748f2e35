"""A server with too low a limit on open files says so, or does not start."""

import json
import sys
from pathlib import Path

import pytest

from tests.process.command_runner import SERVE, refusal, url
from tests.support.servers import ServerProcess

NEEDED = 600
"""Open files that the default settings need."""


def limited(hard: int, soft: int | None = None) -> tuple[str, ...]:
    """The command of a server with these limits on open files."""
    script = f'ulimit -Sn {soft or hard} && ulimit -Hn {hard} && exec "$0" "$@"'
    return ("bash", "-c", script, sys.executable, "-m", "caseload_server")


@pytest.mark.parametrize("allowed", [256, NEEDED - 1])
@pytest.mark.parametrize("workers", ["1", "2"])
def test_a_server_does_not_start_with_fewer_open_files_than_its_settings_need(
    tmp_path: Path, allowed: int, workers: str
) -> None:
    arguments = (*SERVE, "--database", url(tmp_path / "caseload.db"), "--workers", workers)
    line = refusal(tmp_path, *arguments, command=limited(allowed))
    assert line == (
        f"ulimit -n: {allowed} open files are allowed, and {NEEDED} are needed: 400 for the database and the logs, "
        "100 for watches (--max-watches), 100 for calls; "
        "run ulimit -n 65536 first, as root, or set LimitNOFILE=65536 in its systemd unit"
    )


def test_more_watches_need_more_open_files(tmp_path: Path) -> None:
    arguments = (*SERVE, "--database", url(tmp_path / "caseload.db"), "--max-watches", "1000")
    line = refusal(tmp_path, *arguments, command=limited(NEEDED + 899))
    assert "1499 open files are allowed, and 1500 are needed" in line


def test_more_connections_to_postgresql_need_more_open_files(tmp_path: Path) -> None:
    arguments = (*SERVE, "--database", "postgresql://127.0.0.1:1/x", "--pool-size", "50")
    line = refusal(tmp_path, *arguments, command=limited(NEEDED))
    assert "600 open files are allowed, and 700 are needed: 500 for the database and the logs" in line


@pytest.mark.parametrize("soft", [256, NEEDED])
def test_a_server_with_few_open_files_says_how_many_connections_it_has(tmp_path: Path, soft: int) -> None:
    """It raises the soft limit by itself."""
    with ServerProcess(url(tmp_path / "caseload.db"), command=limited(NEEDED, soft)) as server:
        code, log = server.stop()
    events = [json.loads(line) for line in log.splitlines()]
    [said] = [event for event in events if event["event"] == "connections limited by open files"]
    assert (code, said["level"], said["max_connections"], said["setting"]) == (0, "warning", 200, "ulimit -n")


def test_a_server_with_enough_open_files_says_nothing(tmp_path: Path) -> None:
    with ServerProcess(url(tmp_path / "caseload.db"), command=limited(2900, 256)) as server:
        _, log = server.stop()
    assert "open files" not in log
