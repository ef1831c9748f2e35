"""One interface for TherapistService and PatientService, so that a test is written once and runs for both."""

from collections.abc import Callable
from typing import Any, Final, TypeVar

import grpc
import pytest
from caseload.v1 import patient_service_pb2, resources_pb2, therapist_service_pb2
from google.protobuf.descriptor import MethodDescriptor
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass

from tests.support.servers import Client, Refusal, refusal

SIDES: Final = ("Therapist", "Patient")
SOME_ID: Final = "0190a3c4-0000-7000-8000-000000000001"
"""The id of no assignment."""
T0: Final = 1_600_000_000
"""A moment in the past, in seconds since 1970."""

Test = TypeVar("Test", bound=Callable[..., None])
COVERED_FIELDS: Final[dict[str, set[str]]] = {}
"""Fields of the contract, each with the tests that would fail if the service ignored it."""


def covers(*fields: str) -> Callable[[Test], Test]:
    """Names the fields a test covers: {A} is either kind, {a} the same in lower case, {B} the other kind."""

    def register(test: Test) -> Test:
        for field in fields:
            for a, b in (SIDES, SIDES[::-1]):
                name = field.format(A=a, B=b, a=a.lower(), b=b.lower())
                COVERED_FIELDS.setdefault(name, set()).add(f"{test.__module__}.{test.__name__}")
        return test

    return register


def refused(call: Callable[..., object], *arguments: Any, **fields: Any) -> Refusal:
    """Returns the error of a call that must fail."""
    with pytest.raises(grpc.RpcError) as caught:
        call(*arguments, **fields)
    return refusal(caught.value)


def call(client: Client, method: MethodDescriptor, request: Message) -> Any:
    """Calls any RPC and returns its response; of a stream, returns the first message and cancels it."""
    answer = raw_call(client, method, GetMessageClass(method.output_type).FromString)(request.SerializeToString())
    if not method.server_streaming:
        return answer
    first = next(answer)
    answer.cancel()
    return first


def raw_call(client: Client, method: MethodDescriptor, parse: Callable[[bytes], Any] | None = None) -> Any:
    """Returns a callable that sends raw bytes to an RPC."""
    make: Any = client.channel.unary_stream if method.server_streaming else client.channel.unary_unary
    return make(f"/{method.containing_service.full_name}/{method.name}", None, parse)


def full_error_text(error: Any) -> str:
    """Everything an error carries, as text; the status details are binary trailing metadata."""
    pairs = [*error.initial_metadata(), *error.trailing_metadata()]
    said = [str(error.code()), error.details(), error.debug_error_string(), *(part for pair in pairs for part in pair)]
    return "\n".join(part if isinstance(part, str) else part.decode("latin-1") for part in said)


class _Service:
    """One of the two services, as a caller sees it."""

    def __init__(self, client: Client, kind: str) -> None:
        self.client = client
        self.kind = kind
        self.other = SIDES[1 - SIDES.index(kind)]
        self.name = kind.lower()
        self.pb = therapist_service_pb2 if kind == "Therapist" else patient_service_pb2
        self._stub: Any = client.therapists if kind == "Therapist" else client.patients

    def send(self, rpc: str, **fields: Any) -> Any:
        return getattr(self._stub, rpc)(getattr(self.pb, f"{rpc}Request")(**fields))

    def head(self) -> str:
        """The current head revision; it does not change unless something is written."""
        return str(self.send(f"List{self.kind}s").revision)


class People(_Service):
    """The seven RPCs that a service has for its own kind of record.

    `record`, `id` and `ids` stand for the fields that are named after the kind.
    """

    def __init__(self, client: Client, kind: str) -> None:
        super().__init__(client, kind)
        self.message: Any = getattr(resources_pb2, kind)
        self.count = f"active_{self.other.lower()}_count"
        self.idle: int = self.message.Status.values()[-1]
        """The status that excludes active assignments."""

    def call(self, rpc: str, **fields: Any) -> Any:
        """Calls Create, Get, BatchGet, List, Update, Delete or Undelete."""
        plural = "s" if rpc in {"BatchGet", "List"} else ""
        names = {"record": self.name, "id": f"{self.name}_id", "ids": f"{self.name}_ids"}
        return self.send(f"{rpc}{self.kind}{plural}", **{names.get(key, key): value for key, value in fields.items()})

    def record(self, response: Any) -> Any:
        """The record in a response."""
        return getattr(response, self.name)

    def records(self, response: Any) -> Any:
        """The records in a response of BatchGet or List."""
        return getattr(response, f"{self.name}s")

    def id_of(self, record: Any) -> str:
        return str(getattr(record, f"{self.name}_id"))

    def ids(self, response: Any) -> list[str]:
        return [self.id_of(record) for record in self.records(response)]

    def create(self, record_id: str = "", **fields: Any) -> Any:
        return self.record(self.call("Create", id=record_id, record={"display_name": "Ann Lee", **fields}))

    def get(self, record_id: str) -> Any:
        return self.record(self.call("Get", id=record_id))

    def delete(self, record_id: str, **fields: Any) -> Any:
        return self.record(self.call("Delete", id=record_id, **fields))

    def body(self, record_id: str, **fields: Any) -> Any:
        """The record of an update request."""
        return self.message(**{f"{self.name}_id": record_id, **fields})

    def update(self, record_id: str, *mask: str, **fields: Any) -> Any:
        return self.record(self.call("Update", record=self.body(record_id, **fields), update_mask={"paths": mask}))


class Side(_Service):
    """Assign and Unassign from one of the two services."""

    def __init__(self, client: Client, kind: str) -> None:
        super().__init__(client, kind)
        self.therapists = People(client, "Therapist")
        self.patients = People(client, "Patient")
        self.mine, self.others = (
            (self.therapists, self.patients) if kind == "Therapist" else (self.patients, self.therapists)
        )

    def assign(self, therapist_id: str = "t1", patient_id: str = "p1", **fields: Any) -> Any:
        return self.send(f"Assign{self.other}", therapist_id=therapist_id, patient_id=patient_id, **fields)

    def unassign(self, therapist_id: str = "t1", patient_id: str = "p1", **fields: Any) -> Any:
        return self.send(f"Unassign{self.other}", therapist_id=therapist_id, patient_id=patient_id, **fields)

    def page(self, parent_id: str = "", **fields: Any) -> Any:
        """The assignments of t1 or p1 (by side), or of the given parent."""
        parent = parent_id or f"{self.name[0]}1"
        return self.send(f"List{self.kind}{self.other}s", **{f"{self.name}_id": parent}, **fields)

    def listed(self, **fields: Any) -> list[str]:
        return [entry.assignment.assignment_id for entry in self.page(**fields).entries]
