"""watch() of the asyncio client: it resumes where that helps, and raises where it does not."""

import asyncio
from contextlib import aclosing
from pathlib import Path

import grpc
import pytest
from caseload.client.aio import Caseload, connect, error_info
from caseload.client.aio.watch import Responses
from caseload.v1 import change_service_pb2 as pb
from caseload.v1 import patient_service_pb2 as patients
from caseload.v1.resources_pb2 import Patient
from caseload_server.rpc.server import CaseloadServer

from tests.client.aio.run import eventually, in_time, run
from tests.security.server_fixture import serving
from tests.support.servers import free_address


async def write(caseload: Caseload) -> str:
    request = patients.CreatePatientRequest(patient=Patient(display_name="Bob Ray"))
    return (await caseload.patients.CreatePatient(request)).revision


async def following(responses: Responses) -> pb.WatchChangesResponse:
    return await in_time(anext(responses))


def test_watch_yields_past_changes_and_then_new_ones(server: CaseloadServer) -> None:
    async def watch() -> None:
        async with connect(server.address) as caseload:
            start, second = await write(caseload), await write(caseload)
            responses = caseload.watch(start)
            assert [one.revision for one in (await following(responses)).change_sets] == [second]
            third = await write(caseload)
            assert (await following(responses)).through_revision == third
            filtered = caseload.watch(start, pb.ChangeFilter(actor="other"))
            assert list((await following(filtered)).change_sets) == []

    run(watch())


def test_a_watch_resumes_after_a_restart_and_misses_nothing(tmp_path: Path) -> None:
    async def watch() -> None:
        async with connect(address) as caseload:
            with serving(tmp_path, address=address):
                responses = caseload.watch(await write(caseload))
                await following(responses)
            later = asyncio.create_task(following(responses))
            with serving(tmp_path, address=address):
                revision = await write(caseload)
                seen = await later
                while not seen.change_sets:
                    seen = await following(responses)
                assert [one.revision for one in seen.change_sets] == [revision]

    address = free_address()
    run(watch())


def test_closing_a_watch_ends_it_on_the_server(tmp_path: Path) -> None:
    async def watch(address: str) -> None:
        async with connect(address) as caseload:
            for _ in range(3):  # the only slot becomes free a moment later
                await eventually_answered(caseload)

    async def eventually_answered(caseload: Caseload) -> None:
        while True:
            async with aclosing(caseload.watch()) as responses:
                try:
                    await following(responses)
                except grpc.RpcError as error:
                    assert error_info(error).reason == "TOO_MANY_WATCHES"  # noqa: PT017 - any other is a failure
                else:
                    return

    with serving(tmp_path, max_watches=1) as server:
        run(watch(server.address))


def test_closing_the_client_ends_its_watches(server: CaseloadServer) -> None:
    async def watch() -> None:
        received: list[pb.WatchChangesResponse] = []

        async def receive() -> None:
            async for response in caseload.watch():
                received.append(response)  # noqa: PERF401 - the test looks while it runs

        caseload = connect(server.address)
        task = asyncio.create_task(receive())
        await eventually(lambda: received)
        await caseload.close()
        await in_time(task)

    run(watch())


def test_cancelling_the_task_of_a_watch_ends_it(server: CaseloadServer) -> None:
    async def watch() -> None:
        async with connect(server.address) as caseload:
            responses = caseload.watch()
            await following(responses)
            task = asyncio.create_task(following(responses))
            await asyncio.sleep(0)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task

    run(watch())


def test_an_error_that_resuming_cannot_fix_is_raised(server: CaseloadServer) -> None:
    async def watch() -> None:
        async with connect(server.address) as caseload:
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await following(caseload.watch("0123456789ab.1"))
        assert error_info(caught.value).reason == "REVISION_FOREIGN"

    run(watch())


def test_a_watch_logs_once_that_it_cannot_connect(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def logged() -> list[str]:
        return [record.getMessage() for record in caplog.records if record.name == "caseload.client"]

    async def watch() -> None:
        async with connect(address) as caseload:
            task = asyncio.create_task(following(caseload.watch()))
            await eventually(logged)
            with serving(tmp_path, address=address):
                await task

    monkeypatch.setattr("caseload.client.aio.watch.REPORT_AFTER_SECONDS", 0.1)
    address = free_address()
    run(watch())
    [message] = logged()
    assert "cannot connect" in message
    assert "refused" in message
