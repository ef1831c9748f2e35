"""A short API for all services of one server, for the tests of assignments and changes."""

import time
import uuid
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import Any, Final, Self, TypeVar

import grpc
import pytest
from caseload.v1 import (
    assignment_service_pb2,
    change_service_pb2,
    patient_service_pb2,
    resources_pb2,
    therapist_service_pb2,
)
from google.protobuf.descriptor import MethodDescriptor
from google.protobuf.message_factory import GetMessageClass

from tests.support.servers import Refusal, refusal
from tests.support.waiting import HUNG_SECONDS

T = TypeVar("T")

T0: Final = 1_600_000_000
"""A moment in the past, in seconds since 1970."""
PRIMARY, TREATING, SUPERVISING, COVERING = 1, 2, 3, 4
ACTIVE, ENDED = 1, 2
PATIENT_REQUEST, THERAPIST_UNAVAILABLE = 3, 4
COMPLETED, TRANSFERRED, ENTERED_IN_ERROR, RECORD_DELETED, REPLACED, MERGED, EXPIRED = 1, 2, 5, 6, 7, 8, 9

RPCS: Final[dict[str, MethodDescriptor]] = {
    method.name: method
    for file in (therapist_service_pb2, patient_service_pb2, assignment_service_pb2, change_service_pb2)
    for service in file.DESCRIPTOR.services_by_name.values()
    for method in service.methods
}
READS: Final = frozenset(name for name, rpc in RPCS.items() if rpc.GetOptions().idempotency_level == 1)
"""The RPCs with NO_SIDE_EFFECTS."""


def at(seconds: float) -> dict[str, int]:
    """T0 plus this many seconds, as a Timestamp."""
    whole, micros = divmod(round(seconds * 1_000_000), 1_000_000)
    return {"seconds": T0 + whole, "nanos": micros * 1000}


def ahead(seconds: float) -> dict[str, int]:
    """Now plus this many seconds, as a Timestamp."""
    return at(time.time() - T0 + seconds)


def planned(call: Callable[[float], T], soonest_seconds: float = 0.3) -> T:
    """Makes a call with an expire_time that comes soon.

    Args: call, takes the seconds until then; soonest_seconds, what it takes first. On a busy machine the time may have
    passed when the call arrives: it is made again with a later one.
    """
    for seconds in (soonest_seconds, 3, 15):
        try:
            return call(seconds)
        except grpc.RpcError as error:
            if refusal(error).reason != "INVALID_FIELD":
                raise
    return call(45)


def new_request_id() -> str:
    return str(uuid.uuid4())


def full_name(rpc: str) -> str:
    """The full method name, as in the change log."""
    return f"/{RPCS[rpc].containing_service.full_name}/{rpc}"


def request(rpc: str, **fields: Any) -> Any:
    return GetMessageClass(RPCS[rpc].input_type)(**fields)


def number(revision: str) -> int:
    """The position in the log. Only for tests: a revision is opaque to callers."""
    return int(revision.rpartition(".")[2])


def refused(call: Callable[..., object], /, *arguments: Any, **fields: Any) -> Refusal:
    """Returns the error of a call that must fail."""
    with pytest.raises(grpc.RpcError) as caught:
        call(*arguments, **fields)
    return refusal(caught.value)


class ApiDriver:
    """A client of one server."""

    def __init__(self, address: str, *, alone: bool = False) -> None:
        """Args: alone, use a separate connection; otherwise clients of one address share a connection."""
        self.channel = grpc.insecure_channel(address, [("grpc.use_local_subchannel_pool", int(alone))])
        self._calls: dict[str, Any] = {}
        for name, rpc in RPCS.items():
            make = self.channel.unary_stream if rpc.server_streaming else self.channel.unary_unary
            answer = GetMessageClass(rpc.output_type)
            self._calls[name] = make(full_name(name), lambda message: message.SerializeToString(), answer.FromString)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.channel.close()

    def send(self, rpc: str, *, metadata: Any = (), **fields: Any) -> Any:
        return self._calls[rpc](request(rpc, **fields), timeout=2 * HUNG_SECONDS, metadata=metadata)

    def stream(self, sent: Any, timeout: float) -> Any:
        """Opens a watch with a deadline."""
        return self._calls["WatchChanges"](sent, timeout=timeout)

    def watch(self, after: str = "", **filters: str) -> Any:
        """Opens a watch."""
        return self.send("WatchChanges", after_revision=after, filter=filters)

    def therapists(self, *ids: str, **fields: Any) -> None:
        for one in ids:
            self.send("CreateTherapist", therapist_id=one, therapist={"display_name": "Ann Lee", **fields})

    def patients(self, *ids: str, **fields: Any) -> None:
        for one in ids:
            self.send("CreatePatient", patient_id=one, patient={"display_name": "Bob Ray", **fields})

    def assign(self, therapist_id: str, patient_id: str, **fields: Any) -> resources_pb2.Assignment:
        answer = self.send("AssignPatient", therapist_id=therapist_id, patient_id=patient_id, **fields)
        assignment: resources_pb2.Assignment = answer.assignment
        return assignment

    def unassign(self, therapist_id: str, patient_id: str, **fields: Any) -> resources_pb2.Assignment:
        answer = self.send("UnassignPatient", therapist_id=therapist_id, patient_id=patient_id, **fields)
        assignment: resources_pb2.Assignment = answer.assignment
        return assignment

    def period(self, therapist_id: str, patient_id: str, start: float, end: float, **fields: Any) -> Any:
        """Creates an ended period. Args: start and end, in seconds after T0; fields, of either request."""
        reason = fields.pop("end_reason", 0)
        self.assign(therapist_id, patient_id, start_time=at(start), **fields)
        return self.unassign(therapist_id, patient_id, end_time=at(end), end_reason=reason)

    def correct(self, assignment_id: str, *mask: str, **fields: Any) -> Any:
        """Corrects the fields of the mask. Args: call, further fields of the request."""
        call = fields.pop("call", {})
        body = {"assignment_id": assignment_id, **fields}
        return self.send("UpdateAssignment", assignment=body, update_mask={"paths": mask}, **call)

    def transfer(self, source: str = "t1", target: str = "t2", *patient_ids: str, **fields: Any) -> Any:
        fields.setdefault("request_id", new_request_id())
        return self.send(
            "TransferPatients",
            source_therapist_id=source,
            target_therapist_id=target,
            patient_ids=patient_ids,
            **fields,
        )

    def checked(self, *pairs: tuple[str, str], **fields: Any) -> list[bool]:
        asked = [{"therapist_id": therapist_id, "patient_id": patient_id} for therapist_id, patient_id in pairs]
        return [result.assigned for result in self.send("CheckAssignments", pairs=asked, **fields).results]

    def get(self, assignment_id: str) -> Any:
        return self.send("GetAssignment", assignment_id=assignment_id).assignment

    def listed(self, **filters: Any) -> list[Any]:
        return list(self.send("ListAssignments", filter=filters, page_size=1000).assignments)

    def head(self) -> str:
        """The current head revision; it does not change unless something is written."""
        return str(self.send("ListChanges", page_size=1).head_revision)

    def log(self, after: str = "", page_size: int = 1000, **filters: str) -> Iterator[Any]:
        """Yields every change set after a revision, page by page."""
        while True:
            page = self.send("ListChanges", after_revision=after, page_size=page_size, filter=filters)
            yield from page.change_sets
            after = page.through_revision
            if after == page.head_revision:
                return
