"""`caseload serve --workers`: several processes on one port that start, live and stop as one server."""

import json
import os
import socket
from pathlib import Path

import pytest

from tests.process.starting import SECRET, SERVE, refusal, url
from tests.process.worker_processes import WorkersServer, children
from tests.running import ServerProcess


def database(folder: Path) -> str:
    return url(folder / "caseload.db")


def test_every_worker_answers_once_the_one_ready_line_is_there(database_url: str) -> None:
    with WorkersServer(database_url, workers=3) as server:
        assert len(server.workers) == 3
        with server.caller_of_each() as callers:
            for number, clinic in enumerate(callers.values()):
                clinic.therapists(f"t-{number}")
            for clinic in callers.values():
                assert [one.therapist_id for one in clinic.send("ListTherapists").therapists] == ["t-0", "t-1", "t-2"]
        server.process.terminate()
        printed, log = server.process.communicate(timeout=20)
    assert server.process.returncode == 0
    assert printed == ""  # the one line was read to learn the address
    events = [json.loads(line)["event"] for line in log.splitlines()]
    assert [events.count(event) for event in ("stopping", "stopped")] == [3, 3]


def test_the_process_that_starts_the_workers_loads_no_grpc(tmp_path: Path) -> None:
    with WorkersServer(database(tmp_path)) as server:
        loaded = {
            pid: "cygrpc" in Path(f"/proc/{pid}/maps").read_text() for pid in (server.process.pid, *server.workers)
        }
        assert list(loaded.values()) == [False, True, True]


def test_auto_is_a_worker_for_each_core_it_may_use_and_each_has_its_own(tmp_path: Path) -> None:
    cores = os.sched_getaffinity(0)
    with ServerProcess(database(tmp_path), "--workers", "auto") as server:
        workers = children(server.process.pid)
        used = sorted(core for pid in workers for core in os.sched_getaffinity(pid))
        assert used == (sorted(cores) if len(cores) > 1 else [])


def test_more_workers_than_cores_wander(tmp_path: Path) -> None:
    cores = os.sched_getaffinity(0)
    with WorkersServer(database(tmp_path), workers=len(cores) + 1) as server:
        assert [os.sched_getaffinity(pid) for pid in server.workers] == [cores] * (len(cores) + 1)


@pytest.mark.parametrize(("first", "second"), [("2", "2"), ("2", "1"), ("1", "2")])
def test_a_second_server_is_refused_the_port(tmp_path: Path, first: str, second: str) -> None:
    folder = tmp_path / "second"
    folder.mkdir()
    with ServerProcess(database(tmp_path), "--workers", first) as server:
        for address in (server.address, server.address.replace("127.0.0.1", "0.0.0.0")):
            arguments = ("--workers", second, "--address", address, "--allow-insecure", "--database", database(folder))
            assert refusal(folder, *SERVE, *arguments).startswith("--address: ")
        assert server.stop()[0] == 0


def test_a_program_that_shares_its_port_with_everybody_is_not_joined(tmp_path: Path) -> None:
    with socket.socket() as sharing:
        sharing.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        sharing.bind(("127.0.0.1", 0))
        sharing.listen()
        address = f"127.0.0.1:{sharing.getsockname()[1]}"
        arguments = ("--workers", "2", "--address", address, "--database", database(tmp_path))
        assert refusal(tmp_path, *SERVE, *arguments).startswith("--address: ")


@pytest.mark.parametrize("workers", ["0", "-1", "two", "1.5", "1025", "9" * 5000, "٣", ""])
def test_a_number_of_workers_that_is_none_is_refused(tmp_path: Path, workers: str) -> None:
    line = refusal(tmp_path, *SERVE, "--workers", workers, "--database", database(tmp_path))
    assert line == "--workers: is not valid"


def test_what_no_worker_can_start_with_is_said_once(tmp_path: Path) -> None:
    (tmp_path / "keys").write_text(SECRET)
    (tmp_path / "keys").chmod(0o600)
    arguments = ("--workers", "3", "--keys-file", "keys", "--database", database(tmp_path))
    assert refusal(tmp_path, *SERVE, *arguments).startswith("--keys-file: ")
    (tmp_path / "caseload.db").write_text(SECRET * 1000)
    line = refusal(tmp_path, *SERVE, "--workers", "3", "--database", database(tmp_path))
    assert line.startswith("--database: ")
    assert SECRET not in line
