"""What a call costs in a large clinic beside a small one: two servers in turn.

python -m benchmarks.scale [--large N | --smoke]

The clinics are those of synthetic_data.py, with 10,000 and N assignments (10,000,000 unless said, which takes ten
minutes to make, and 11 GB of data/). What a call is about is picked from all over the file, the same in each
round: so the file's pages that it takes are in memory, once.
"""

import argparse
import copy
import random
import secrets
import statistics
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from functools import partial
from pathlib import Path
from typing import Any, Final, NamedTuple

import grpc
from caseload.v1.assignment_service_pb2 import (
    CheckAssignmentsRequest,
    ListAssignmentsRequest,
    TransferPatientsRequest,
)
from caseload.v1.change_service_pb2 import ListChangesRequest
from caseload.v1.patient_service_pb2 import (
    DeletePatientRequest,
    GetPatientRequest,
    ListPatientsRequest,
    ListPatientTherapistsRequest,
    UndeletePatientRequest,
)
from caseload.v1.resources_pb2 import Assignment, Therapist
from caseload.v1.therapist_service_pb2 import (
    AssignPatientRequest,
    GetTherapistRequest,
    ListTherapistPatientsRequest,
    ListTherapistsRequest,
    UnassignPatientRequest,
    UpdateTherapistRequest,
)
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass
from google.protobuf.timestamp_pb2 import Timestamp

from benchmarks import servers, synthetic_data
from benchmarks.load import LoadFailed
from benchmarks.rounds import Effort
from benchmarks.synthetic_data import SELDOM, SYSTEM, Clinic, person_id
from benchmarks.table import Result, Target, figure, spread

ROOT: Final = Path(__file__).parents[1]
SMALL: Final = 10_000
LARGE: Final = 10_000_000
_TARGET: Final = Target(1.2, at_most=True)
_PAGE: Final = 10
_CALLS_A_ROUND: Final = 60
_SLOW_CALLS_A_ROUND: Final = 5
_SECONDS: Final = 60.0
_NOW: Final = Timestamp(seconds=1_767_225_600)
"""2026-01-01: behind all ends."""

Make = Callable[[Clinic, int], Message]
"""The nth request about a clinic."""


class Claim(NamedTuple):
    """A call, asked over and over on both sides."""

    title: str
    make: Make
    undo: Make | None = None
    """What is called after each, and not measured, so that the same can be done again."""
    page: int = 1
    has_target: bool = True


class Asked:
    """One clinic, and a connection to its server."""

    def __init__(self, address: str, clinic: Clinic) -> None:
        self._channel = grpc.insecure_channel(address)
        self.clinic = clinic

    def close(self) -> None:
        """Ends the connection."""
        self._channel.close()

    def ask(self, request: Message) -> Any:
        """The answer. Raises grpc.RpcError."""
        method, answer = _method(request)
        call: Any = self._channel.unary_unary(method, response_deserializer=GetMessageClass(answer).FromString)
        return call(request.SerializeToString(), timeout=_SECONDS)

    def seconds(self, request: Message) -> float:
        """How long the answer takes, as bytes."""
        data = request.SerializeToString()
        call: Any = self._channel.unary_unary(_method(request)[0])
        began = time.perf_counter()
        call(data, timeout=_SECONDS)
        return time.perf_counter() - began


def _method(request: Message) -> tuple[str, Any]:
    """The RPC that takes the request, and its answer."""
    [service] = request.DESCRIPTOR.file.services_by_name.values()
    method = service.methods_by_name[request.DESCRIPTOR.name.removesuffix("Request")]
    return f"/{service.full_name}/{method.name}", method.output_type


def main() -> None:
    """Prints a line for each call."""
    parser = argparse.ArgumentParser(description="Measures calls in a large clinic beside a small one.")
    parser.add_argument("--large", type=int, default=LARGE, help="assignments in the large clinic")
    parser.add_argument("--folder", type=Path, help="keep the files here, and take those that are")
    parser.add_argument("--smoke", action="store_true", help="a few seconds, to see that it runs")
    asked = parser.parse_args()
    (ROOT / "data").mkdir(mode=0o700, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="bench-", dir=ROOT / "data") as folder:
        large, rounds = (2 * SMALL, 1) if asked.smoke else (asked.large, 9)
        for result in compared(asked.folder or Path(folder), large, rounds):
            print(f"{result.title}: {figure(result)}, {result.sides}", flush=True)


def measure(folder: Path, effort: Effort) -> Iterator[Result]:
    """A row for each RPC, the worst of its lists; and those of names, for these grow with what they match."""
    results = list(compared(folder, 2 * SMALL if effort.is_smoke else LARGE, effort.rounds))
    worst: dict[str, Result] = {}
    for result in results:
        rpc = result.title.replace(",", " ").replace(":", " ").split()[0]
        if result.target and (rpc not in worst or result.figure.median > worst[rpc].figure.median):
            worst[rpc] = result
    for rpc, result in worst.items():
        asked, _, compared_with = result.title.partition(": ")
        which = f"{asked}: {result.sides}" if rpc.startswith("List") else result.sides
        yield result._replace(title=f"{rpc}: {compared_with}", sides=which)
    yield from (result for result in results if not result.target)


def compared(folder: Path, large: int, rounds: int) -> Iterator[Result]:
    """Each call's time in the large clinic over that in the small one."""
    with ExitStack() as opened:
        sides = []
        for count in (large, SMALL):
            file = folder / f"{count}.db"
            if not file.exists():
                make(file, count)
            server = opened.enter_context(servers.caseload(0, file))
            sides.append(opened.enter_context(closing(Asked(server.address, synthetic_data.of_assignments(count)))))
        for claim in claims():
            yield _compare(claim, sides, rounds)


def make(file: Path, assignments: int) -> None:
    """A database of a clinic with so many assignments."""
    writing = [sys.executable, "-m", "benchmarks.synthetic_data", str(assignments)]
    filling = [sys.executable, "-m", "caseload_server", "import", "-", "--database", f"sqlite:///{file}"]
    with subprocess.Popen(writing, stdout=subprocess.PIPE, cwd=ROOT) as lines:
        subprocess.run(filling, stdin=lines.stdout, stdout=subprocess.DEVNULL, check=True)


def _compare(claim: Claim, sides: list[Asked], rounds: int) -> Result:
    makes = [_on_page(side, claim) for side in sides]
    ratios, medians = [], []
    for _ in range(1 + rounds):  # the first time some of it is on disk yet
        times: list[list[float]] = [[], []]
        for n in range(_CALLS_A_ROUND if claim.has_target else _SLOW_CALLS_A_ROUND):
            for side, make, taken in zip(sides, makes, times, strict=True):
                taken.append(side.seconds(make(side.clinic, n)))
                if claim.undo:
                    side.ask(claim.undo(side.clinic, n))
        medians.append([statistics.median(one) * 1e3 for one in times])
        ratios.append(medians[-1][0] / medians[-1][1])
    large, small = (statistics.median(one) for one in zip(*medians[1:], strict=True))
    title = f"{claim.title}{', 100th page' if claim.page > 1 else ''}: p50 in a large store / a small one"
    target = _TARGET if claim.has_target else None
    return Result(title, spread(ratios[1:]), target, sides=f"{large:.2f} / {small:.2f} ms")


def _on_page(side: Asked, claim: Claim) -> Make:
    """The claim's request; of a later page, the one request of that."""
    if claim.page == 1:
        return claim.make
    request: Any = copy.copy(claim.make(side.clinic, 0))
    for _ in range(claim.page - 1):
        answer = side.ask(request)
        if isinstance(request, ListChangesRequest):
            request.after_revision = answer.through_revision
        else:
            request.page_token = answer.next_page_token
            if not request.page_token:
                raise LoadFailed(f"{claim.title}: there is no such page")
    return lambda _clinic, _n: request


def claims() -> Iterator[Claim]:
    """What a clinic asks all day."""
    yield Claim("GetTherapist", lambda clinic, n: GetTherapistRequest(therapist_id=_therapist(_any(clinic, n))))
    yield Claim("GetPatient", lambda clinic, n: GetPatientRequest(patient_id=_patient(_any(clinic, n))))
    yield Claim("CheckAssignments", _check)
    for title, request in _lists():
        has_target = "name" not in title  # what a search costs grows with what it matches
        pages = (1,) if any(word in title for word in ("identifier", "name", "role")) else (1, 100)
        yield from (Claim(title, partial(_same, request), page=page, has_target=has_target) for page in pages)
    yield Claim("AssignPatient", _assign, _unassign)
    yield Claim("UnassignPatient", _unassign_own, _assign_own)
    yield Claim("UpdateTherapist", _update)
    yield Claim("DeletePatient", _delete, _undelete)
    yield Claim("TransferPatients", _transfer, partial(_transfer, is_back=True))


def _lists() -> Iterator[tuple[str, Message]]:
    """Each list, and each filter by itself; the few who match one come last."""
    for title, filter_ in {
        "ListTherapists": {},
        "ListTherapists by status": {"statuses": [2]},
        "ListTherapists by two statuses": {"statuses": [2, 3]},
        "ListTherapists by specialty": {"specialties": [SELDOM]},
        "ListTherapists by common specialty": {"specialties": ["hand-therapy"]},
        "ListTherapists by identifier": {"identifier": {"system": SYSTEM, "value": "1234"}},
        "ListTherapists unassigned": {"unassigned": True},
        "ListTherapists accepting_patients": {"accepting_patients": True},
    }.items():
        yield title, ListTherapistsRequest(page_size=_PAGE, filter=filter_)  # type: ignore[arg-type]
    for title, filter_ in {
        "ListPatients": {},
        "ListPatients by status": {"statuses": [2]},
        "ListPatients by identifier": {"identifier": {"system": SYSTEM, "value": "1234"}},
        "ListPatients unassigned": {"unassigned": True},
        "ListPatients by a rare name": {"name_prefix": "1234"},
        "ListPatients by a common name": {"name_prefix": "chen"},
    }.items():
        yield title, ListPatientsRequest(page_size=_PAGE, filter=filter_)  # type: ignore[arg-type]
    first_therapist, first_patient = _therapist(0), _patient(0)
    yield "ListTherapistPatients", ListTherapistPatientsRequest(therapist_id=first_therapist, page_size=_PAGE)
    states = [Assignment.STATE_ENDED]
    yield (
        "ListPatientTherapists",
        ListPatientTherapistsRequest(patient_id=first_patient, page_size=_PAGE, states=states),
    )
    for title, filter_ in {
        "ListAssignments": {},
        "ListAssignments ended": {"states": states},
        "ListAssignments by therapist": {"therapist_id": first_therapist},
        "ListAssignments by patient": {"patient_id": first_patient, "states": states},
        "ListAssignments by role": {"roles": [synthetic_data.SELDOM_ROLE]},
        "ListAssignments as of a time": {"as_of_time": _NOW},
        "ListAssignments of a therapist as of a time": {"therapist_id": first_therapist, "as_of_time": _NOW},
    }.items():
        yield title, ListAssignmentsRequest(page_size=_PAGE, filter=filter_)  # type: ignore[arg-type]
    for title, filter_ in {
        "ListChanges": {},
        "ListChanges by actor": {"actor": synthetic_data.SELDOM_ACTOR},
        "ListChanges by patient": {"patient_id": first_patient},
    }.items():
        yield title, ListChangesRequest(page_size=_PAGE, filter=filter_)  # type: ignore[arg-type]


def _same(request: Message, _clinic: Clinic, _n: int) -> Message:
    return request


def _any(clinic: Clinic, n: int) -> int:
    """A number from all over the clinic, another for each n."""
    return random.Random(n).randrange(clinic.people)  # noqa: S311 - the same ones each time


def _therapist(number: int) -> str:
    return person_id("a", number)


def _patient(number: int) -> str:
    return person_id("b", number)


def _check(clinic: Clinic, n: int) -> Message:
    patient = _any(clinic, n)
    therapist_id = _therapist(clinic.therapist_of(patient))
    return CheckAssignmentsRequest(pairs=[{"therapist_id": therapist_id, "patient_id": _patient(patient)}])  # type: ignore[list-item]


def _usual(clinic: Clinic, n: int) -> int:
    """The number of a patient who has a usual therapist."""
    return clinic.few + _any(clinic, n) % (clinic.people - 2 * clinic.few)


def _assign(clinic: Clinic, n: int) -> Message:
    """To a therapist of others, who has a place for each."""
    ids = _therapist(clinic.with_place(n)), _patient(_usual(clinic, n))
    return AssignPatientRequest(therapist_id=ids[0], patient_id=ids[1])


def _unassign(clinic: Clinic, n: int) -> Message:
    ids = _therapist(clinic.with_place(n)), _patient(_usual(clinic, n))
    return UnassignPatientRequest(therapist_id=ids[0], patient_id=ids[1])


def _unassign_own(clinic: Clinic, n: int) -> Message:
    patient = _usual(clinic, n)
    return UnassignPatientRequest(therapist_id=_therapist(clinic.therapist_of(patient)), patient_id=_patient(patient))


def _assign_own(clinic: Clinic, n: int) -> Message:
    patient = _usual(clinic, n)
    return AssignPatientRequest(
        therapist_id=_therapist(clinic.therapist_of(patient)),
        patient_id=_patient(patient),
        role=Assignment.ROLE_PRIMARY,
    )


def _update(clinic: Clinic, n: int) -> Message:
    therapist = Therapist(therapist_id=_therapist(_any(clinic, n)), email=f"{secrets.token_hex(4)}@example.org")
    return UpdateTherapistRequest(therapist=therapist, update_mask={"paths": ["email"]})  # type: ignore[arg-type]


def _delete(clinic: Clinic, n: int) -> Message:
    return DeletePatientRequest(patient_id=_patient(clinic.people - 1 - n % clinic.few))


def _undelete(clinic: Clinic, n: int) -> Message:
    return UndeletePatientRequest(patient_id=_patient(clinic.people - 1 - n % clinic.few))


def _transfer(clinic: Clinic, n: int, *, is_back: bool = False) -> Message:
    patient = _usual(clinic, n)
    ids = [_therapist(clinic.therapist_of(patient)), _therapist(clinic.with_place(n))]
    source, target = reversed(ids) if is_back else ids
    return TransferPatientsRequest(
        source_therapist_id=source,
        target_therapist_id=target,
        patient_ids=[_patient(patient)],
        ignore_capacity=True,
        request_id=str(uuid.uuid4()),
    )


if __name__ == "__main__":
    main()
