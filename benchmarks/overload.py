"""Measures what four times the callers do who saturate the server: `make overload`.

python -m benchmarks.overload            some minutes
python -m benchmarks.overload --smoke    less than a minute, to see that it runs; its figures mean little

The server has the first core, the callers have the last. Peak is what 64 callers get, who keep it busy. Beside it, in
turn, 256 callers, who all find a place to wait, and four times as many as can run and wait: most are turned away. Reads
are bound by the core. For writes each fsync takes 10 ms longer, so that the store is what binds.
"""

import argparse
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, NamedTuple

import grpc
from caseload.v1 import therapist_service_pb2 as pb
from caseload_server.config import Config
from grpc_health.v1 import health_pb2, health_pb2_grpc

from benchmarks import servers
from benchmarks.closed_loop import Outcome
from benchmarks.load import CREATE, GET
from benchmarks.rounds import Effort
from benchmarks.run import DATA
from benchmarks.servers import Server
from benchmarks.stored import store_therapists, therapist

SATURATING: Final = Config.threads
FOUR_TIMES: Final = 4 * SATURATING
CROWD: Final = 4 * (SATURATING + Config.max_queue_depth)
HEALTH_SECONDS: Final = 1.0
LEAST: Final = {GET: 0.80, CREATE: 0.95}
"""Of peak, that must be served with FOUR_TIMES the callers."""
SYNC_SECONDS: Final = 0.01
"""With half of it the processor is at its end as well."""

FULL: Final = Effort(rounds=5, seconds=5)
SMOKE: Final = Effort(rounds=1, seconds=1)


class Beside(NamedTuple):
    """One round of overload, and of peak just before."""

    peak: Outcome
    overload: Outcome
    slowest_health_ms: float


def main() -> int:
    """Prints a table. Exit code 1 where a figure is not as claimed, unless --smoke."""
    parser = argparse.ArgumentParser(description="Measures what overload does.")
    parser.add_argument("--smoke", action="store_true", help="less than a minute, to see that it runs")
    smoke: bool = parser.parse_args().smoke
    DATA.mkdir(mode=0o700, exist_ok=True)
    as_claimed = True
    print("| call, callers | served, of peak | calls/s: peak, served, refused, by the library | p99 | slowest health |")
    print("|---|---|---|---|---|")
    core = min(os.sched_getaffinity(0))
    with tempfile.TemporaryDirectory(prefix="bench-", dir=DATA) as folder:
        for method, server in (
            (GET, servers.caseload(core, Path(folder) / "reads.db")),
            (CREATE, servers.changed(core, Path(folder) / "writes.db", "--sync-seconds", str(SYNC_SECONDS))),
        ):
            with server:
                request = _request(server, method)
                for callers in (FOUR_TIMES, CROWD):
                    rounds = list(_rounds(server, method, request, callers, SMOKE if smoke else FULL))
                    as_claimed &= _told(method, callers, rounds)
    return 0 if as_claimed or smoke else 1


def _request(server: Server, method: str) -> bytes:
    if method == CREATE:
        return pb.CreateTherapistRequest(therapist=therapist()).SerializeToString()
    [therapist_id] = store_therapists(server.address, 1)
    return pb.GetTherapistRequest(therapist_id=therapist_id).SerializeToString()


def _rounds(server: Server, method: str, request: bytes, callers: int, effort: Effort) -> Iterator[Beside]:
    for _ in range(effort.rounds):
        peak = _load(server, method, request, SATURATING, effort.seconds)
        with _asking_health(server) as milliseconds:
            overload = _load(server, method, request, callers, effort.seconds)
        yield Beside(peak, overload, max(milliseconds))


def _load(server: Server, method: str, request: bytes, callers: int, seconds: float) -> Outcome:
    core = str(max(os.sched_getaffinity(0)))
    command = [sys.executable, "-m", "benchmarks.closed_loop", server.address, method, str(callers), str(seconds)]
    ran = subprocess.run(
        ["taskset", "--cpu-list", core, *command], input=request, stdout=subprocess.PIPE, check=True, timeout=120
    )
    return Outcome(**json.loads(ran.stdout))


@contextmanager
def _asking_health(server: Server) -> Iterator[list[float]]:
    """Asks twenty times a second for liveness and for readiness; the list gets how long each answer took."""
    enough, milliseconds = threading.Event(), [0.0]

    def ask() -> None:
        with grpc.insecure_channel(server.address) as channel:
            health: Any = health_pb2_grpc.HealthStub(channel)
            while not enough.wait(0.025):
                for name in ("", "caseload.v1.TherapistService"):
                    began = time.monotonic()
                    answer = health.Check.future(health_pb2.HealthCheckRequest(service=name), timeout=10)
                    if answer.exception() or answer.result().status != health_pb2.HealthCheckResponse.SERVING:
                        print(f"{name or 'liveness'}: {answer.exception() or 'NOT_SERVING'}", file=sys.stderr)
                        milliseconds.append(math.inf)
                    milliseconds.append((time.monotonic() - began) * 1000)

    thread = threading.Thread(target=ask)
    thread.start()
    yield milliseconds
    enough.set()
    thread.join()


def _told(method: str, callers: int, rounds: list[Beside]) -> bool:
    """Prints a row; whether it is as claimed."""
    ratios = [one.overload.served / one.peak.served for one in rounds]
    middle = statistics.median
    served, p99 = middle(ratios), middle(one.overload.p99_ms for one in rounds)
    health = max(one.slowest_health_ms for one in rounds)
    rates = [
        round(middle(values))
        for values in zip(
            *((o.peak.served, o.overload.served, o.overload.refused, o.overload.by_library) for o in rounds),
            strict=True,
        )
    ]
    failed = sum(one.peak.failed + one.overload.failed for one in rounds)
    print(
        f"| {method.rpartition('/')[2]}, {callers} | {served:.2f} ({min(ratios):.2f} to {max(ratios):.2f}) "
        f"| {', '.join(map(str, rates))} | {p99:.0f} ms | {health:.0f} ms |"
        + (f" {failed} failed otherwise" if failed else ""),
        flush=True,
    )
    longest_ms = Config.queue_timeout_seconds * 1000
    if failed or health > HEALTH_SECONDS * 1000:
        return False
    return callers == CROWD or (served >= LEAST[method] and p99 <= longest_ms)


if __name__ == "__main__":
    sys.exit(main())
