"""Measures a server's time to its first response on 1,000,000 rows, and its memory over time.

python -m benchmarks.footprint [--smoke]

The memory is the process's resident set (RSS, including mapped files and libraries): idle after a start, after a
tenth of 1,000,000 calls of h2load that read, list and write, and after all of them.
"""

import argparse
import os
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import grpc
from caseload.v1.patient_service_pb2 import ListPatientsRequest
from caseload.v1.resources_pb2 import Therapist
from caseload.v1.therapist_service_pb2 import (
    CreateTherapistRequest,
    GetTherapistRequest,
    ListTherapistPatientsRequest,
    ListTherapistsRequest,
)
from caseload.v1.therapist_service_pb2_grpc import TherapistServiceStub
from google.protobuf.message import Message

from benchmarks import scale, servers
from benchmarks.load import Call, Callers, Load
from benchmarks.rounds import FULL, SMOKE, Effort
from benchmarks.served_data_sets import create_database
from benchmarks.servers import Server
from benchmarks.synthetic_data import person_id
from benchmarks.table import Result, Target, figure, spread

ROOT: Final = Path(__file__).parents[1]
_CALLERS: Final = Callers(connections=8, each=8)
_MIXED: Final[list[tuple[float, str, Message]]] = [
    (0.7, "TherapistService/GetTherapist", GetTherapistRequest(therapist_id=person_id("a", 1))),
    (0.1, "TherapistService/ListTherapistPatients", ListTherapistPatientsRequest(therapist_id=person_id("a", 0))),
    (0.05, "TherapistService/ListTherapists", ListTherapistsRequest(page_size=200)),
    (0.05, "PatientService/ListPatients", ListPatientsRequest(page_size=200)),
    (0.1, "TherapistService/CreateTherapist", CreateTherapistRequest(therapist=Therapist(display_name="Ada"))),
]
"""The mix of calls: the share of each method."""


def main() -> None:
    """Prints a line for each figure."""
    parser = argparse.ArgumentParser(description="Measures start and memory of a server.")
    parser.add_argument("--smoke", action="store_true", help="a few seconds, a smoke test")
    effort = SMOKE if parser.parse_args().smoke else FULL
    (ROOT / "data").mkdir(mode=0o700, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="bench-", dir=ROOT / "data") as folder:
        for result in measure(Path(folder), effort):
            print(f"{result.title}: {figure(result)} {result.sides}", flush=True)


def measure(folder: Path, effort: Effort) -> Iterator[Result]:
    """Start, then memory."""
    calls = 2000 if effort.is_smoke else 1_000_000
    file = folder / "large.db"
    create_database(
        scale.SMALL if effort.is_smoke else 500_000, f"sqlite:///{file}"
    )  # and about as many people and changes
    starts = [_seconds_to_first_response(file) for _ in range(effort.rounds)]
    yield Result("start to first response, with 1,000,000 rows", spread(starts), Target(1, at_most=True), "s")
    with servers.caseload(0, file) as server:
        _first_call(server)
        idle = memory_mb(server)
        yield Result("memory, idle", spread([idle]), Target(80, at_most=True), "MB")
        _make_calls(server, calls // 10)
        warm = memory_mb(server)
        _make_calls(server, calls - calls // 10)
        after = memory_mb(server)
    title = "memory after 1,000,000 calls / after a tenth of them"
    yield Result(title, spread([after / warm]), Target(1.05, at_most=True), sides=f"{after:.0f} / {warm:.0f} MB")


def _seconds_to_first_response(file: Path) -> float:
    """Seconds from the start of the process to the first response."""
    began = time.monotonic()
    with servers.caseload(0, file) as server:
        _first_call(server)
        return time.monotonic() - began


def _first_call(server: Server) -> None:
    with grpc.insecure_channel(server.address) as channel:
        TherapistServiceStub(channel).GetTherapist(GetTherapistRequest(therapist_id=person_id("a", 1)), timeout=30)


def _make_calls(server: Server, count: int) -> None:
    """Makes count calls in total, one method after the other."""
    core = max(os.sched_getaffinity(0))
    for part, method, request in _MIXED:
        call = Call(f"/caseload.v1.{method}", request.SerializeToString(), always_same=False)
        load = Load(server, call, _CALLERS, core)
        for _ in range(10):  # each run has a time limit
            load.run(max(_CALLERS.total, round(count * part / 10)), load.send())


def memory_mb(server: Server) -> float:
    """The resident memory of the server's first process."""
    status = Path(f"/proc/{server.pid}/status").read_text()
    [line] = [line for line in status.splitlines() if line.startswith("VmRSS:")]
    return int(line.split()[1]) / 1024


if __name__ == "__main__":
    main()
