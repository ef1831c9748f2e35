"""A watch that resumes after its stream was interrupted, for asyncio."""

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import suppress
from typing import TYPE_CHECKING

import grpc
from caseload.client.resuming import REPORT_AFTER_SECONDS, Resumption
from caseload.v1.change_service_pb2 import WatchChangesRequest, WatchChangesResponse

if TYPE_CHECKING:  # it exists for type checkers only
    from caseload.v1.change_service_pb2_grpc import ChangeServiceAsyncStub

Responses = AsyncGenerator[WatchChangesResponse, None]


async def watch(
    changes: "ChangeServiceAsyncStub",
    request: WatchChangesRequest,
    closed: asyncio.Event,
    last_connection_error: Callable[[], Awaitable[str]],
) -> Responses:
    """Yields the responses of WatchChanges, as caseload.client.watch does.

    Args:
        changes: the stub to call.
        request: the request, whose after_revision advances with the responses.
        closed: after it is set, the watch ends.
        last_connection_error: returns the last connection error, or an empty string if there is a connection.

    Raises grpc.aio.AioRpcError if the watch cannot be resumed.
    """
    position = Resumption(request)
    while not closed.is_set():
        stream = changes.WatchChanges(request)
        report = asyncio.create_task(_report_later(position, last_connection_error))
        try:
            async for response in stream:
                report.cancel()
                position.received(response)
                yield response
        except grpc.RpcError as error:
            if not (closed.is_set() or position.can_resume(error)):
                raise
        finally:
            report.cancel()
            stream.cancel()
        with suppress(TimeoutError):
            await asyncio.wait_for(closed.wait(), position.next_delay())


async def _report_later(position: Resumption, last_connection_error: Callable[[], Awaitable[str]]) -> None:
    """Reports after a delay, unless the first response cancels this task earlier."""
    await asyncio.sleep(REPORT_AFTER_SECONDS)
    position.report(await last_connection_error())
