"""A service with defects, and the lines that its calls write to the access log."""

import time
from typing import Any

import grpc
from caseload_server.api.therapist_service import TherapistServicer

from tests.security.server_fixture import LogReader
from tests.support.waiting import eventually


class Defective(TherapistServicer):
    """Has a defect, a response that cannot be serialized, and a call that the server cancels."""

    def GetTherapist(self, request: Any, context: grpc.ServicerContext) -> Any:
        if request.therapist_id == "broken":
            raise KeyError(f"do-not-repeat-me {request}")
        if request.therapist_id == "unwritable":
            return object()
        if request.therapist_id == "cancelled":
            context.cancel()
        return super().GetTherapist(request, context)


def lines_after(reader: LogReader, count: int) -> list[dict[str, Any]]:
    """Waits for this many lines, asserts that no more follow, and returns them."""
    eventually(lambda: len(reader.lines()) >= count, reader.lines)
    time.sleep(0.1)
    assert len(reader.lines()) == count
    return reader.lines()


def status_of(call: Any) -> str:
    """The name of the status code of a call."""
    try:
        call()
    except grpc.RpcError as error:
        return str(error.code().name)
    return "OK"
