"""Measures the cost of idle watches for other calls. Part of run.py."""

import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Self

from caseload.v1 import therapist_service_pb2 as pb

from benchmarks import load, servers
from benchmarks.load import GET, MANY, Call, Load
from benchmarks.rounds import Effort, Sample, Side, result
from benchmarks.seed_data import store_therapists
from benchmarks.servers import LOAD_CORE, SERVER_CORE
from benchmarks.table import Result

IDLE_WATCHES = Path(__file__).with_name("idle_watches.py")
COUNT = 100
_SETTLED_SECONDS = 0.3


class Watchers:
    """A process on the load's core that opens and closes watches."""

    def __init__(self, address: str, core: int) -> None:
        """Args: address, of the watched server."""
        self._command = ["taskset", "--cpu-list", str(core), sys.executable, str(IDLE_WATCHES), address, str(COUNT)]

    def __enter__(self) -> Self:
        self._process = subprocess.Popen(self._command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.communicate(timeout=30)

    def toggle(self) -> None:
        """Opens the watches, or closes them if they are open."""
        if not (self._process.stdin and self._process.stdout):
            raise RuntimeError
        self._process.stdin.write("\n")
        self._process.stdin.flush()
        if self._process.stdout.readline() != "done\n":
            raise load.LoadFailed("the watches did not open")
        time.sleep(_SETTLED_SECONDS)


def measure(folder: Path, effort: Effort) -> Iterator[Result]:
    """Measures one server with and without watches in turn; which comes first alternates."""
    with (
        servers.caseload(SERVER_CORE, folder / "caseload.db") as server,
        Watchers(server.address, LOAD_CORE) as watchers,
    ):
        [therapist_id] = store_therapists(server.address, 1)
        get = pb.GetTherapistRequest(therapist_id=therapist_id).SerializeToString()
        side = Side(Load(server, Call(GET, get, always_same=True), MANY, LOAD_CORE))
        side.warm_up()
        pairs: list[tuple[Sample, Sample]] = []
        for _ in range(effort.rounds):
            alone = side.sample(effort.seconds)
            watchers.toggle()
            pairs += [(side.sample(effort.seconds), alone)]
            watched = side.sample(effort.seconds)
            watchers.toggle()
            pairs += [(watched, side.sample(effort.seconds))]
    yield result(f"GetTherapist with {COUNT} idle watches / without", pairs)
