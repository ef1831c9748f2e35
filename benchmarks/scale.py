"""Compares the latency of calls on a large data set with that on a small one: two servers in turn.

python -m benchmarks.scale [--large N | --smoke] [--postgres]

The data sets are those of synthetic_data.py, with 10,000 and N assignments (default 10,000,000, which takes ten
minutes to create, and 15 GB of data/). Each call uses records from all over the file, the same in every
round, so their pages are in memory after the first.
"""

import argparse
import copy
import random
import secrets
import statistics
import tempfile
import uuid
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, closing
from functools import partial
from pathlib import Path
from typing import Any, Final, NamedTuple

from caseload.v1.assignment_service_pb2 import (
    CheckAssignmentsRequest,
    TransferPatientsRequest,
)
from caseload.v1.change_service_pb2 import ListChangesRequest
from caseload.v1.patient_service_pb2 import (
    DeletePatientRequest,
    GetPatientRequest,
    UndeletePatientRequest,
)
from caseload.v1.resources_pb2 import Assignment, Therapist
from caseload.v1.therapist_service_pb2 import (
    AssignPatientRequest,
    GetTherapistRequest,
    UnassignPatientRequest,
    UpdateTherapistRequest,
)
from caseload_server.domain.limits import MAX_PAGE_SIZE
from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp

from benchmarks import synthetic_data
from benchmarks.list_requests import FIRST_TIME, NAME_TARGET, NOW, TARGET, by_name, lists, patient_id, therapist_id
from benchmarks.load import LoadFailed
from benchmarks.rounds import Effort
from benchmarks.served_data_sets import Serve, ServedDataSet, on_postgres, on_sqlite
from benchmarks.synthetic_data import DataSet
from benchmarks.table import Result, Target, figure, spread

ROOT: Final = Path(__file__).parents[1]
SMALL: Final = 10_000
LARGE: Final = 10_000_000
_CALLS_A_ROUND: Final = 60
_SLOW_CALLS_A_ROUND: Final = 5

MakeRequest = Callable[[DataSet, int], Message]
"""Builds the nth request for a data set."""


class Measurement(NamedTuple):
    """A call to measure on both data sets."""

    title: str
    make: MakeRequest
    undo: MakeRequest | None = None
    """An unmeasured call after each, which reverts it."""
    page: int = 1
    target: Target | None = TARGET
    """None for calls whose price grows with what they match."""


def main() -> None:
    """Prints a line for each call."""
    parser = argparse.ArgumentParser(description="Compares calls on a large data set with those on a small one.")
    parser.add_argument("--large", type=int, default=LARGE, help="assignments in the large data set")
    parser.add_argument("--folder", type=Path, help="keep the files here, and reuse existing ones")
    parser.add_argument("--smoke", action="store_true", help="a few seconds, a smoke test")
    parser.add_argument("--postgres", action="store_true", help="on PostgreSQL, in a temporary local cluster")
    arguments = parser.parse_args()
    (ROOT / "data").mkdir(mode=0o700, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="bench-", dir=ROOT / "data") as folder:
        large, rounds = (2 * SMALL, 1) if arguments.smoke else (arguments.large, 9)
        serve = on_postgres() if arguments.postgres else on_sqlite(arguments.folder or Path(folder))
        with serve as serve_data_set:
            for result in _compare_all(serve_data_set, large, rounds, [*measurements(), *large_pages()]):
                print(f"{result.title}: {figure(result)}, {result.sides}", flush=True)


def measure(folder: Path, effort: Effort) -> Iterator[Result]:
    """Yields a row for each RPC, the worst of its lists and of its searches by name; then what has no target."""
    with on_sqlite(folder) as serve:
        large = 2 * SMALL if effort.is_smoke else LARGE
        results = list(_compare_all(serve, large, effort.rounds, measurements()))
    worst: dict[str, Result] = {}
    for result in results:
        rpc = result.title.replace(",", " ").replace(":", " ").split()[0]
        if result.target is NAME_TARGET:
            rpc += " by name"
        if result.target and (rpc not in worst or result.figure.median > worst[rpc].figure.median):
            worst[rpc] = result
    for rpc, result in worst.items():
        case, _, compared_with = result.title.partition(": ")
        which = result.sides if case == rpc else f"{case}: {result.sides}"
        yield result._replace(title=f"{rpc}: {compared_with}", sides=which)
    yield from (result for result in results if not result.target)


def _compare_all(serve: Serve, large: int, rounds: int, calls: Iterable[Measurement]) -> Iterator[Result]:
    """Yields the ratio of each call's latency: large data set over small one."""
    with ExitStack() as stack:
        sides = []
        for count in (large, SMALL):
            server = stack.enter_context(serve(count))
            sides.append(
                stack.enter_context(closing(ServedDataSet(server.address, synthetic_data.of_assignments(count))))
            )
        for measurement in calls:
            yield _compare(measurement, sides, rounds)


def _compare(measurement: Measurement, sides: list[ServedDataSet], rounds: int) -> Result:
    makes = [_on_page(side, measurement) for side in sides]
    ratios, medians = [], []
    calls = _CALLS_A_ROUND if measurement.target and rounds > 1 else _SLOW_CALLS_A_ROUND  # one round is a smoke test
    for _ in range(1 + rounds):  # in the first round some pages are not in memory yet
        times: list[list[float]] = [[], []]
        for n in range(calls):
            for side, make, taken in zip(sides, makes, times, strict=True):
                taken.append(side.seconds(make(side.data, n)))
                if measurement.undo:
                    side.call(measurement.undo(side.data, n))
        medians.append([statistics.median(one) * 1e3 for one in times])
        ratios.append(medians[-1][0] / medians[-1][1])
    large, small = (statistics.median(one) for one in zip(*medians[1:], strict=True))
    title = f"{measurement.title}{', 100th page' if measurement.page > 1 else ''}: p50 in a large store / a small one"
    return Result(title, spread(ratios[1:]), measurement.target, sides=f"{large:.2f} / {small:.2f} ms")


def _on_page(side: ServedDataSet, measurement: Measurement) -> MakeRequest:
    """The builder of the measurement's request; for a later page, a constant request for that page."""
    if measurement.page == 1:
        return measurement.make
    request: Any = copy.copy(measurement.make(side.data, 0))
    for _ in range(measurement.page - 1):
        answer = side.call(request)
        if isinstance(request, ListChangesRequest):
            request.after_revision = answer.through_revision
        else:
            request.page_token = answer.next_page_token
            if not request.page_token:
                raise LoadFailed(f"{measurement.title}: there is no such page")
    return lambda _data, _n: request


def measurements() -> Iterator[Measurement]:
    """The calls to measure."""
    yield Measurement("GetTherapist", lambda data, n: GetTherapistRequest(therapist_id=therapist_id(_any(data, n))))
    yield Measurement("GetPatient", lambda data, n: GetPatientRequest(patient_id=patient_id(_any(data, n))))
    yield Measurement("CheckAssignments", _check)
    yield Measurement("CheckAssignments as known at a time", partial(_check, known_at=FIRST_TIME))
    for title, request, target, pages in lists():
        for page in pages:
            yield Measurement(title, partial(_same, request), page=page, target=target)
    for title, is_whole in (("a rare word", False), ("a whole name", True)):
        make = partial(_by_name, is_whole=is_whole)
        yield Measurement(f"ListPatients by {title}", make, target=NAME_TARGET)
    yield Measurement("AssignPatient", _assign, _unassign)
    yield Measurement("UnassignPatient", _unassign_own, _assign_own)
    yield Measurement("UpdateTherapist", _update)
    yield Measurement("DeletePatient", _delete, _undelete)
    yield Measurement("TransferPatients", _transfer, partial(_transfer, is_back=True))


def large_pages() -> Iterator[Measurement]:
    """The first page of each list, of a thousand records. Where a small data set has fewer, the ratio means nothing."""
    for one in lists():
        large: Any = copy.copy(one.request)
        large.page_size = MAX_PAGE_SIZE
        yield Measurement(f"{one.title}, a page of {MAX_PAGE_SIZE}", partial(_same, large), target=None)


def _same(request: Message, _data: DataSet, _n: int) -> Message:
    return request


def _by_name(data: DataSet, _n: int, *, is_whole: bool) -> Message:
    return by_name(data, is_whole=is_whole)


def _any(data: DataSet, n: int) -> int:
    """A pseudorandom record number for each n."""
    return random.Random(n).randrange(data.people)  # noqa: S311 - reproducible


def _check(data: DataSet, n: int, *, known_at: Timestamp | None = None) -> Message:
    patient = _any(data, n)
    pair = {"therapist_id": therapist_id(data.therapist_of(patient)), "patient_id": patient_id(patient)}
    return CheckAssignmentsRequest(pairs=[pair], as_of_time=known_at and NOW, known_at=known_at)  # type: ignore[list-item]


def _usual(data: DataSet, n: int) -> int:
    """The number of a patient with an ordinary therapist, or of an ordinary therapist."""
    return data.few + _any(data, n) % (data.people - 2 * data.few)


def _assign(data: DataSet, n: int) -> Message:
    """Assigns the patient to another therapist with free capacity."""
    ids = therapist_id(data.therapist_with_capacity(n)), patient_id(_usual(data, n))
    return AssignPatientRequest(therapist_id=ids[0], patient_id=ids[1])


def _unassign(data: DataSet, n: int) -> Message:
    ids = therapist_id(data.therapist_with_capacity(n)), patient_id(_usual(data, n))
    return UnassignPatientRequest(therapist_id=ids[0], patient_id=ids[1])


def _unassign_own(data: DataSet, n: int) -> Message:
    patient = _usual(data, n)
    return UnassignPatientRequest(therapist_id=therapist_id(data.therapist_of(patient)), patient_id=patient_id(patient))


def _assign_own(data: DataSet, n: int) -> Message:
    patient = _usual(data, n)
    return AssignPatientRequest(
        therapist_id=therapist_id(data.therapist_of(patient)),
        patient_id=patient_id(patient),
        role=Assignment.ROLE_PRIMARY,
    )


def _update(data: DataSet, n: int) -> Message:
    therapist = Therapist(therapist_id=therapist_id(_usual(data, n)), email=f"{secrets.token_hex(4)}@example.org")
    return UpdateTherapistRequest(therapist=therapist, update_mask={"paths": ["email"]})  # type: ignore[arg-type]


def _delete(data: DataSet, n: int) -> Message:
    return DeletePatientRequest(patient_id=patient_id(data.people - 1 - n % data.few))


def _undelete(data: DataSet, n: int) -> Message:
    return UndeletePatientRequest(patient_id=patient_id(data.people - 1 - n % data.few))


def _transfer(data: DataSet, n: int, *, is_back: bool = False) -> Message:
    patient = _usual(data, n)
    ids = [therapist_id(data.therapist_of(patient)), therapist_id(data.therapist_with_capacity(n))]
    source, target = reversed(ids) if is_back else ids
    return TransferPatientsRequest(
        source_therapist_id=source,
        target_therapist_id=target,
        patient_ids=[patient_id(patient)],
        ignore_capacity=True,
        request_id=str(uuid.uuid4()),
    )


if __name__ == "__main__":
    main()
