"""A watch that resumes after its stream was interrupted."""

import random
from collections.abc import Generator
from threading import Event
from typing import Any, Final

import grpc
from caseload.client.errors import error_info
from caseload.v1.change_service_pb2 import WatchChangesRequest, WatchChangesResponse
from caseload.v1.change_service_pb2_grpc import ChangeServiceStub

Responses = Generator[WatchChangesResponse, None, None]
_INITIAL_DELAY_SECONDS: Final = 0.1
_MAX_DELAY_SECONDS: Final = 5.0
_INTERRUPTED: Final = {grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED}
"""The server stopped, the connection was lost, or the server cancelled the stream of a stuck reader."""
_TRANSIENT: Final = {"WATCH_TOO_SLOW", "OVERLOADED"}


def watch(changes: ChangeServiceStub, request: WatchChangesRequest, closed: Event) -> Responses:
    """Yields the responses of WatchChanges, and resumes after the last one when the stream is interrupted.

    Args:
        changes: the stub to call.
        request: its after_revision is moved along with the responses.
        closed: setting it ends the watch.

    Raises grpc.RpcError where resuming does not help.
    """
    delay, started = _INITIAL_DELAY_SECONDS, False
    while not closed.is_set():
        try:
            stream = changes.WatchChanges(request)
        except ValueError:  # the channel was closed just now, or the metadata is invalid
            if closed.is_set():
                return
            raise
        try:
            for response in stream:
                request.after_revision = response.through_revision
                delay, started = _INITIAL_DELAY_SECONDS, True
                yield response
        except grpc.RpcError as error:
            if not (closed.is_set() or _can_resume(error, started=started)):
                raise
        finally:
            stream.cancel()
        closed.wait(delay * random.uniform(0.8, 1.2))  # noqa: S311 - jitter, so that watches do not all return at once
        delay = min(delay * 2, _MAX_DELAY_SECONDS)


def _can_resume(error: Any, *, started: bool) -> bool:
    reason = error_info(error).reason
    # After a restart all watches move to the other instance, which may be full until the first one is back.
    return error.code() in _INTERRUPTED or reason in _TRANSIENT or (started and reason == "TOO_MANY_WATCHES")
