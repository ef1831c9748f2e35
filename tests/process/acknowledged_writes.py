"""Writers that record acknowledged writes, and the search for lost ones."""

import itertools
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from types import TracebackType
from typing import Self, TypeVar

import grpc
from caseload.v1 import patient_service_pb2, resources_pb2, therapist_service_pb2
from grpc_status import rpc_status

from tests.process.command_runner import CASELOAD
from tests.support.servers import Client, ServerProcess, refusal
from tests.support.waiting import HUNG_SECONDS, eventually, join

T = TypeVar("T")

CREATED, ASSIGNED, RENAMED, UNASSIGNED = range(1, 5)
"""The writes made for each patient, in this order; 0 is none."""

FOR_A_MOMENT = frozenset({"OVERLOADED", "STORE_BUSY", "STORE_UNAVAILABLE", "OUTCOME_UNKNOWN"})
"""Reasons for a temporary rejection; the server's guarantees still hold."""

_CUT = grpc.StatusCode.UNAVAILABLE.name
_NEW_NAME = "Renamed Patient"
_ACTIVE, _ENDED = resources_pb2.Assignment.STATE_ACTIVE, resources_pb2.Assignment.STATE_ENDED


class Writers:
    """Threads that write as fast as the server answers, until it stops or the with block ends."""

    def __init__(self, address: str, name: str, threads: int = 8, *, persistent: bool = False) -> None:
        """Args: name, part of every id, so that ids of later writers differ; persistent, continues with another
        patient over a new connection after a disconnect, until the with block ends. All continue with another patient
        after a temporary rejection."""
        self._address = address
        self._goes_on, self._is_over = persistent, False
        self.refused_for_a_moment = 0
        self.refused: set[str] = set()
        """Other errors, except disconnects."""
        self._acknowledged: list[dict[str, int]] = [{} for _ in range(threads)]
        self._threads = [
            threading.Thread(target=self._write, args=(f"{name}-{number}", acknowledged))
            for number, acknowledged in enumerate(self._acknowledged)
        ]

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._is_over = True
        join(*self._threads)

    @property
    def acknowledged(self) -> dict[str, int]:
        """The last acknowledged write of each patient, by id."""
        return {patient_id: write for each in self._acknowledged for patient_id, write in list(each.items())}

    def wait_for(self, patients: int) -> None:
        """Waits until each thread has done all writes for the given number of patients."""
        self._wait_until(lambda: all(list(one.values()).count(UNASSIGNED) >= patients for one in self._acknowledged))

    def wait_for_more(self, patients: int) -> None:
        """Waits until all threads together have started the given number of further patients."""
        enough = len(self.acknowledged) + patients
        self._wait_until(lambda: len(self.acknowledged) >= enough)

    def _wait_until(self, holds: Callable[[], bool]) -> None:
        eventually(lambda: self.refused or holds())
        assert not self.refused

    def _write(self, name: str, acknowledged: dict[str, int]) -> None:
        for life in itertools.count():
            client = Client(self._address, alone=True)
            try:
                self._write_all(client, f"{name}-{life}", acknowledged)
            except grpc.RpcError as error:
                if not self._goes_on_after(error):
                    return
            else:
                return
            finally:
                client.close()
            time.sleep(0.005)

    def _write_all(self, client: Client, name: str, acknowledged: dict[str, int]) -> None:
        therapist = resources_pb2.Therapist(display_name="Therapist")
        client.therapists.CreateTherapist(
            therapist_service_pb2.CreateTherapistRequest(therapist_id=name, therapist=therapist), timeout=HUNG_SECONDS
        )
        for number in itertools.count():
            if self._is_over:
                return
            _write_patient(client, name, f"{name}-{number}", acknowledged)

    def _goes_on_after(self, error: grpc.RpcError) -> bool:
        reason = reason_of(error)
        self.refused_for_a_moment += reason in FOR_A_MOMENT
        self.refused |= {reason} - FOR_A_MOMENT - {_CUT}
        return not self._is_over and (self._goes_on or reason in FOR_A_MOMENT)


def reason_of(error: grpc.RpcError) -> str:
    """The server's reason, or the status code without one, as after a disconnect."""
    if rpc_status.from_call(error) is not None:  # type: ignore[arg-type]  # it is a grpc.Call too
        return refusal(error).reason
    return error.code().name


def at_last(call: Callable[[], T]) -> T:
    """The result of a call, repeated after temporary rejections."""

    def answers() -> list[T]:
        try:
            return [call()]
        except grpc.RpcError as error:
            if reason_of(error) in FOR_A_MOMENT:
                return []
            raise

    return eventually(answers)[0]


def _write_patient(client: Client, therapist_id: str, patient_id: str, acknowledged: dict[str, int]) -> None:
    patient = resources_pb2.Patient(patient_id=patient_id, display_name="Patient")
    client.patients.CreatePatient(
        patient_service_pb2.CreatePatientRequest(patient_id=patient_id, patient=patient), timeout=HUNG_SECONDS
    )
    acknowledged[patient_id] = CREATED
    client.therapists.AssignPatient(
        therapist_service_pb2.AssignPatientRequest(therapist_id=therapist_id, patient_id=patient_id),
        timeout=HUNG_SECONDS,
    )
    acknowledged[patient_id] = ASSIGNED
    patient.display_name = _NEW_NAME
    client.patients.UpdatePatient(patient_service_pb2.UpdatePatientRequest(patient=patient), timeout=HUNG_SECONDS)
    acknowledged[patient_id] = RENAMED
    client.therapists.UnassignPatient(
        therapist_service_pb2.UnassignPatientRequest(therapist_id=therapist_id, patient_id=patient_id),
        timeout=HUNG_SECONDS,
    )
    acknowledged[patient_id] = UNASSIGNED


def stored(client: Client) -> dict[str, int]:
    """The last stored write of each patient, by id."""
    writes = {patient.patient_id: CREATED for patient in _patients(client)}
    everyone = therapist_service_pb2.ListTherapistsRequest(page_size=1000)
    for therapist in client.therapists.ListTherapists(everyone, timeout=HUNG_SECONDS).therapists:
        for entry in _assigned(client, therapist.therapist_id):
            writes[entry.patient.patient_id] = _last_write(entry)
    return writes


def _last_write(entry: therapist_service_pb2.ListTherapistPatientsResponse.Entry) -> int:
    if entry.patient.display_name != _NEW_NAME:
        return ASSIGNED
    return UNASSIGNED if entry.assignment.HasField("end_time") else RENAMED


def _patients(client: Client) -> Iterator[resources_pb2.Patient]:
    request = patient_service_pb2.ListPatientsRequest(page_size=1000)
    for _ in range(100):
        page = client.patients.ListPatients(request, timeout=HUNG_SECONDS)
        yield from page.patients
        request.page_token = page.next_page_token
        if not page.next_page_token:
            return


def _assigned(client: Client, therapist_id: str) -> Iterator[therapist_service_pb2.ListTherapistPatientsResponse.Entry]:
    request = therapist_service_pb2.ListTherapistPatientsRequest(
        therapist_id=therapist_id, page_size=1000, states=[_ACTIVE, _ENDED]
    )
    for _ in range(100):
        page = client.therapists.ListTherapistPatients(request, timeout=HUNG_SECONDS)
        yield from page.entries
        request.page_token = page.next_page_token
        if not page.next_page_token:
            return


def lost(acknowledged: dict[str, int], stored: dict[str, int]) -> list[str]:
    """The patients with an acknowledged write that is not stored."""
    return [patient_id for patient_id, write in acknowledged.items() if stored.get(patient_id, 0) < write]


def invented(acknowledged: dict[str, int], stored: dict[str, int]) -> list[str]:
    """The patients with a stored write that was never sent. Each writer has one write in flight."""
    return [patient_id for patient_id, write in stored.items() if acknowledged.get(patient_id, 0) + 1 < write]


def write_until_killed(url: str, name: str, command: Sequence[str] = CASELOAD) -> dict[str, int]:
    """Writes until a kill. Returns the last acknowledged write of each patient."""
    with ServerProcess(url, command=command) as server, Writers(server.address, name) as writers:
        writers.wait_for(patients=10)
        server.kill()
    return writers.acknowledged


def stored_after_restart(url: str) -> dict[str, int]:
    """The last stored write of each patient, read by starting and stopping a server."""
    with ServerProcess(url) as server:
        client = Client(server.address)
        found = stored(client)
        client.close()
        code, _ = server.stop()
    assert code == 0
    return found
