"""Measures the effect of a second worker on two cores that the load shares. Part of run.py."""

from collections.abc import Iterator
from pathlib import Path
from typing import Final

from caseload.v1 import therapist_service_pb2 as pb

from benchmarks import servers
from benchmarks.load import GET, Call, Callers, Load
from benchmarks.rounds import Comparison, Effort, Side, compare
from benchmarks.seed_data import store_therapists
from benchmarks.servers import CORES, SERVER_CORE, Server
from benchmarks.table import Result, Target

BOTH: Final = f"{CORES[0]},{CORES[-1]}"
_MANY: Final = Callers(connections=64, each=1)
"""The kernel assigns each connection to a worker; of many, each worker gets about half."""


def measure(folder: Path, effort: Effort) -> Iterator[Result]:
    """Compares two workers with one by default, and with one pinned to a core, which is the fastest single worker."""
    with (
        servers.caseload(BOTH, folder / "two.db", "--workers", "2") as two,
        servers.caseload(BOTH, folder / "one.db") as one,
        servers.caseload(SERVER_CORE, folder / "pinned.db") as pinned,
    ):
        pair, alone, kept = (_gets(server) for server in (two, one, pinned))
        yield compare(Comparison("GetTherapist, two workers / one", pair, alone, Target(1.5)), effort)
        yield compare(Comparison("GetTherapist, two workers / one pinned to a core", pair, kept), effort)


def _gets(server: Server) -> Side:
    [therapist_id] = store_therapists(server.address, 1)
    get = Call(GET, pb.GetTherapistRequest(therapist_id=therapist_id).SerializeToString(), always_same=True)
    return Side(Load(server, get, _MANY, BOTH))
