"""A watch that resumes after its stream was interrupted."""

from collections.abc import Callable, Generator
from threading import Event, Timer

import grpc
from caseload.client.resuming import REPORT_AFTER_SECONDS, Resumption
from caseload.v1.change_service_pb2 import WatchChangesRequest, WatchChangesResponse
from caseload.v1.change_service_pb2_grpc import ChangeServiceStub

Responses = Generator[WatchChangesResponse, None, None]


def watch(
    changes: ChangeServiceStub,
    request: WatchChangesRequest,
    closed: Event,
    last_connection_error: Callable[[], str] = str,
) -> Responses:
    """Yields the responses of WatchChanges, and resumes after the last one when the stream is interrupted.

    Args:
        changes: the stub to call.
        request: the request, whose after_revision advances with the responses.
        closed: after it is set, the watch ends.
        last_connection_error: returns the last connection error, or an empty string if there is a connection.

    Raises grpc.RpcError if the watch cannot be resumed.
    """
    position = Resumption(request)
    while not closed.is_set():
        try:
            stream = changes.WatchChanges(request)
        except ValueError:  # the channel was closed just now, or the metadata is invalid
            if closed.is_set():
                return
            raise
        timer = _start_timer(lambda: position.report(last_connection_error()))
        try:
            for response in stream:
                timer.cancel()
                position.received(response)
                yield response
        except grpc.RpcError as error:
            if not (closed.is_set() or position.can_resume(error)):
                raise
        finally:
            timer.cancel()
            stream.cancel()
        closed.wait(position.next_delay())


def _start_timer(report: Callable[[], None]) -> Timer:
    """Starts a timer thread that reports, unless the caller cancels it at the first response."""
    timer = Timer(REPORT_AFTER_SECONDS, report)
    timer.daemon = True
    timer.start()
    return timer
