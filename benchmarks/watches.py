"""Measures what idle watches cost the calls beside them. Part of run.py."""

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Self

import grpc
from caseload.v1 import resources_pb2
from caseload.v1 import therapist_service_pb2 as pb
from caseload.v1 import therapist_service_pb2_grpc as pb_grpc

from benchmarks import load, servers
from benchmarks.load import Call, Load
from benchmarks.rounds import Result, Sample, Side, result
from benchmarks.run import GET, MANY, Effort
from benchmarks.servers import Server

IDLE_WATCHES = Path(__file__).with_name("idle_watches.py")
COUNT = 100
_SETTLED_SECONDS = 0.3


class Watchers:
    """A process on the load's core that opens and closes the watches."""

    def __init__(self, address: str, core: int) -> None:
        """Args: address, of the server they watch."""
        self._command = ["taskset", "--cpu-list", str(core), sys.executable, str(IDLE_WATCHES), address, str(COUNT)]

    def __enter__(self) -> Self:
        self._process = subprocess.Popen(self._command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.communicate(timeout=30)

    def turn(self) -> None:
        """Opens them where they are closed, and closes them where they are open."""
        if not (self._process.stdin and self._process.stdout):
            raise RuntimeError
        self._process.stdin.write("\n")
        self._process.stdin.flush()
        if self._process.stdout.readline() != "done\n":
            raise load.LoadFailed("the watches did not open")
        time.sleep(_SETTLED_SECONDS)


def measure(folder: Path, effort: Effort) -> Iterator[Result]:
    """One server, with and without the watches in turn; which comes first alternates too."""
    cores = sorted(os.sched_getaffinity(0))
    with servers.caseload(cores[0], folder / "caseload.db") as server, Watchers(server.address, cores[-1]) as watchers:
        side = Side(Load(server, Call(GET, stored(server), always_same=True), MANY, cores[-1]))
        side.warm_up()
        pairs: list[tuple[Sample, Sample]] = []
        for _ in range(effort.rounds):
            alone = side.sample(effort.seconds)
            watchers.turn()
            pairs += [(side.sample(effort.seconds), alone)]
            watched = side.sample(effort.seconds)
            watchers.turn()
            pairs += [(watched, side.sample(effort.seconds))]
    yield result(f"GetTherapist beside {COUNT} idle watches / alone", pairs)


def stored(server: Server) -> bytes:
    """Stores a therapist: the request that gets it."""
    with grpc.insecure_channel(server.address) as channel:
        stub = pb_grpc.TherapistServiceStub(channel)
        request = pb.CreateTherapistRequest(therapist=resources_pb2.Therapist(display_name="Zoë Müller-Lüdenscheidt"))
        created = stub.CreateTherapist(request, timeout=30)
    return pb.GetTherapistRequest(therapist_id=created.therapist.therapist_id).SerializeToString()
