"""A real server in its own process, so that its requirements can be in another environment."""

import json
import subprocess
import threading
from collections.abc import Generator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

from caseload.client import connect
from caseload.v1.patient_service_pb2 import CreatePatientRequest
from caseload.v1.resources_pb2 import Assignment, Patient, Therapist
from caseload.v1.therapist_service_pb2 import AssignPatientRequest, CreateTherapistRequest

_STOP_SECONDS: Final = 30


class CaseloadForTests:
    """A server on a temporary SQLite database. It listens on loopback, and accepts every caller without a key."""

    def __init__(self, command: Path, log: Path) -> None:
        """Starts the server.

        Args:
            command: the path of caseload-test-server, which can be in another environment.
            log: the file to which the server appends its log.

        Raises RuntimeError if the server does not start, and OSError if the command cannot be run.
        """
        pipes: Any = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        with log.open("a") as errors:
            self._process: Any = subprocess.Popen([command], stderr=errors, start_new_session=True, **pipes)
        self._log = log
        self._lock = threading.Lock()
        self._thread = threading.local()
        self.address: Final[str] = self._answer()["address"]
        """HOST:PORT, the same until close()."""
        self.client: Final = connect(self.address)
        """A synchronous client of the server."""

    def clear(self) -> None:
        """Empties the store and ends all faults. It does not reset revisions: an open watch receives later writes."""
        self._send("clear")
        self._thread.has_fault = False

    def restart(self) -> None:
        """Restarts the server on the same port and database. Calls in progress have one second to end."""
        with self.stopped():
            pass

    @contextmanager
    def stopped(self) -> Generator[None]:
        """Stops the server for the with block, so nothing listens at its address."""
        self._send("stop")
        try:
            yield
        finally:
            self._send("start")

    @contextmanager
    def failing(self, reason: str, calls: int | None = None, retry_after_seconds: float = 0.01) -> Generator[None]:
        """Makes calls fail in the with block, before they use the database.

        A thread cannot have a block with failing() or slow() inside another one.

        Args:
            reason: OVERLOADED, SHUTTING_DOWN, STORE_BUSY, STORE_FULL or STORE_UNAVAILABLE.
            calls: the number of attempts that fail; None for all. The client makes up to five attempts per call.
            retry_after_seconds: the retry delay of OVERLOADED, STORE_BUSY and STORE_UNAVAILABLE, in seconds.

        Raises ValueError if the reason is another one, and RuntimeError inside another block.
        """
        with self._fault(reason=reason, calls=calls, retry_after_seconds=retry_after_seconds):
            yield

    @contextmanager
    def slow(self, seconds: float) -> Generator[None]:
        """Delays each database operation of a call in the with block.

        A call that still waits at the end of the block fails with SHUTTING_DOWN, which the client retries.

        Args:
            seconds: the delay of each operation.

        Raises RuntimeError inside another block with failing() or slow().
        """
        with self._fault(delay_seconds=seconds):
            yield

    @contextmanager
    def _fault(self, **settings: Any) -> Generator[None]:
        if getattr(self._thread, "has_fault", False):
            raise RuntimeError("failing() and slow() cannot be nested: end the outer with block first")
        self._send("fault", **settings)
        self._thread.has_fault = True
        try:
            yield
        finally:
            self._thread.has_fault = False
            self._send("fault")

    def add_therapist(self, display_name: str = "Ada Roe", **fields: Any) -> Therapist:
        """Creates and returns a therapist.

        Args:
            display_name: the name of the therapist.
            **fields: the other fields of the Therapist message.

        Raises grpc.RpcError if the call fails.
        """
        therapist = Therapist(display_name=display_name, **fields)
        return self.client.therapists.CreateTherapist(CreateTherapistRequest(therapist=therapist)).therapist

    def add_patient(self, display_name: str = "Jane Doe", **fields: Any) -> Patient:
        """Creates and returns a patient.

        Args:
            display_name: the name of the patient.
            **fields: the other fields of the Patient message.

        Raises grpc.RpcError if the call fails.
        """
        patient = Patient(display_name=display_name, **fields)
        return self.client.patients.CreatePatient(CreatePatientRequest(patient=patient)).patient

    def assign(self, therapist: Therapist, patient: Patient, **fields: Any) -> Assignment:
        """Assigns a patient to a therapist, and returns the assignment.

        Args:
            therapist: the therapist.
            patient: the patient.
            **fields: the other fields of AssignPatientRequest.

        Raises grpc.RpcError if the call fails.
        """
        request = AssignPatientRequest(therapist_id=therapist.therapist_id, patient_id=patient.patient_id, **fields)
        return self.client.therapists.AssignPatient(request).assignment

    def close(self) -> None:
        """Stops the server and deletes its database."""
        self.client.close()
        self._end()

    def _end(self) -> None:
        with self._process:  # closes the pipes, at whose end the server stops
            with suppress(BrokenPipeError):  # it has ended already
                self._process.stdin.close()
            self._process.wait(_STOP_SECONDS)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _send(self, do: str, **settings: Any) -> None:
        command = json.dumps({"do": do, **settings})
        with self._lock:  # each thread must get its own answer
            # If the server has ended or the pipe is closed, no answer follows.
            with suppress(BrokenPipeError, ValueError):
                print(command, file=self._process.stdin, flush=True)
            error = self._answer().get("error")
        if error:
            raise ValueError(error)

    def _answer(self) -> dict[str, str]:
        pipe = self._process.stdout
        line = "" if pipe.closed else pipe.readline()
        if not line:
            self._end()
            raise RuntimeError(f"caseload-test-server has ended, see {self._log}")
        answer: dict[str, str] = json.loads(line)
        return answer
