"""Measures a failover: a primary with a synchronous standby, two servers, and sixteen writing callers.

python -m benchmarks.failover   the primary is killed, the standby promoted
    --standby-stopped           the standby is stopped instead, and restarted
    --asynchronous              the standby replicates asynchronously and lags: shows that lost writes are detected
    --seconds N                 seconds of load before and after

Prints a table. Exit code 1 when a guarantee is broken, which the table marks; 2 without PostgreSQL.
"""

import argparse
import itertools
import os
import subprocess
import sys
import threading
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, Final, NamedTuple

import grpc
from caseload.v1 import resources_pb2, therapist_service_pb2_grpc
from caseload.v1 import therapist_service_pb2 as pb
from google.rpc import error_details_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_status import rpc_status

from benchmarks.servers import Server
from tests.support.postgres.cluster import HOST, SAFE, Cluster, NoPostgres

WRITERS, READERS = 16, 2
GAP_SECONDS: Final = 2.0
"""The guarantee: the longest time without an acknowledged write, in seconds."""
NOT_READY_SECONDS, READY_SECONDS = 10.0, 5.0
"""The guarantee: seconds until readiness falls after a loss of the database, and recovers after its return."""
CALL_SECONDS: Final = 4.0
"""The deadline of a call."""
RETRY_SECONDS: Final = 30.0
"""How long a caller retries a call."""
LEAST_PAUSE_SECONDS: Final = 0.02
LATE_SECONDS: Final = 0.5
"""A call that ends later than this after its deadline counts as late; less is scheduling noise."""
PROBES, PROBE_SECONDS = 3, 0.1
"""How many probes fail, and at which interval, until the operator declares the primary dead."""
_SAFE_TO_REPEAT: Final = {grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED}
_READINESS: Final = "caseload.v1.TherapistService"
_CHANNEL_OPTIONS: Final = [("grpc.enable_retries", 0)]  # the callers retry themselves and count the attempts


class CallResult(NamedTuple):
    """How one call ended, and when (monotonic seconds)."""

    began: float
    ended: float
    code: grpc.StatusCode
    reason: str = ""
    """Empty when the gRPC library raised the error."""
    therapist_id: str = ""
    pause: float = 0.0
    """Seconds to wait before the retry."""

    @property
    def status(self) -> str:
        """Code and reason."""
        return f"{self.code.name} {self.reason}".rstrip()


class Callers:
    """Threads that repeat `call` until the with block ends, and the result of each call."""

    def __init__(self, call: Callable[[int], list[CallResult]], count: int) -> None:
        """Args: call, which gets the number of its thread."""
        self.ended: list[CallResult] = []
        self._call = call
        self._stopped = threading.Event()
        self._threads = [threading.Thread(target=self._run, args=(number,)) for number in range(count)]

    def __enter__(self) -> "Callers":
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopped.set()
        for thread in self._threads:
            thread.join()

    def _run(self, number: int) -> None:
        while not self._stopped.is_set():
            self.ended += self._call(number)

    def acknowledged(self, since: float = 0.0) -> list[CallResult]:
        """The acknowledged writes, by end time."""
        return sorted((one for one in self.ended if one.therapist_id and one.ended >= since), key=lambda one: one.ended)


class Servers:
    """Clients of two servers on one database."""

    def __init__(self, channels: list[grpc.Channel]) -> None:
        self.therapists = [therapist_service_pb2_grpc.TherapistServiceStub(channel) for channel in channels]
        self._health: list[Any] = [health_pb2_grpc.HealthStub(channel) for channel in channels]
        self._first = pb.CreateTherapistRequest(therapist=resources_pb2.Therapist(display_name="First"))
        self.first_id = self.therapists[0].CreateTherapist(self._first, timeout=30).therapist.therapist_id

    def write(self, number: int) -> list[CallResult]:
        """Creates one therapist, alternating servers until a write is acknowledged or must not be retried."""
        request_id = str(uuid.uuid4())
        therapist = resources_pb2.Therapist(display_name=f"Therapist {request_id}")
        request = pb.CreateTherapistRequest(therapist=therapist, request_id=request_id)
        tries: list[CallResult] = []
        until = time.monotonic() + RETRY_SECONDS
        while time.monotonic() < until:
            stub = self.therapists[(number + len(tries)) % len(self.therapists)]
            tries.append(_call(stub.CreateTherapist, request))
            if tries[-1].code not in _SAFE_TO_REPEAT:
                return tries
            time.sleep(tries[-1].pause)
        return [*tries, CallResult(until, until, grpc.StatusCode.CANCELLED, "(the caller gave up)")]

    def read(self, number: int) -> list[CallResult]:
        """Gets the first therapist."""
        time.sleep(0.01)
        return [_call(self.therapists[number].GetTherapist, pb.GetTherapistRequest(therapist_id=self.first_id))]

    def are_ready(self) -> list[bool]:
        """The readiness that each server reports."""
        request = health_pb2.HealthCheckRequest(service=_READINESS)
        answers = [stub.Check(request, timeout=CALL_SECONDS) for stub in self._health]
        return [answer.status == health_pb2.HealthCheckResponse.SERVING for answer in answers]

    def seconds_until(self, *, ready: bool, most: float) -> float:
        """Seconds until all servers report the readiness; more than `most` on a timeout."""
        began = time.monotonic()
        while set(self.are_ready()) != {ready} and time.monotonic() - began <= most:
            time.sleep(0.05)
        return time.monotonic() - began

    def stored(self) -> list[list[tuple[str, str]]]:
        """Id and name of every therapist, from each server."""
        return [list(_list_therapists(stub)) for stub in self.therapists]


def _list_therapists(stub: Any) -> Iterator[tuple[str, str]]:
    request = pb.ListTherapistsRequest(page_size=1000)
    while True:
        page = stub.ListTherapists(request, timeout=30)
        yield from ((one.therapist_id, one.display_name) for one in page.therapists)
        if not page.next_page_token:
            return
        request.page_token = page.next_page_token


def _call(rpc: Any, request: Any) -> CallResult:
    """Makes one call."""
    began = time.monotonic()
    try:
        answer = rpc(request, timeout=CALL_SECONDS)
    except grpc.RpcError as error:
        status = rpc_status.from_call(error)  # type: ignore[arg-type]  # it is a grpc.Call too
        info, retry = error_details_pb2.ErrorInfo(), error_details_pb2.RetryInfo()
        for packed in status.details if status else []:
            packed.Unpack(info)
            packed.Unpack(retry)
        pause = max(LEAST_PAUSE_SECONDS, retry.retry_delay.ToTimedelta().total_seconds())
        return CallResult(began, time.monotonic(), error.code(), info.reason, pause=pause)
    return CallResult(began, time.monotonic(), grpc.StatusCode.OK, therapist_id=answer.therapist.therapist_id)


class Check(NamedTuple):
    """A row of the table, and whether it passed."""

    name: str
    value: str
    passed: bool = True


@contextmanager
def running(*, synchronous: bool) -> Iterator[tuple[Cluster, Cluster, Servers]]:
    """Starts the primary, its standby and the servers."""
    with Cluster(SAFE) as primary, Cluster(SAFE, primary) as standby, ExitStack() as stack:
        primary.create_database("caseload")
        hosts = f"{HOST}:{primary.port},{HOST}:{standby.port}"
        url = f"postgresql://postgres@{hosts}/caseload?target_session_attrs=read-write"
        migrate = [sys.executable, "-m", "caseload_server", "migrate", "--database", url]
        subprocess.run(migrate, check=True, stdout=subprocess.DEVNULL, timeout=60)
        if synchronous:
            primary.replicate_synchronously()
        cores = sorted(os.sched_getaffinity(0))
        serve = ("-m", "caseload_server", "serve", "--address", f"{HOST}:0", "--database", url)
        servers = [stack.enter_context(Server(core, *serve)) for core in (cores[0], cores[-1])]
        channels = [grpc.insecure_channel(server.address, options=_CHANNEL_OPTIONS) for server in servers]
        yield primary, standby, Servers([stack.enter_context(channel) for channel in channels])


def primary_lost(seconds: float, *, synchronous: bool) -> list[Check]:
    """Kills the primary under load and promotes the standby."""
    with running(synchronous=synchronous) as (primary, standby, servers):
        with Callers(servers.write, WRITERS) as writers, Callers(servers.read, READERS) as readers:
            time.sleep(seconds)
            if not synchronous:
                standby.stop_following()
                time.sleep(seconds / 4)
            killed = time.monotonic()
            primary.kill()
            failed = 0
            while failed < PROBES:
                failed = 0 if primary.answers() else failed + 1
                time.sleep(PROBE_SECONDS)
            detected = time.monotonic()
            standby.promote()
            promoted = time.monotonic()
            time.sleep(seconds)
            stopped = time.monotonic()
        moments = [killed, *(one.ended for one in writers.acknowledged(killed) if one.ended < stopped), stopped]
        gap = max(later - earlier for earlier, later in itertools.pairwise(moments))
        return [
            *_write_checks(writers, servers),
            Check(
                "gap",
                f"{gap:.2f} s, of which {detected - killed:.2f} s until the loss was seen and "
                f"{promoted - detected:.2f} s until the standby was promoted",
                gap < GAP_SECONDS,
            ),
            *_call_checks("writes", writers),
            *_call_checks("reads", readers),
        ]


def standby_lost(seconds: float) -> list[Check]:
    """Stops and restarts, under load, the standby that every commit waits for."""
    with running(synchronous=True) as (_, standby, servers):
        with Callers(servers.write, WRITERS) as writers, Callers(servers.read, READERS) as readers:
            time.sleep(seconds)
            standby.stop()
            not_ready = servers.seconds_until(ready=False, most=NOT_READY_SECONDS)
            ready_still = servers.are_ready().count(True)
            time.sleep(max(seconds, 3 * CALL_SECONDS))  # long enough for calls to time out and new ones to start
            ready_again = servers.are_ready().count(True)
            standby.start()
            restarted = time.monotonic()
            ready = servers.seconds_until(ready=True, most=READY_SECONDS)
            time.sleep(seconds)
        again = writers.acknowledged(restarted)
        return [
            *_write_checks(writers, servers),
            Check("not ready after", f"{not_ready:.2f} s", not_ready <= NOT_READY_SECONDS),
            Check(
                "servers ready then, and before the standby is restarted",
                f"{ready_still}, {ready_again}",
                not ready_again,
            ),
            Check("ready again after", f"{ready:.2f} s", ready <= READY_SECONDS),
            Check("writes again after", f"{again[0].ended - restarted:.2f} s" if again else "never", bool(again)),
            *_call_checks("writes", writers),
            *_call_checks("reads", readers, {grpc.StatusCode.OK}),
        ]


def _write_checks(writers: Callers, servers: Servers) -> list[Check]:
    """Compares acknowledged writes with stored ones."""
    stored, there = servers.stored()
    acknowledged = {one.therapist_id for one in writers.acknowledged()}
    lost = acknowledged - {therapist_id for therapist_id, _ in stored}
    twice = len(stored) - len({name for _, name in stored})
    return [
        Check("acknowledged", str(len(acknowledged)), bool(acknowledged)),
        Check("lost", str(len(lost)), not lost),
        Check("written twice", str(twice), not twice),
        Check("the servers agree", "yes" if stored == there else "no", stored == there),
    ]


def _call_checks(
    what: str, callers: Callers, allowed: set[grpc.StatusCode] = _SAFE_TO_REPEAT | {grpc.StatusCode.OK}
) -> list[Check]:
    """Counts calls by status, and late calls."""
    counts = Counter((one.code, one.status) for one in callers.ended)
    took = [one.ended - one.began for one in callers.ended]
    late = sum(seconds > CALL_SECONDS + LATE_SECONDS for seconds in took)
    return [
        *(Check(f"{what} {status}", str(count), code in allowed) for (code, status), count in counts.most_common()),
        Check(f"slowest of the {what}", f"{max(took):.2f} s"),
        Check(f"{what} that outlived their deadline", str(late), not late),
    ]


def main() -> None:
    """Runs one of the two scenarios and prints its table."""
    parser = argparse.ArgumentParser(description="Measures a failover.")
    how = parser.add_mutually_exclusive_group()
    how.add_argument("--standby-stopped", action="store_true", help="lose the standby instead of the primary")
    how.add_argument(
        "--asynchronous", action="store_true", help="with a lagging standby, to see that lost writes are detected"
    )
    parser.add_argument("--seconds", type=float, default=5.0, help="seconds of load before and after (default: 5)")
    arguments = parser.parse_args()
    try:
        if arguments.standby_stopped:
            checks = standby_lost(arguments.seconds)
        else:
            checks = primary_lost(arguments.seconds, synchronous=not arguments.asynchronous)
    except NoPostgres as error:
        print(error, file=sys.stderr)
        sys.exit(2)
    for check in checks:
        print(f"{check.name}: {check.value}{'' if check.passed else '   <-- FAILED'}")
    sys.exit(not all(check.passed for check in checks))


if __name__ == "__main__":
    main()
