"""Compares the cost of calls with that of a no-op grpcio server. Part of run.py."""

from collections.abc import Iterator
from pathlib import Path
from typing import Final

from caseload.v1 import assignment_service_pb2
from caseload.v1 import therapist_service_pb2 as pb
from caseload_server.config import Config

from benchmarks import servers
from benchmarks.load import CREATE, GET, MANY, ONE, Call, Callers, Load
from benchmarks.rounds import Comparison, Effort, Side, compare
from benchmarks.seed_data import check_count, store_patients, store_therapists, therapist
from benchmarks.servers import LOAD_CORE, SERVER_CORE
from benchmarks.table import Result, Target

BATCH_GET: Final = "/caseload.v1.TherapistService/BatchGetTherapists"
CHECK: Final = "/caseload.v1.AssignmentService/CheckAssignments"
HUNDRED: Final = 100
_FEW: Final = Callers(connections=8, each=2)
"""Enough callers to saturate the server, and few enough for short latencies of calls with a hundred records."""


def measure(folder: Path, effort: Effort) -> Iterator[Result]:
    """Runs the comparisons. Yields one result for each."""
    with servers.caseload(SERVER_CORE, folder / "caseload.db") as caseload:
        ids = store_therapists(caseload.address, HUNDRED)
        pairs = [(ids[0], patient_id) for patient_id in store_patients(caseload.address, ids[0], HUNDRED)]

        def side(call: Call, callers: Callers = MANY) -> Side:
            return Side(Load(caseload, call, callers, LOAD_CORE))

        get = Call(GET, pb.GetTherapistRequest(therapist_id=ids[0]).SerializeToString(), always_same=True)
        gets = side(get)
        one = side(check_pairs(pairs[:1]))
        all_of_them = pb.BatchGetTherapistsRequest(therapist_ids=ids).SerializeToString()
        batches = side(Call(BATCH_GET, all_of_them, always_same=True), _FEW)
        hundred = side(check_pairs(pairs), _FEW)
        creates, alone = side(create()), side(create(), ONE)
        with servers.noop(SERVER_CORE, Config.read_threads, get.send(caseload.address)) as noop:
            no_op, few_no_op = Side(Load(noop, get, MANY, LOAD_CORE)), Side(Load(noop, get, _FEW, LOAD_CORE))
            for comparison in (
                Comparison("GetTherapist / no-op", gets, no_op, Target(1)),
                Comparison(f"GetTherapist / no-op, {_FEW.total} callers", side(get, _FEW), few_no_op, Target(0.9)),
                Comparison("CheckAssignments, 1 pair / no-op", one, no_op, Target(0.9)),
                Comparison("BatchGetTherapists of 100, records / GetTherapist", batches, gets, Target(20), HUNDRED),
                Comparison("CheckAssignments, 100 pairs / 1 pair", hundred, one),
                Comparison("CreateTherapist / no-op", creates, no_op),
                Comparison(f"CreateTherapist, {MANY.total} callers / 1 caller", creates, alone),
            ):
                yield compare(comparison, effort)
        check_count(caseload.address, HUNDRED + creates.succeeded + alone.succeeded)


def create() -> Call:
    """A CreateTherapist call; every call creates a new therapist."""
    return Call(CREATE, pb.CreateTherapistRequest(therapist=therapist()).SerializeToString(), always_same=False)


def check_pairs(pairs: list[tuple[str, str]]) -> Call:
    """A CheckAssignments call. Args: pairs, of a therapist's and a patient's id."""
    request = assignment_service_pb2.CheckAssignmentsRequest()
    for therapist_id, patient_id in pairs:
        request.pairs.add(therapist_id=therapist_id, patient_id=patient_id)
    return Call(CHECK, request.SerializeToString(), always_same=True)
