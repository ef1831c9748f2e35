"""Restarts and crashes under load, seen by an application with the shipped client.

python -m tests.process.rolling_restart      two instances on PostgreSQL, stopped and started in turn; killed in turn;
    --calls N                           and one on SQLite that is restarted ten times; N calls each

Prints a line of each. Exit code 1 where a promise was not kept: a call failed, a write was lost or done twice, or one
took more than a second and outlasted the restart; 2 without PostgreSQL.
"""

import argparse
import itertools
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import grpc
from caseload.client import Caseload, connect, error_info
from caseload.v1 import assignment_service_pb2 as assignments
from caseload.v1 import change_service_pb2 as changes
from caseload.v1 import patient_service_pb2 as patients
from caseload.v1 import therapist_service_pb2 as therapists
from caseload.v1.resources_pb2 import Patient, Therapist

from tests.conftest import sqlite_file
from tests.support.postgres.cluster import SAFE, Cluster, NoPostgres
from tests.support.postgres.databases import Databases
from tests.support.postgres.fixtures import migrate
from tests.support.servers import ServerProcess

CALLERS = 32
LEAST_RESTARTS = 2
"""Restarts that a run makes at least."""
PAUSE_SECONDS = 0.5
"""Seconds between two restarts."""
STALL_SECONDS = 1.0
"""The guarantee: no call takes longer while one instance restarts, in seconds."""
SPARE_SECONDS = 0.5
"""Seconds by which a call may outlast the restart."""
COUNTING = (sys.executable, str(Path(__file__).with_name("retry_counting_command.py")))


@dataclass
class Report:
    """What the application saw, and what the database holds."""

    calls: int = 0
    failed: list[str] = field(default_factory=list)
    longest: float = 0.0
    """Seconds of each call, including retries."""
    retries: int = 0
    """Retries that reached a server."""
    restarts: int = 0
    longest_restart: float = 0.0
    """Seconds from the signal to the ready line."""
    acknowledged: list[str] = field(default_factory=list)
    """The revisions returned by writes."""
    written: list[str] = field(default_factory=list)
    """The revisions in the log."""

    @property
    def stalled(self) -> bool:
        """Whether a call took longer than guaranteed, beyond a restart that was slow on a loaded machine."""
        return self.longest > max(STALL_SECONDS, self.longest_restart + SPARE_SECONDS)

    def faults(self) -> Iterator[str]:
        """The broken guarantees."""
        if self.failed:
            yield f"{len(self.failed)} calls failed, the first with {self.failed[0]}"
        if sorted(self.acknowledged) != sorted(self.written):
            yield f"{len(self.acknowledged)} writes acknowledged, {len(self.written)} written"

    def __str__(self) -> str:
        twice = len(self.written) - len(set(self.acknowledged))
        return (
            f"{self.calls} calls, {len(self.acknowledged)} of them writes; failed: {len(self.failed)}; "
            f"written twice: {twice}; retries: {self.retries}; restarts: {self.restarts}, "
            f"the longest {self.longest_restart:.2f} s; longest call: {self.longest:.2f} s"
        )


class Instance:
    """A server that restarts on the same port."""

    def __init__(self, database: str, folder: Path, *arguments: str) -> None:
        """Args: folder, for the count of retries; arguments, of `caseload serve`."""
        self._count = {"CASELOAD_TEST_RETRIES": str(folder / "retries")}
        self._database, self._arguments = database, arguments
        self.server = self._started()
        self.address = self.server.address

    def _started(self, *arguments: str) -> ServerProcess:
        server = ServerProcess(self._database, *self._arguments, *arguments, command=COUNTING, environment=self._count)
        return server.__enter__()

    def restart(self) -> None:
        code, log = self.server.stop()
        assert code == 0, log
        self.server = self._started("--address", self.address)

    def crash(self) -> None:
        self.end()
        self.server = self._started("--address", self.address)

    def end(self) -> None:
        """Ends the server with kill -9."""
        self.server.__exit__(None, None, None)


class Callers:
    """Callers that alternate reads and writes, each on its own patient, for the given number of calls."""

    def __init__(self, caseload: Caseload, report: Report, calls: int) -> None:
        self._caseload = caseload
        self._report = report
        self._calls, self._begun = calls, itertools.count()
        self._enough = threading.Event()
        self._threads = [threading.Thread(target=self._call_on, args=(f"t{n}",)) for n in range(CALLERS)]

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    def disturbed_enough(self) -> None:
        """Allows the callers to stop; until then they continue beyond the given number of calls."""
        self._enough.set()

    def are_calling(self) -> bool:
        return any(thread.is_alive() for thread in self._threads)

    def join(self) -> None:
        for thread in self._threads:
            thread.join(300)
            assert not thread.is_alive(), "calls do not end"
        self._report.calls = next(self._begun) - CALLERS  # each thread counted one call too many before it ended

    def _call_on(self, therapist_id: str) -> None:
        patient_id = ""
        for call in itertools.cycle(ROUND):
            if next(self._begun) >= self._calls and self._enough.is_set():
                return
            began = time.monotonic()
            try:
                answer = call(self._caseload, therapist_id, patient_id)
            except grpc.RpcError as error:
                self._report.failed.append(f"{error.code()} {error_info(error).reason} {error.details()}")
                continue
            finally:
                self._report.longest = max(self._report.longest, time.monotonic() - began)
            if call in WRITES:
                self._report.acknowledged.append(answer.revision)
            if call is _create:
                patient_id = answer.patient.patient_id


def _create(caseload: Caseload, _therapist_id: str, _patient_id: str) -> patients.CreatePatientResponse:
    return caseload.patients.CreatePatient(patients.CreatePatientRequest(patient=Patient(display_name="Bob Ray")))


def _get(caseload: Caseload, _therapist_id: str, patient_id: str) -> patients.GetPatientResponse:
    return caseload.patients.GetPatient(patients.GetPatientRequest(patient_id=patient_id))


def _assign(caseload: Caseload, therapist_id: str, patient_id: str) -> therapists.AssignPatientResponse:
    return caseload.therapists.AssignPatient(
        therapists.AssignPatientRequest(therapist_id=therapist_id, patient_id=patient_id)
    )


def _check(caseload: Caseload, therapist_id: str, patient_id: str) -> assignments.CheckAssignmentsResponse:
    pair = assignments.CheckAssignmentsRequest.Pair(therapist_id=therapist_id, patient_id=patient_id)
    return caseload.assignments.CheckAssignments(assignments.CheckAssignmentsRequest(pairs=[pair]))


def _rename(caseload: Caseload, _therapist_id: str, patient_id: str) -> patients.UpdatePatientResponse:
    request = patients.UpdatePatientRequest(patient=Patient(patient_id=patient_id, display_name="Bob Roy"))
    request.update_mask.paths.append("display_name")
    return caseload.patients.UpdatePatient(request)


def _list(caseload: Caseload, therapist_id: str, _patient_id: str) -> therapists.ListTherapistPatientsResponse:
    return caseload.therapists.ListTherapistPatients(therapists.ListTherapistPatientsRequest(therapist_id=therapist_id))


def _unassign(caseload: Caseload, therapist_id: str, patient_id: str) -> patients.UnassignTherapistResponse:
    return caseload.patients.UnassignTherapist(
        patients.UnassignTherapistRequest(patient_id=patient_id, therapist_id=therapist_id)
    )


ROUND: list[Callable[[Caseload, str, str], Any]] = [_create, _get, _assign, _check, _rename, _list, _unassign, _get]
WRITES = (_create, _assign, _rename, _unassign)
"""Calls that change something, so each is one change set."""


@contextmanager
def running(database: str, count: int, *arguments: str) -> Iterator[tuple[list[Instance], Report]]:
    """Starts count instances, and yields a report that is complete after the with block."""
    report = Report()
    with TemporaryDirectory() as folder, ExitStack() as stack:
        instances = []
        for _ in range(count):
            instances.append(Instance(database, Path(folder), *arguments))
            stack.callback(instances[-1].end)
        yield instances, report
        retries = Path(folder) / "retries"
        report.retries = retries.stat().st_size


def under_load(
    instances: list[Instance], report: Report, calls: int, disturb: Callable[[Instance], None], most: int | None = None
) -> None:
    """Makes calls while the instances are disturbed in turn."""
    with connect("ipv4:" + ",".join(one.address for one in instances)) as caseload:
        made = make_therapists(caseload)
        callers = Callers(caseload, report, calls)
        callers.start()
        try:
            for instance in itertools.islice(itertools.cycle(instances), most):
                time.sleep(PAUSE_SECONDS)
                if not callers.are_calling():
                    break
                began = time.monotonic()
                disturb(instance)
                report.longest_restart = max(report.longest_restart, time.monotonic() - began)
                report.restarts += 1
                if report.restarts >= LEAST_RESTARTS:
                    callers.disturbed_enough()
        finally:
            callers.disturbed_enough()
        callers.join()
        report.written = list(revisions(caseload, made))


def make_therapists(caseload: Caseload) -> str:
    """Makes a therapist for each caller. Returns the last revision."""
    for n in range(CALLERS):
        made = caseload.therapists.CreateTherapist(
            therapists.CreateTherapistRequest(therapist_id=f"t{n}", therapist=Therapist(display_name="Ann Lee"))
        )
    return made.revision


def revisions(caseload: Caseload, after: str) -> Iterator[str]:
    """The revisions in the log after the given one."""
    while True:
        request = changes.ListChangesRequest(after_revision=after, page_size=1000)
        page = caseload.changes.ListChanges(request)
        yield from (one.revision for one in page.change_sets)
        after = page.through_revision
        if after == page.head_revision:
            return


def rolling(database: str, calls: int) -> Report:
    """Two instances, restarted in turn, twice."""
    with running(database, 2, "--drain-seconds", "0.5") as (instances, report):
        under_load(instances, report, calls, Instance.restart)
    return report


def crashing(database: str, calls: int) -> Report:
    """Two instances, killed in turn, twice."""
    with running(database, 2) as (instances, report):
        under_load(instances, report, calls, Instance.crash)
    return report


def alone(database: str, calls: int) -> Report:
    """One instance that is restarted ten times."""
    with running(database, 1) as (instances, report):
        under_load(instances, report, calls, Instance.restart, most=10)
    return report


def main() -> None:
    """Runs the three scenarios."""
    parser = argparse.ArgumentParser(description="Restarts and crashes under load.")
    parser.add_argument("--calls", type=int, default=20_000, help="of each run (default: 20,000)")
    calls = parser.parse_args().calls
    try:
        with Cluster(SAFE) as cluster, Databases(cluster, migrate) as databases:
            with databases.acquire() as url:
                kept = shown("rolling restarts", rolling(url, calls))
            with databases.acquire() as url:
                kept &= shown("kill -9", crashing(url, calls))
    except NoPostgres as error:
        print(error, file=sys.stderr)
        sys.exit(2)
    with sqlite_file() as url:
        report = alone(url, calls)
    kept &= shown("one instance", report)
    if report.stalled:
        sys.exit(f"   FAILED: a call took more than {STALL_SECONDS} s, and more than the restart")
    sys.exit(not kept)


def shown(name: str, report: Report) -> bool:
    """Prints the report. Returns whether it is free of faults."""
    faults = list(report.faults())
    print(f"{name}: {report}", *faults, sep="\n   FAILED: ", flush=True)
    return not faults


if __name__ == "__main__":
    main()
