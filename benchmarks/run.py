"""Measures what docs/performance.md says, and writes its table. Needs h2load.

python benchmarks/run.py           a few minutes; writes the document
python benchmarks/run.py --smoke   a few seconds, to see that it runs; its figures mean nothing
"""

import argparse
import os
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import grpc
from caseload.v1 import resources_pb2
from caseload.v1 import therapist_service_pb2 as pb
from caseload.v1 import therapist_service_pb2_grpc as pb_grpc

from benchmarks import load, servers
from benchmarks.load import Call, Callers, Load, LoadFailed
from benchmarks.rounds import Comparison, Result, Side, compare
from benchmarks.servers import Server
from benchmarks.table import table, write
from service.config import Config

ROOT = Path(__file__).parents[1]
DOCUMENT = ROOT / "docs" / "performance.md"
DATA = ROOT / "data"  # on the disk that would hold a real database; a folder for temporary files may be memory

GET = "/caseload.v1.TherapistService/GetTherapist"
CREATE = "/caseload.v1.TherapistService/CreateTherapist"
MANY = Callers(connections=8, each=8)
ONE = Callers(connections=1, each=1)


class Effort(NamedTuple):
    """How much measuring: rounds, and the seconds that each side has in one."""

    rounds: int
    seconds: float


FULL = Effort(rounds=9, seconds=1.5)
SMOKE = Effort(rounds=2, seconds=0.1)


def main() -> None:
    """Prints the table, and writes it unless --smoke. Exit code 2 where h2load is missing."""
    parser = argparse.ArgumentParser(description="Measures what docs/performance.md says.")
    parser.add_argument("--smoke", action="store_true", help="a few seconds, to see that it runs; writes nothing")
    smoke: bool = parser.parse_args().smoke
    if not load.is_there():
        print(f"{load.PROGRAM} is missing: apt-get install {load.PACKAGE}", file=sys.stderr)
        sys.exit(2)
    DATA.mkdir(mode=0o700, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="bench-", dir=DATA) as folder:
        text = table(list(everything(Path(folder), SMOKE if smoke else FULL)))
    print(text, end="")
    if not smoke:
        write(DOCUMENT, text)


def everything(folder: Path, effort: Effort) -> Iterator[Result]:
    """All comparisons, each group on a database of its own."""
    from benchmarks import checks, watches  # which take the effort and the callers from here

    for group in (measure, checks.measure, watches.measure):
        place = folder / group.__module__.rpartition(".")[2]
        place.mkdir()
        yield from group(place, effort)


def measure(folder: Path, effort: Effort) -> Iterator[Result]:
    """Each comparison in turn. Servers have the first core, load the last."""
    cores = sorted(os.sched_getaffinity(0))
    server_core, load_core = cores[0], cores[-1]
    with servers.caseload(server_core, folder / "caseload.db") as caseload:
        get = Call(GET, stored(caseload), always_same=True)
        create = Call(CREATE, pb.CreateTherapistRequest(therapist=therapist()).SerializeToString(), always_same=False)
        with servers.bare(server_core, Config.threads, Load(caseload, get, ONE, load_core).ask()) as bare:
            no_op = Side(Load(bare, get, MANY, load_core))
            reads = Side(Load(caseload, get, MANY, load_core))
            writes = Side(Load(caseload, create, MANY, load_core))
            lone_writes = Side(Load(caseload, create, ONE, load_core))
            for comparison in (
                Comparison("GetTherapist / no-op", reads, no_op),
                Comparison("CreateTherapist / no-op", writes, no_op),
                Comparison(f"CreateTherapist, {MANY.total} callers / 1 caller", writes, lone_writes),
            ):
                yield compare(comparison, effort.rounds, effort.seconds)
        _check_created(caseload, 1 + writes.made + lone_writes.made)


def therapist() -> resources_pb2.Therapist:
    """One as a clinic might have."""
    return resources_pb2.Therapist(
        display_name="Zoë Müller-Lüdenscheidt",
        email="zoe@example.org",
        specialties=["hand-therapy", "sports-medicine"],
        max_active_patients=40,
    )


def stored(caseload: Server) -> bytes:
    """Stores a therapist: the request that gets it."""
    looked_up = therapist()
    looked_up.identifiers.add(system="https://example.org/staff", value="A-1001")
    with grpc.insecure_channel(caseload.address) as channel:
        stub = pb_grpc.TherapistServiceStub(channel)
        created = stub.CreateTherapist(pb.CreateTherapistRequest(therapist=looked_up), timeout=30)
    return pb.GetTherapistRequest(therapist_id=created.therapist.therapist_id).SerializeToString()


def _check_created(caseload: Server, expected: int) -> None:
    """Raises LoadFailed unless every create that was counted is a record now."""
    with grpc.insecure_channel(caseload.address) as channel:
        stub = pb_grpc.TherapistServiceStub(channel)
        stored, request = 0, pb.ListTherapistsRequest(page_size=1000)
        while True:
            page = stub.ListTherapists(request, timeout=30)
            stored += len(page.therapists)
            if not page.next_page_token:
                break
            request.page_token = page.next_page_token
    if stored != expected:
        raise LoadFailed(f"{expected} therapists were created by the count of calls, and {stored} are stored")


if __name__ == "__main__":
    main()
