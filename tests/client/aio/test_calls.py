"""The stubs of the asyncio client: the defaults of each call, and how a call ends."""

import asyncio
import socket
import traceback
from pathlib import Path
from threading import Event
from typing import Any

import grpc
import pytest
from caseload.client.aio import Caseload, connect, error_info
from caseload.client.connection_errors import PROBE_METHOD
from caseload.v1 import (
    assignment_service_pb2,
    change_service_pb2,
    patient_service_pb2,
    resources_pb2,
    therapist_service_pb2,
)
from caseload_server.rpc.server import CaseloadServer
from grpc import StatusCode

from tests.client.aio.run import eventually, in_time, run
from tests.client.fake_server import FakeServer
from tests.client.pem_files import PemFiles
from tests.security.server_fixture import KeysFile, serving
from tests.support.servers import free_address
from tests.support.waiting import HUNG_SECONDS
from tests.support.waiting import eventually as sync_eventually

GET = therapist_service_pb2.GetTherapistRequest(therapist_id="t1")
GET_PATIENT = patient_service_pb2.GetPatientRequest(patient_id="p1")
CREATE = patient_service_pb2.CreatePatientRequest(patient=resources_pb2.Patient(display_name="Bob Ray"))
WATCH = change_service_pb2.WatchChangesRequest()
TOKEN = "Canary-Zq9"


async def refused(call: Any) -> grpc.aio.AioRpcError:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await in_time(call)
    return caught.value


def test_all_four_services_can_be_called(server: CaseloadServer) -> None:
    async def calls() -> None:
        async with connect(server.address) as caseload:
            made = await caseload.patients.CreatePatient(CREATE)
            changes = await caseload.changes.ListChanges(change_service_pb2.ListChangesRequest())
            therapists = await caseload.therapists.ListTherapists(therapist_service_pb2.ListTherapistsRequest())
            missing = await refused(caseload.assignments.GetAssignment(assignment_service_pb2.GetAssignmentRequest()))
        assert changes.head_revision == made.revision
        assert not therapists.therapists
        assert error_info(missing).reason == "INVALID_FIELD"

    run(calls())


def test_each_call_has_the_deadline_the_key_and_its_own_metadata(peer: FakeServer) -> None:
    async def calls() -> None:
        async with connect(peer.address, key=TOKEN, timeout=700) as caseload:
            await caseload.therapists.GetTherapist(GET)
            await caseload.therapists.GetTherapist(GET, timeout=300, metadata=(("authorization", "Bearer other"),))
            await caseload.therapists.GetTherapist(GET, metadata=grpc.aio.Metadata(("x-trace", "1")))
            assert [one async for one in caseload.changes.WatchChanges(WATCH)]

    run(calls())
    first, second, third, watch = peer.attempts
    assert first.seconds_left == pytest.approx(700, abs=HUNG_SECONDS)
    assert second.seconds_left == pytest.approx(300, abs=HUNG_SECONDS)
    assert watch.seconds_left > 10**6
    assert [one.metadata["authorization"] for one in (first, third, watch)] == [f"Bearer {TOKEN}"] * 3
    assert second.metadata["authorization"] == "Bearer other"
    assert third.metadata["x-trace"] == "1"


def test_a_write_is_retried_with_one_request_id_and_the_callers_message_is_not_changed(peer: FakeServer) -> None:
    async def call() -> None:
        async with connect(peer.address) as caseload:
            await caseload.patients.CreatePatient(request)

    request = patient_service_pb2.CreatePatientRequest()
    peer.answer_with(StatusCode.UNAVAILABLE, StatusCode.RESOURCE_EXHAUSTED)
    run(call())
    [sent] = {request.FromString(attempt.data).request_id for attempt in peer.attempts}
    assert (len(peer.attempts), len(sent), request.request_id) == (3, 36, "")


@pytest.mark.slow
def test_no_call_fails_while_the_server_restarts(tmp_path: Path) -> None:
    address, patients = free_address(), list[str]()

    def restart() -> None:
        for _ in range(3):
            with serving(tmp_path, address=address):
                count = len(patients) + 20
                sync_eventually(lambda count=count: len(patients) > count)  # type: ignore[misc]  # bound now

    async def write(caseload: Caseload, stopped: asyncio.Event) -> None:
        while not stopped.is_set():
            patients.append((await caseload.patients.CreatePatient(CREATE)).patient.patient_id)

    async def calls() -> None:
        stopped = asyncio.Event()
        async with connect(address, timeout=HUNG_SECONDS) as caseload:
            writes = asyncio.gather(*(write(caseload, stopped) for _ in range(8)))
            await asyncio.to_thread(restart)
            stopped.set()
            with serving(tmp_path, address=address):
                await writes

    run(calls())
    assert len(set(patients)) == len(patients) > 60


def test_a_slow_call_does_not_delay_the_calls_beside_it(peer: FakeServer) -> None:
    """The slow call is answered only after the fast ones, so a client that blocked the loop would hang."""
    peer.gates["GetTherapist"] = Event()

    async def calls() -> list[str]:
        done: list[str] = []

        async def call(name: str, method: Any, request: Any) -> None:
            await method(request, timeout=HUNG_SECONDS)
            done.append(name)

        async with connect(peer.address) as caseload:
            slow = asyncio.create_task(call("slow", caseload.therapists.GetTherapist, GET))
            await eventually(lambda: peer.attempts)
            await asyncio.gather(*(call("fast", caseload.patients.GetPatient, GET_PATIENT) for _ in range(9)))
            peer.gates["GetTherapist"].set()
            await slow
        return done

    assert run(calls()) == ["fast"] * 9 + ["slow"]


def test_an_error_shows_its_reason_and_fields_in_a_traceback(server: CaseloadServer) -> None:
    async def call() -> grpc.aio.AioRpcError:
        async with connect(server.address) as caseload:
            return await refused(caseload.therapists.CreateTherapist(therapist_service_pb2.CreateTherapistRequest()))

    error = run(call())
    shown = "".join(traceback.format_exception(error))
    assert "reason: INVALID_FIELD\n" in shown
    assert all(f"field {path}: {rule}\n" in shown for path, rule in error_info(error).fields.items())
    assert error_info(error).fields


def test_a_call_object_is_that_of_grpc(peer: FakeServer) -> None:
    async def call() -> None:
        async with connect(peer.answer_with(StatusCode.NOT_FOUND).address) as caseload:
            call = caseload.therapists.GetTherapist(GET)
            assert isinstance(call, grpc.aio.UnaryUnaryCall)
            await refused(call)
            assert (await call.code(), await call.details(), call.done()) == (StatusCode.NOT_FOUND, "scripted", True)
            stream = caseload.changes.WatchChanges(WATCH)
            assert isinstance(stream, grpc.aio.UnaryStreamCall)
            assert isinstance(await stream.read(), change_service_pb2.WatchChangesResponse)
            assert await stream.read() == grpc.aio.EOF

    run(call())


# --- closing and cancelling


def test_a_call_on_a_closed_client_is_a_value_error(peer: FakeServer) -> None:
    async def calls() -> None:
        async with connect(peer.address) as caseload:
            pass
        with pytest.raises(ValueError, match="closed"):
            await caseload.therapists.GetTherapist(GET)
        with pytest.raises(ValueError, match="closed"):
            caseload.changes.WatchChanges(WATCH)

    run(calls())


async def waiting_call(caseload: Caseload, peer: FakeServer) -> "asyncio.Future[Any]":
    """A call that the server holds."""
    task = asyncio.ensure_future(caseload.therapists.GetTherapist(GET, timeout=HUNG_SECONDS))
    await eventually(lambda: peer.attempts)
    return task


def test_closing_the_client_ends_a_call_with_an_error_and_cancels_no_task(peer: FakeServer) -> None:
    peer.gates["GetTherapist"] = Event()

    async def calls() -> None:
        caseload = connect(peer.address)
        call = await waiting_call(caseload, peer)
        await caseload.close()
        assert (await refused(call)).code() == StatusCode.CANCELLED
        assert not call.cancelled()

    run(calls())
    peer.gates["GetTherapist"].set()


def test_closing_the_client_while_a_call_looks_for_its_connection_error_cancels_no_task() -> None:
    """A listener that never answers keeps the look-up waiting."""

    async def calls(target: str) -> None:
        looking = asyncio.Event()

        class Recorder(grpc.aio.UnaryUnaryClientInterceptor):
            async def intercept_unary_unary(self, continuation: Any, details: Any, request: Any) -> Any:
                if details.method == PROBE_METHOD.encode():
                    looking.set()
                return await continuation(details, request)

        async with connect(target, timeout=0.1, interceptors=[Recorder()]) as caseload:
            call = asyncio.ensure_future(caseload.therapists.GetTherapist(GET))
            await in_time(looking.wait())
        assert (await refused(call)).code() == StatusCode.DEADLINE_EXCEEDED
        assert not call.cancelled()

    with socket.create_server(("127.0.0.1", 0)) as listener:
        run(calls("127.0.0.1:" + str(listener.getsockname()[1])))


@pytest.mark.parametrize("closes", [False, True])
def test_a_task_that_is_cancelled_stays_cancelled(peer: FakeServer, closes: bool) -> None:  # noqa: FBT001 - a parameter of the test
    """Also if the client is closed at the same time."""
    peer.gates["GetTherapist"] = Event()

    async def calls() -> None:
        async with connect(peer.address) as caseload:
            call = await waiting_call(caseload, peer)
            call.cancel()
            if closes:
                await caseload.close()
            with pytest.raises(asyncio.CancelledError):
                await in_time(call)

    run(calls())
    peer.gates["GetTherapist"].set()


# --- connecting


def test_connect_needs_a_running_event_loop() -> None:
    with pytest.raises(RuntimeError, match="no running event loop"):
        connect("127.0.0.1:1")


def test_a_key_is_not_sent_in_plain_text_beyond_loopback() -> None:
    async def call() -> None:
        connect("caseload.example.org:50051", key=TOKEN, allow_insecure=True)

    with pytest.raises(ValueError, match=r"^key: would be sent in plain text; it needs TLS$"):
        run(call())


def test_a_certificate_names_the_caller(tmp_path: Path) -> None:
    async def call(address: str) -> str:
        async with connect(address, tls_ca=ours.ca, tls_cert=ours.cert, tls_key=ours.key) as caseload:
            await caseload.patients.CreatePatient(CREATE)
            changes = await caseload.changes.ListChanges(change_service_pb2.ListChangesRequest())
        return changes.change_sets[0].actor

    ours, keys = PemFiles(tmp_path, "reports"), KeysFile(tmp_path / "keys")
    keys.append("cn:reports write,audit")
    settings = {"tls_cert": ours.cert, "tls_key": ours.key, "tls_client_ca": ours.ca, "keys_file": keys.path}
    with serving(tmp_path, **settings) as server:
        assert run(call(server.address)) == "cn:reports"


class TimeoutRecorder(grpc.aio.UnaryUnaryClientInterceptor):
    """Records the timeout of each call."""

    def __init__(self) -> None:
        self.timeouts: list[float | None] = []

    async def intercept_unary_unary(self, continuation: Any, client_call_details: Any, request: Any) -> Any:
        self.timeouts.append(client_call_details.timeout)
        return await continuation(client_call_details, request)


def test_interceptors_and_options_reach_the_channel(peer: FakeServer) -> None:
    async def call() -> None:
        options = [("grpc.primary_user_agent", "billing/1")]
        async with connect(peer.address, interceptors=[recorder], options=options) as caseload:
            await caseload.therapists.GetTherapist(GET)

    recorder = TimeoutRecorder()
    run(call())
    assert recorder.timeouts == [10.0]
    assert peer.attempts[0].metadata["user-agent"].startswith("billing/1 ")
