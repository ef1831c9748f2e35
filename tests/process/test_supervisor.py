"""`caseload serve --workers`: several processes on one port that start, live and stop as one server."""

import json
import os
import signal
import socket
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import grpc
import pytest
from caseload_server.observability.readiness import READINESS_SERVICES
from grpc_health.v1 import health_pb2, health_pb2_grpc

from tests.observability.metrics_client import numbers
from tests.process.acknowledged_writes import at_last
from tests.process.command_runner import CASELOAD, SECRET, SERVE, caseload, refusal, url
from tests.process.worker_processes import WorkersServer, children, is_running
from tests.security.server_fixture import KeysFile, bearer
from tests.support.api_driver import ApiDriver, full_name
from tests.support.servers import ServerProcess
from tests.support.servers import refusal as refusal_of
from tests.support.waiting import HUNG_SECONDS, NEVER_SECONDS, eventually
from tests.support.watch_reader import WatchReader

IN_A_GROUP = ("setsid", *CASELOAD)
SERVING, NOT_SERVING = health_pb2.HealthCheckResponse.SERVING, health_pb2.HealthCheckResponse.NOT_SERVING


def database(folder: Path) -> str:
    return url(folder / "caseload.db")


def health(api: ApiDriver, service: str) -> int:
    stub: Any = health_pb2_grpc.HealthStub(api.channel)
    return int(stub.Check(health_pb2.HealthCheckRequest(service=service), timeout=HUNG_SECONDS).status)


def test_every_worker_answers_after_the_single_ready_line(database_url: str) -> None:
    with WorkersServer(database_url, workers=3) as server:
        assert len(server.workers) == 3
        with server.caller_of_each() as callers:
            for number, api in enumerate(callers.values()):
                api.therapists(f"t-{number}")
            for api in callers.values():
                assert [one.therapist_id for one in api.send("ListTherapists").therapists] == ["t-0", "t-1", "t-2"]
        server.process.terminate()
        printed, log = server.process.communicate(timeout=HUNG_SECONDS)
    assert server.process.returncode == 0
    assert printed == ""  # the test read the one line for the address
    events = [json.loads(line)["event"] for line in log.splitlines()]
    assert [events.count(event) for event in ("stopping", "stopped")] == [3, 3]


def test_the_supervisor_does_not_load_grpc(tmp_path: Path) -> None:
    with WorkersServer(database(tmp_path)) as server:
        loaded = {
            pid: "cygrpc" in Path(f"/proc/{pid}/maps").read_text() for pid in (server.process.pid, *server.workers)
        }
        assert list(loaded.values()) == [False, True, True]


def test_auto_starts_one_pinned_worker_for_each_available_core(tmp_path: Path) -> None:
    cores = os.sched_getaffinity(0)
    with ServerProcess(database(tmp_path), "--workers", "auto") as server:
        workers = children(server.process.pid)
        used = sorted(core for pid in workers for core in os.sched_getaffinity(pid))
        assert used == (sorted(cores) if len(cores) > 1 else [])


def test_workers_are_not_pinned_when_they_outnumber_cores(tmp_path: Path) -> None:
    cores = os.sched_getaffinity(0)
    with WorkersServer(database(tmp_path), workers=len(cores) + 1) as server:
        assert [os.sched_getaffinity(pid) for pid in server.workers] == [cores] * (len(cores) + 1)


@pytest.mark.parametrize(("first", "second"), [("2", "2"), ("2", "1"), ("1", "2")])
def test_a_second_server_cannot_use_the_port(tmp_path: Path, first: str, second: str) -> None:
    folder = tmp_path / "second"
    folder.mkdir()
    with ServerProcess(database(tmp_path), "--workers", first) as server:
        for address in (server.address, server.address.replace("127.0.0.1", "0.0.0.0")):
            arguments = ("--workers", second, "--address", address, "--allow-insecure", "--database", database(folder))
            assert refusal(folder, *SERVE, *arguments).startswith("--address: ")
        assert server.stop()[0] == 0


def test_workers_do_not_share_the_port_of_another_program(tmp_path: Path) -> None:
    with socket.socket() as sharing:
        sharing.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        sharing.bind(("127.0.0.1", 0))
        sharing.listen()
        address = f"127.0.0.1:{sharing.getsockname()[1]}"
        arguments = ("--workers", "2", "--address", address, "--database", database(tmp_path))
        assert refusal(tmp_path, *SERVE, *arguments).startswith("--address: ")


@pytest.mark.parametrize("workers", ["0", "-1", "two", "1.5", "1025", "9" * 5000, "٣", ""])
def test_an_invalid_number_of_workers_is_rejected(tmp_path: Path, workers: str) -> None:
    line = refusal(tmp_path, *SERVE, "--workers", workers, "--database", database(tmp_path))
    assert line == "--workers: is not valid"


def test_an_error_of_every_worker_is_reported_once(tmp_path: Path) -> None:
    (tmp_path / "keys").write_text(SECRET)
    (tmp_path / "keys").chmod(0o600)
    arguments = ("--workers", "3", "--keys-file", "keys", "--database", database(tmp_path))
    assert refusal(tmp_path, *SERVE, *arguments).startswith("--keys-file: ")
    (tmp_path / "caseload.db").write_text(SECRET * 1000)
    line = refusal(tmp_path, *SERVE, "--workers", "3", "--database", database(tmp_path))
    assert line.startswith("--database: ")
    assert SECRET not in line


def test_a_worker_killed_during_its_start_is_not_reported_as_a_bad_setting(tmp_path: Path) -> None:
    with subprocess.Popen(
        [*CASELOAD, *SERVE, "--workers", "2", "--database", database(tmp_path)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        eventually(lambda: children(process.pid))
        for worker in children(process.pid):
            os.kill(worker, signal.SIGKILL)
        printed, log = process.communicate(timeout=HUNG_SECONDS)
    assert (process.returncode, printed) == (1, "")
    [said] = [json.loads(line) for line in log.splitlines()]
    assert (said["event"], said["level"], said["code"]) == ("worker failed during startup", "error", -9)


def test_a_start_without_enough_files_for_the_workers_fails_at_once(tmp_path: Path) -> None:
    files = ("prlimit", "--nofile=9:9")
    ended = caseload(tmp_path, *SERVE, "--workers", "2", "--database", database(tmp_path), command=(*files, *CASELOAD))
    assert (ended.returncode, ended.stdout) == (2, "")
    assert ended.stderr.startswith("caseload: ulimit -n: 9 open files are allowed")


def test_a_worker_is_restarted_as_soon_as_resources_allow_it(tmp_path: Path) -> None:
    with WorkersServer(database(tmp_path)) as server:
        limit = ["prlimit", "--pid", str(server.process.pid)]
        subprocess.run([*limit, "--nofile=4:4096"], check=True)
        killed, *_ = server.workers
        os.kill(killed, signal.SIGKILL)
        assert server.process.stderr
        assert next(line for line in server.process.stderr if '"worker start failed"' in line)
        subprocess.run([*limit, "--nofile=4096:4096"], check=True)
        eventually(lambda: len(server.workers) == 2)
        assert server.stop()[0] == 0


def test_workers_are_restarted_when_standard_output_has_no_reader(tmp_path: Path) -> None:
    with subprocess.Popen(
        [*CASELOAD, *SERVE, "--workers", "2", "--database", database(tmp_path)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout
        assert process.stderr
        process.stdout.close()
        assert next(line for line in process.stderr if '"all workers are ready"' in line)
        for killed in children(process.pid):
            os.kill(killed, signal.SIGKILL)
            eventually(lambda killed=killed: len(children(process.pid) - {killed}) == 2)  # type: ignore[misc]
        process.terminate()
        process.communicate(timeout=HUNG_SECONDS)
    assert process.returncode == 0


# --- stopping ---


@pytest.mark.parametrize(
    "numbers",
    [[signal.SIGTERM], [signal.SIGINT], [signal.SIGTERM, signal.SIGINT], [signal.SIGTERM, signal.SIGINT] * 1000],
    ids=["SIGTERM", "SIGINT", "both", "a storm"],
)
def test_signals_stop_all_workers(tmp_path: Path, numbers: list[int]) -> None:
    with WorkersServer(database(tmp_path)) as server:
        workers = server.workers
        assert server.stop(*numbers)[0] == 0
        assert not any(map(is_running, workers))


def test_ctrl_c_stops_every_process(tmp_path: Path) -> None:
    # While workers drain, the supervisor handles the stop before one of them ends.
    with WorkersServer(database(tmp_path), "--drain-seconds", "3", command=IN_A_GROUP) as server:
        workers = server.workers
        os.killpg(server.process.pid, signal.SIGINT)
        _, log = server.process.communicate(timeout=HUNG_SECONDS)
        assert not any(map(is_running, workers))
    assert server.process.returncode == 0
    assert "is started again" not in log


def test_a_stop_during_the_start_stops_every_started_worker(tmp_path: Path) -> None:
    for wait in (0.2, 0.5, 0.8, 1.1):
        with subprocess.Popen(
            [*CASELOAD, *SERVE, "--workers", "3", "--database", database(tmp_path)],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
        ) as process:
            time.sleep(wait)
            workers = children(process.pid)
            process.terminate()
            process.communicate(timeout=HUNG_SECONDS)
        assert process.returncode in (0, -signal.SIGTERM)  # -SIGTERM before the process runs Caseload
        assert not any(map(is_running, workers))


def test_draining_workers_answer_and_are_not_ready(tmp_path: Path) -> None:
    with (
        WorkersServer(database(tmp_path), "--drain-seconds", str(NEVER_SECONDS)) as server,
        server.caller_of_each() as callers,
    ):
        server.process.terminate()
        eventually(lambda: all(health(api, READINESS_SERVICES[0]) == NOT_SERVING for api in callers.values()))
        for number, api in enumerate(callers.values()):
            api.therapists(f"t-{number}")
            assert health(api, "") == SERVING
            assert health(api, READINESS_SERVICES[0]) == NOT_SERVING
        # The test does not wait for the rest of the drain.


def test_a_worker_that_gets_sigterm_drains_and_is_replaced(tmp_path: Path) -> None:
    with WorkersServer(database(tmp_path), "--drain-seconds", "5") as server:
        with server.caller_of_each() as callers:
            one, other = callers
            os.kill(one, signal.SIGTERM)
            eventually(lambda: health(callers[one], READINESS_SERVICES[0]) == NOT_SERVING)
            callers[one].therapists("ann")
            eventually(lambda: len(server.workers) == 2 and one not in server.workers)
            callers[other].therapists("bob")
        assert server.stop()[0] == 0


# --- acting as one server ---


def test_a_watch_of_any_worker_sees_the_writes_of_others(database_url: str) -> None:
    with WorkersServer(database_url, workers=3) as server, server.caller_of_each() as callers, ExitStack() as watching:
        followers = [watching.enter_context(WatchReader(api)) for api in callers.values()]
        for follower in followers:
            follower.wait_for(1)
        for number, api in enumerate(callers.values()):
            api.therapists(f"t-{number}")
        for follower in followers:
            follower.wait_through(api.head())
            assert [one.changes[0].therapist_id for one in follower.sets] == ["t-0", "t-1", "t-2"]


def test_capacity_holds_when_callers_of_all_workers_race(database_url: str) -> None:
    patients = [f"p-{number}" for number in range(32)]
    with WorkersServer(database_url, workers=4) as server, server.caller_of_each() as callers:
        [first, *_] = clinics = list(callers.values())
        first.therapists("ann", max_active_patients=10)
        first.patients(*patients)

        def assign(number: int) -> str:
            try:
                at_last(lambda: clinics[number % 4].assign("ann", patients[number]))
            except grpc.RpcError as error:
                return refusal_of(error).reason
            return "assigned"

        with ThreadPoolExecutor(32) as racing:
            outcomes = list(racing.map(assign, range(32)))
        assert sorted(outcomes) == ["THERAPIST_AT_CAPACITY"] * 22 + ["assigned"] * 10


def test_each_worker_reloads_the_keys(tmp_path: Path) -> None:
    keys_file = KeysFile(tmp_path / "keys")
    with (
        WorkersServer(database(tmp_path), "--keys-file", str(keys_file.path)) as server,
        server.caller_of_each(asks=lambda api: health(api, "")) as callers,
    ):
        key = bearer(keys_file.add("late"))

        def is_known(api: ApiDriver) -> bool:
            ask: Any = api.channel.unary_unary(full_name("ListTherapists"))
            try:
                ask(b"", metadata=key, timeout=HUNG_SECONDS)
            except grpc.RpcError as error:
                return refusal_of(error).reason != "UNAUTHENTICATED"
            return True

        for api in callers.values():
            eventually(lambda api=api: is_known(api))  # type: ignore[misc]


def test_the_access_log_has_one_line_for_each_call_of_every_worker(tmp_path: Path) -> None:
    with (
        WorkersServer(database(tmp_path), access_log=str(tmp_path / "access.log")) as server,
        server.caller_of_each() as callers,
    ):
        clinics = list(callers.values())
        clinics[0].therapists(*(f"a-therapist-whose-name-makes-lines-long-{number}" for number in range(200)))
        before = (tmp_path / "access.log").read_text().count("\n")

        def call(number: int) -> None:
            at_last(lambda: clinics[number % 2].send("ListTherapists", page_size=200))

        with ThreadPoolExecutor(8) as calling:
            list(calling.map(call, range(400)))
        lines = [json.loads(line) for line in (tmp_path / "access.log").read_text().splitlines()[before:]]
    assert [len(line["therapist_ids"]) for line in lines if line["code"] == "OK"] == [200] * 400


def test_the_metrics_sum_all_workers_including_ended_ones(tmp_path: Path) -> None:
    with WorkersServer(database(tmp_path), "--metrics-address", "127.0.0.1:0") as server:
        assert server.process.stderr is not None
        started = json.loads(next(line for line in server.process.stderr if '"all workers are ready"' in line))
        page = started["metrics_address"]
        with server.caller_of_each() as callers:
            [killed, *_] = callers
            already = numbers(page)("calls_total", method=full_name("ListTherapists"), code="OK")
            for api in callers.values():
                for _ in range(10):
                    api.send("ListTherapists")
            os.kill(killed, signal.SIGKILL)
            eventually(lambda: len(server.workers) == 2 and killed not in server.workers)
        assert numbers(page)("calls_total", method=full_name("ListTherapists"), code="OK") == already + 20
