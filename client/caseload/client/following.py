"""A watch that is resumed where it was cut."""

import random
from collections.abc import Generator
from threading import Event
from typing import Any, Final

import grpc
from caseload.client.refusals import why
from caseload.v1.change_service_pb2 import WatchChangesRequest, WatchChangesResponse
from caseload.v1.change_service_pb2_grpc import ChangeServiceStub

Answers = Generator[WatchChangesResponse, None, None]
_MOST_SECONDS: Final = 5.0
_CUT: Final = {grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED}
"""A stop, or a connection that was lost; the server cut a reader that took nothing."""
_PASSING: Final = {"WATCH_TOO_SLOW", "OVERLOADED"}


def follow(changes: ChangeServiceStub, request: WatchChangesRequest, closed: Event) -> Answers:
    """Args: closed, ends it."""
    seconds, begun = 0.1, False
    while not closed.is_set():
        try:
            stream = changes.WatchChanges(request)
        except ValueError:  # where it was closed just now; and of metadata that are none
            if closed.is_set():
                return
            raise
        try:
            for answer in stream:
                request.after_revision = answer.through_revision
                seconds, begun = 0.1, True
                yield answer
        except grpc.RpcError as error:
            if not (closed.is_set() or _is_resumed(error, begun=begun)):
                raise
        finally:
            stream.cancel()
        closed.wait(seconds * random.uniform(0.8, 1.2))  # noqa: S311 - so that not all come back at once
        seconds = min(seconds * 2, _MOST_SECONDS)


def _is_resumed(error: Any, *, begun: bool) -> bool:
    reason = why(error).reason
    # After a restart all watches come to the other instance, which may have no place for some until the first is back.
    return error.code() in _CUT or reason in _PASSING or (begun and reason == "TOO_MANY_WATCHES")
