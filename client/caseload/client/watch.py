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
        request: its after_revision is moved along with the responses.
        closed: setting it ends the watch.
        last_connection_error: returns why there is no connection, or nothing if there is one.

    Raises grpc.RpcError where resuming does not help.
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
    """Starts a thread that reports, unless the first response comes before that."""
    timer = Timer(REPORT_AFTER_SECONDS, report)
    timer.daemon = True
    timer.start()
    return timer
