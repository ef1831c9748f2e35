"""Uses the installed client against a real server. `make client-matrix` runs it with each pair of versions.

    python -W error tests/packaging/client_matrix.py CASELOAD

It needs nothing beyond the client. CASELOAD is the command of the server, which may be in another environment.
"""

import asyncio
import queue
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from importlib.metadata import version
from tempfile import TemporaryDirectory
from typing import Any

import grpc
from caseload.client import Caseload, aio, connect, error_info, pages
from caseload.v1 import patient_service_pb2 as patients
from caseload.v1 import therapist_service_pb2 as therapists
from caseload.v1.resources_pb2 import Patient, Therapist

HUNG_SECONDS = 60
RESTARTS = 3
PACKAGES = ("protobuf", "grpcio", "googleapis-common-protos")


class Server:
    """A server that restarts on the same port."""

    def __init__(self, command: str, folder: str) -> None:
        """Args: folder, of the database."""
        settings = (
            "--database",
            f"sqlite:///{folder}/caseload.db",
            "--drain-seconds",
            "0",
            "--access-log",
            "/dev/null",
        )
        self._command = (command, "serve", *settings)
        self.address = "127.0.0.1:0"
        self.start()

    def start(self) -> None:
        command = (*self._command, "--address", self.address)
        self._process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        assert self._process.stdout
        self.address = self._process.stdout.readline().removeprefix("caseload: serving on ").strip()
        assert self.address, "the server did not start"

    def stop(self) -> None:
        self._process.terminate()
        with self._process:
            assert self._process.wait(HUNG_SECONDS) == 0

    def restart(self) -> None:
        self.stop()
        self.start()


@contextmanager
def serving(command: str) -> Iterator[Server]:
    with TemporaryDirectory() as folder:
        server = Server(command, folder)
        try:
            yield server
        finally:
            server.stop()


def create(caseload: Caseload) -> patients.CreatePatientResponse:
    return caseload.patients.CreatePatient(patients.CreatePatientRequest(patient=Patient(display_name="Bob Ray")))


def check_calls(caseload: Caseload, _server: Server) -> str:
    patient_id = create(caseload).patient.patient_id
    made = caseload.therapists.CreateTherapist(
        therapists.CreateTherapistRequest(therapist=Therapist(display_name="Ada Roe"))
    )
    therapist_id = made.therapist.therapist_id
    assigned = caseload.therapists.AssignPatient(
        therapists.AssignPatientRequest(therapist_id=therapist_id, patient_id=patient_id)
    )
    assert assigned.created
    listed = caseload.therapists.ListTherapistPatients(
        therapists.ListTherapistPatientsRequest(therapist_id=therapist_id)
    )
    assert [entry.patient.patient_id for entry in listed.entries] == [patient_id]
    assert listed.entries[0].assignment.start_time.ToDatetime() == assigned.assignment.start_time.ToDatetime()
    return "calls"


def failed(call: Callable[[], object]) -> grpc.RpcError:
    """The error of a call."""
    try:
        call()
    except grpc.RpcError as error:
        return error
    raise AssertionError("the call should have failed")


def check_error_details(caseload: Caseload, _server: Server) -> str:
    error = failed(lambda: caseload.patients.CreatePatient(patients.CreatePatientRequest()))
    found = error_info(error)
    assert (found.reason, [*found.fields]) == ("INVALID_FIELD", ["patient"]), found
    assert "reason: INVALID_FIELD" in error.__notes__[0]
    return "error details"


def check_pages(caseload: Caseload, _server: Server) -> str:
    create(caseload)
    create(caseload)
    found = list(pages(caseload.patients.ListPatients, patients.ListPatientsRequest(page_size=1)))
    assert len(found) == len({page.patients[0].patient_id for page in found}) >= 2
    return "pages"


def check_cause(_caseload: Caseload, _server: Server) -> str:
    """A call to a wrong address waits until its deadline, and then says why."""
    with connect("127.0.0.1:1", timeout=5) as nowhere:
        error = failed(lambda: create(nowhere))
    assert error.code() == grpc.StatusCode.DEADLINE_EXCEEDED
    assert "refused" in str(error), error
    return "the cause of a deadline"


def check_retries(caseload: Caseload, server: Server) -> str:
    """No call fails while the server restarts."""
    stopping = threading.Event()

    def write() -> int:
        count = 0
        while not stopping.is_set():
            create(caseload)
            count += 1
        return count

    with ThreadPoolExecutor() as threads:
        writes = threads.submit(write)
        for _ in range(RESTARTS):
            server.restart()
            create(caseload)  # the server is back: the other thread continues too
        stopping.set()
        return f"{writes.result()} writes over {RESTARTS} restarts"


def check_watch(caseload: Caseload, server: Server) -> str:
    """A watch continues after a restart, and yields each change once."""
    answers = caseload.watch(create(caseload).revision)
    seen: queue.Queue[str] = queue.Queue()

    def read() -> None:  # in a thread, because an old grpcio does not answer the server between two reads
        for answer in answers:
            for change in answer.change_sets:
                seen.put(change.revision)

    threading.Thread(target=read).start()  # ends with the client
    for _ in range(RESTARTS):
        written = create(caseload).revision
        assert seen.get(timeout=HUNG_SECONDS) == written
        server.restart()
    return f"a watch over {RESTARTS} restarts"


def check_asyncio(_caseload: Caseload, server: Server) -> str:
    asyncio.run(asyncio.wait_for(_use_asyncio(server), HUNG_SECONDS), debug=True)
    return "asyncio"


async def _use_asyncio(server: Server) -> None:
    """Calls, a watch over restarts, and a close that ends the watch."""
    request = patients.CreatePatientRequest(patient=Patient(display_name="Bob Ray"))
    caseload = aio.connect(server.address)
    responses = caseload.watch((await caseload.patients.CreatePatient(request)).revision)
    for restarts in range(RESTARTS + 1):
        if restarts:
            await asyncio.to_thread(server.restart)
        written = (await caseload.patients.CreatePatient(request)).revision
        while not (changes := (await anext(responses)).change_sets):
            pass
        assert changes[0].revision == written
    waiting = asyncio.ensure_future(anext(responses, None))
    await asyncio.sleep(0.1)  # it reads by then, or the close comes first: either ends it
    await caseload.close()
    assert await waiting is None


class FailingInterceptor(grpc.aio.UnaryUnaryClientInterceptor):
    """Fails with an error of its own."""

    async def intercept_unary_unary(self, _continuation: Any, _details: Any, _request: Any) -> Any:
        raise LookupError("no")


def check_close(_caseload: Caseload, server: Server) -> str:
    """An old grpcio raises the error of the interceptor again when the call is cancelled."""

    async def close() -> None:
        caseload = aio.connect(server.address, interceptors=[FailingInterceptor()])
        call = caseload.patients.ListPatients(patients.ListPatientsRequest())
        with suppress(LookupError):
            await call
        await caseload.close()

    asyncio.run(asyncio.wait_for(close(), HUNG_SECONDS))
    return "close"


CHECKS = (
    check_calls,
    check_error_details,
    check_pages,
    check_cause,
    check_retries,
    check_watch,
    check_asyncio,
    check_close,
)


def main() -> None:
    """Runs all checks, and prints what was checked with which versions."""
    with serving(sys.argv[1]) as server, connect(server.address) as caseload:
        done = [check(caseload, server) for check in CHECKS]
    print(", ".join(f"{package} {version(package)}" for package in PACKAGES), "- passed:", ", ".join(done))


if __name__ == "__main__":
    main()
