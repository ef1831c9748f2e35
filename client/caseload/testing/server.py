"""A real server in a process of its own, so that what it requires stays out of the caller's environment."""

import json
import subprocess
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

from caseload.client import connect
from caseload.v1.patient_service_pb2 import CreatePatientRequest
from caseload.v1.resources_pb2 import Assignment, Patient, Therapist
from caseload.v1.therapist_service_pb2 import AssignPatientRequest, CreateTherapistRequest

_STOP_SECONDS: Final = 30


class CaseloadForTests:
    """A server on a temporary SQLite database. It accepts every caller, on loopback, without a key."""

    def __init__(self, command: Path, log: Path) -> None:
        """Starts the server.

        Args:
            command: caseload-test-server, perhaps of another environment.
            log: the file for the server's log.

        Raises RuntimeError where it does not start.
        """
        pipes: Any = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        with log.open("a") as errors:
            self._process: Any = subprocess.Popen([command], stderr=errors, start_new_session=True, **pipes)
        self._log = log
        self.address: Final[str] = self._answer()["address"]
        """HOST:PORT, the same for the whole life of the process."""
        self.client: Final = connect(self.address)
        """A client of the server."""

    def clear(self) -> None:
        """Empties the store, and ends all faults. Revisions go on: an open watch yields what is written later."""
        self._tell("clear")

    def restart(self) -> None:
        """Stops the server and starts it again, on the same port and database. Calls in progress get a second."""
        with self.stopped():
            pass

    @contextmanager
    def stopped(self) -> Generator[None]:
        """Nothing listens inside the with block."""
        self._tell("stop")
        try:
            yield
        finally:
            self._tell("start")

    @contextmanager
    def failing(self, reason: str, calls: int | None = None, retry_after_seconds: float = 0.01) -> Generator[None]:
        """Calls that reach the database fail inside the with block. Only one fault can be set at a time.

        Args:
            reason: OVERLOADED, SHUTTING_DOWN, STORE_BUSY, STORE_FULL or STORE_UNAVAILABLE.
            calls: how many attempts fail; None for all. The client repeats a call up to four times.
            retry_after_seconds: the delay in the error, after which the client retries. Short, so that tests are.

        Raises ValueError where the reason is another.
        """
        with self._fault(reason=reason, calls=calls, retry_after_seconds=retry_after_seconds):
            yield

    @contextmanager
    def slow(self, seconds: float) -> Generator[None]:
        """Calls wait inside the with block, before each operation on the database. Args: seconds, of each wait."""
        with self._fault(delay_seconds=seconds):
            yield

    @contextmanager
    def _fault(self, **settings: Any) -> Generator[None]:
        self._tell("fault", **settings)
        try:
            yield
        finally:
            self._tell("fault")

    def add_therapist(self, display_name: str = "Ada Roe", **fields: Any) -> Therapist:
        """Creates a therapist. Args: fields, of the therapist."""
        therapist = Therapist(display_name=display_name, **fields)
        return self.client.therapists.CreateTherapist(CreateTherapistRequest(therapist=therapist)).therapist

    def add_patient(self, display_name: str = "Jane Doe", **fields: Any) -> Patient:
        """Creates a patient. Args: fields, of the patient."""
        patient = Patient(display_name=display_name, **fields)
        return self.client.patients.CreatePatient(CreatePatientRequest(patient=patient)).patient

    def assign(self, therapist: Therapist, patient: Patient, **fields: Any) -> Assignment:
        """Assigns a patient to a therapist. Args: fields, of AssignPatientRequest."""
        request = AssignPatientRequest(therapist_id=therapist.therapist_id, patient_id=patient.patient_id, **fields)
        return self.client.therapists.AssignPatient(request).assignment

    def close(self) -> None:
        """Stops the server and deletes its database."""
        self.client.close()
        self._end()

    def _end(self) -> None:
        with self._process:  # closes the pipes, at whose end the server stops
            self._process.stdin.close()
            self._process.wait(_STOP_SECONDS)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _tell(self, do: str, **settings: Any) -> None:
        print(json.dumps({"do": do, **settings}), file=self._process.stdin, flush=True)
        if error := self._answer().get("error"):
            raise ValueError(error)

    def _answer(self) -> dict[str, str]:
        line = self._process.stdout.readline()
        if not line:
            self._end()
            raise RuntimeError(f"caseload-test-server has ended, see {self._log}")
        answer: dict[str, str] = json.loads(line)
        return answer
