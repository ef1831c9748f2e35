"""Killed workers: the others continue, no acknowledged write is lost, and no process is left behind."""

import json
import os
import random
import signal
import sys
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from itertools import islice, pairwise
from pathlib import Path

import grpc
import pytest

from tests.observability.metrics_client import wait_for_metrics
from tests.process.acknowledged_writes import Writers, invented, lost, stored_after_restart
from tests.process.command_runner import caseload, url
from tests.process.test_stop import LIVENESS, PATIENT_LOCKS
from tests.process.test_supervisor import health
from tests.process.worker_processes import WorkersServer, is_running, listens
from tests.support.api_driver import ApiDriver, number
from tests.support.servers import ServerProcess, free_address
from tests.support.waiting import HUNG_SECONDS, NEVER_SECONDS, eventually
from tests.support.write_lock import holding_the_lock

KILLS = 6
BEGIN_AT_STOP = (sys.executable, str(Path(__file__).with_name("late_worker_command.py")))


def kill_one_of_four(server: WorkersServer, chance: random.Random) -> None:
    """Sends kill -9 to a random worker and waits for its replacement."""
    victim = chance.choice(sorted(server.workers))
    os.kill(victim, signal.SIGKILL)
    eventually(lambda: victim not in server.workers and len(server.workers) == 4)


def kill_all(server: WorkersServer) -> None:
    workers = server.workers
    for pid in (server.process.pid, *workers):
        os.kill(pid, signal.SIGKILL)
    eventually(lambda: not any(map(is_running, workers)))


def test_kill_9_of_one_or_all_workers_loses_no_acknowledged_write(database_url: str, tmp_path: Path) -> None:
    chance = random.Random(7)
    acknowledged: dict[str, int] = {}
    for attempt in range(2):
        with WorkersServer(database_url, workers=4) as server:
            with Writers(server.address, f"round-{attempt}", threads=12, persistent=True) as writers:
                for _ in range(KILLS // 2):
                    writers.wait_for_more(chance.randrange(5, 60))
                    kill_one_of_four(server, chance)
                writers.wait_for_more(30)
                kill_all(server)
            assert writers.refused == set()
        acknowledged |= writers.acknowledged
        found = stored_after_restart(database_url)
        assert lost(acknowledged, found) == []
        assert invented(acknowledged, found) == []
    verified = caseload(tmp_path, "verify", CASELOAD_DATABASE=database_url)
    assert (verified.returncode, verified.stderr) == (0, "")
    with ServerProcess(database_url) as one, ApiDriver(one.address) as api:
        revisions = [number(change_set.revision) for change_set in api.log()]
    assert revisions == list(range(1, len(revisions) + 1))
    assert len(revisions) > len(acknowledged)


def test_a_killed_worker_is_replaced_and_loses_only_its_own_connections(database_url: str) -> None:
    with WorkersServer(database_url, workers=3) as server:
        with server.caller_of_each() as callers:
            victim, *others = callers
            os.kill(victim, signal.SIGKILL)

            def is_replaced() -> bool:
                for pid in others:
                    callers[pid].send("ListTherapists")
                return len(server.workers - {victim}) == 3

            eventually(is_replaced)
        with server.caller_of_each():
            pass  # the replacement receives connections too
        code, log = server.stop()
    assert code == 0
    [said] = [line for line in map(json.loads, log.splitlines()) if line["event"] == "worker ended, restarting"]
    assert (said["pid"], said["code"], said["level"]) == (victim, -signal.SIGKILL, "warning")


def ends(server: WorkersServer) -> Iterator[tuple[float, int]]:
    """The time of each logged worker exit, and the number of failed starts until then."""
    assert server.process.stderr
    refused = 0
    for line in server.process.stderr:
        refused += line.startswith("caseload: --keys-file: ")
        if '"worker ended, restarting"' in line:
            yield datetime.fromisoformat(json.loads(line)["timestamp"]).timestamp(), refused


def test_a_worker_that_keeps_dying_is_restarted_with_increasing_delays(tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    keys.touch(mode=0o600)
    with WorkersServer(url(tmp_path / "caseload.db"), "--keys-file", str(keys)) as server:
        one, other = sorted(server.workers)
        keys.chmod(0o644)  # no worker can start with such a file
        os.kill(one, signal.SIGKILL)
        times, refused = zip(*islice(ends(server), 5), strict=True)
        assert is_running(other)
        assert refused == (0, 1, 2, 3, 4)
        for (before, after), pause in zip(pairwise(times), (0.2, 0.4, 0.8, 1.6), strict=True):
            assert after - before > pause
        keys.chmod(0o600)
        with server.caller_of_each(asks=lambda api: health(api, LIVENESS)):
            pass
        code, _ = server.stop()
    assert code == 0


@pytest.mark.parametrize("mode", [0o600, 0o644], ids=["it can begin", "it cannot begin"])
def test_a_stop_during_the_restart_of_a_worker_succeeds(tmp_path: Path, mode: int) -> None:
    keys, hold = tmp_path / "keys", tmp_path / "hold"
    keys.touch(mode=0o600)
    environment = {"CASELOAD_TEST_HOLD": str(hold)}
    arguments = ("--keys-file", str(keys))
    with WorkersServer(
        url(tmp_path / "caseload.db"), *arguments, command=BEGIN_AT_STOP, environment=environment
    ) as server:
        hold.touch()
        keys.chmod(mode)
        killed, _ = server.workers
        os.kill(killed, signal.SIGKILL)
        eventually(lambda: len(server.workers - {killed}) == 2)
        code, log = server.stop()
    assert log.count("caseload: --keys-file: ") == (mode == 0o644)  # the replacement read the keys file exactly once
    assert code == 0


def test_workers_end_and_free_the_port_when_the_supervisor_is_killed(tmp_path: Path) -> None:
    arguments = ("--drain-seconds", "60", "--metrics-address", "127.0.0.1:0")
    database = url(tmp_path / "caseload.db")
    with WorkersServer(database, *arguments, workers=3) as server, ApiDriver(server.address) as api:
        workers = server.workers
        api.therapists("ann")
        shared = folder_of_metrics(workers)
        assert shared.is_dir()
        server.kill()
        eventually(lambda: not any(map(is_running, workers)))
        with pytest.raises(grpc.RpcError):
            api.send("ListTherapists")
    assert not shared.exists()
    with WorkersServer(database, "--address", server.address) as again:
        assert again.address == server.address


def folder_of_metrics(workers: Iterable[int]) -> Path:
    """The folder that the workers share."""
    variables = {line for pid in workers for line in Path(f"/proc/{pid}/environ").read_text().split("\0")}
    [folder] = [line for line in variables if line.startswith("PROMETHEUS_MULTIPROC_DIR=")]
    return Path(folder.partition("=")[2])


def test_a_call_in_flight_is_answered_when_the_supervisor_is_killed(database_url: str) -> None:
    metrics = free_address()
    arguments = ("--grace-seconds", str(NEVER_SECONDS), "--metrics-address", metrics)
    with WorkersServer(database_url, *arguments, command=PATIENT_LOCKS) as server, ApiDriver(server.address) as api:
        api.send("ListTherapists")
        workers = server.workers
        with ThreadPoolExecutor() as other, holding_the_lock(database_url):
            call = other.submit(api.therapists, "ann")
            wait_for_metrics(metrics, lambda now: now("in_flight", pool="write") == 1)
            server.kill()
            eventually(lambda: not any(listens(pid, server.address) for pid in workers))
        call.result(HUNG_SECONDS)
        eventually(lambda: not any(map(is_running, workers)))


def test_a_worker_that_does_not_stop_is_killed_and_changes_the_exit_code(tmp_path: Path) -> None:
    with WorkersServer(url(tmp_path / "caseload.db"), "--grace-seconds", "0") as server:
        stuck = min(server.workers)
        os.kill(stuck, signal.SIGSTOP)
        code, _ = server.stop(timeout=HUNG_SECONDS)
        assert not is_running(stuck)
    assert code == 1
