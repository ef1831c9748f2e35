"""Measures overload with multiples of the saturating number of callers: `make overload`.

python -m benchmarks.overload            some minutes
python -m benchmarks.overload --smoke    less than a minute, a smoke test; its figures mean little

The server has the first core, the callers have the last. Peak is the throughput of 64 callers, who saturate the
server. Compared with it are 256 callers, who all fit the queue, and four times as many as the server can run and
queue: it rejects most. Reads are CPU-bound. For writes each fsync takes 10 ms longer, so that the store is the limit.
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
from benchmarks.seed_data import store_therapists, therapist
from benchmarks.servers import Server

SATURATING: Final = Config.threads
FOUR_TIMES: Final = 4 * SATURATING
CROWD: Final = 4 * (SATURATING + Config.max_queue_depth)
HEALTH_SECONDS: Final = 1.0
LEAST_SHARE: Final = {GET: 0.80, CREATE: 0.95}
"""The least share of peak throughput with FOUR_TIMES the callers."""
SYNC_SECONDS: Final = 0.01
"""With half of it the CPU would be saturated too."""

FULL: Final = Effort(rounds=5, seconds=5)
SMOKE: Final = Effort(rounds=1, seconds=1)


class Round(NamedTuple):
    """One round: peak, then overload."""

    peak: Outcome
    overload: Outcome
    slowest_health_ms: float


def main() -> int:
    """Prints a table. Exit code 1 if a figure misses its target, unless --smoke."""
    parser = argparse.ArgumentParser(description="Measures overload.")
    parser.add_argument("--smoke", action="store_true", help="less than a minute, a smoke test")
    smoke: bool = parser.parse_args().smoke
    DATA.mkdir(mode=0o700, exist_ok=True)
    all_met = True
    print(
        "| call, callers | served, of peak | calls/s: peak, served, rejected, by the library | p99 | slowest health |"
    )
    print("|---|---|---|---|---|")
    core = min(os.sched_getaffinity(0))
    with tempfile.TemporaryDirectory(prefix="bench-", dir=DATA) as folder:
        for method, server in (
            (GET, servers.caseload(core, Path(folder) / "reads.db")),
            (CREATE, servers.ablation(core, Path(folder) / "writes.db", "--sync-seconds", str(SYNC_SECONDS))),
        ):
            with server:
                request = _request(server, method)
                for callers in (FOUR_TIMES, CROWD):
                    rounds = list(_rounds(server, method, request, callers, SMOKE if smoke else FULL))
                    all_met &= _print_row(method, callers, rounds)
    return 0 if all_met or smoke else 1


def _request(server: Server, method: str) -> bytes:
    if method == CREATE:
        return pb.CreateTherapistRequest(therapist=therapist()).SerializeToString()
    [therapist_id] = store_therapists(server.address, 1)
    return pb.GetTherapistRequest(therapist_id=therapist_id).SerializeToString()


def _rounds(server: Server, method: str, request: bytes, callers: int, effort: Effort) -> Iterator[Round]:
    for _ in range(effort.rounds):
        peak = _load(server, method, request, SATURATING, effort.seconds)
        with _health_latencies(server) as milliseconds:
            overload = _load(server, method, request, callers, effort.seconds)
        yield Round(peak, overload, max(milliseconds))


def _load(server: Server, method: str, request: bytes, callers: int, seconds: float) -> Outcome:
    core = str(max(os.sched_getaffinity(0)))
    command = [sys.executable, "-m", "benchmarks.closed_loop", server.address, method, str(callers), str(seconds)]
    ran = subprocess.run(
        ["taskset", "--cpu-list", core, *command], input=request, stdout=subprocess.PIPE, check=True, timeout=120
    )
    return Outcome(**json.loads(ran.stdout))


@contextmanager
def _health_latencies(server: Server) -> Iterator[list[float]]:
    """Checks liveness and readiness twenty times a second. Yields the list of latencies in milliseconds."""
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


def _print_row(method: str, callers: int, rounds: list[Round]) -> bool:
    """Prints a row. Returns whether it meets its targets."""
    ratios = [one.overload.served / one.peak.served for one in rounds]
    middle = statistics.median
    served, p99 = middle(ratios), middle(one.overload.p99_ms for one in rounds)
    health = max(one.slowest_health_ms for one in rounds)
    rates = [
        round(middle(values))
        for values in zip(
            *((o.peak.served, o.overload.served, o.overload.rejected, o.overload.by_library) for o in rounds),
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
    return callers == CROWD or (served >= LEAST_SHARE[method] and p99 <= longest_ms)


if __name__ == "__main__":
    sys.exit(main())
