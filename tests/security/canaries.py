"""Calls with private values that may appear only in records, and a search for those values in outputs."""

import base64
import binascii
import re
from collections.abc import Iterator
from contextlib import suppress
from typing import Any, Final

import grpc
from caseload.v1 import resources_pb2
from caseload.v1.therapist_service_pb2 import AssignPatientResponse
from google.protobuf.descriptor import FieldDescriptor, MethodDescriptor
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from tests.api.client_calls import full_error_text
from tests.api.sample_values import METHODS, field_refs, full, is_map
from tests.support.api_driver import RPCS, full_name, request
from tests.support.waiting import HUNG_SECONDS

CANARY: Final = "Canary-Zq9"
PRIVATE: Final = re.compile(r"canary.?zq9|491600009999|(?<![^\W_])1931\D?0?7\D?13(?![^\W_])", re.IGNORECASE)
"""A name, a phone number, a date of birth. Times and ids contain its digits by chance, within a longer word."""

WELL_FORMED: Final[dict[str, Any]] = {
    "actor": CANARY,
    "aliases": [f"{CANARY} Poe"],
    "annotations": {CANARY: CANARY},
    "birth_date": {"year": 1931, "month": 7, "day": 13},
    "display_name": f"{CANARY} Roe",
    "email": f"{CANARY}@example.org",
    "focus": CANARY.lower(),
    "identifier_value": CANARY,
    "name_prefix": CANARY,
    "phone_number": "+491600009999",
    "specialties": [CANARY.lower()],
    "system": f"urn:{CANARY}",
    "value": CANARY,
}
"""Values that the service accepts and stores, by field name."""

MALFORMED: Final = (CANARY, f"{CANARY}\0", CANARY + "x" * 2000, f" {CANARY} @ @")
RECORDS: Final = {"Therapist", "Patient", "Assignment"}


def requests(method: MethodDescriptor) -> Iterator[bytes]:
    """Valid requests, requests with each text malformed, and bytes that do not parse."""
    filled = full(method)
    _fill(filled)
    yield filled.SerializeToString()
    page = {"page_size": 1, "as_of_time": None}
    for changes in ({"therapist_id": "", "patient_id": ""}, {"update_mask": None}, page):
        yield _changed(filled, changes).SerializeToString()
    if method.name in {"ListTherapists", "ListPatients"}:
        for order in ("", "display_name", "display_name desc", "update_time"):
            yield type(filled)(page_size=1, order_by=order, filter={"name_prefix": CANARY}).SerializeToString()
    yield b"\x0a\x7f" + CANARY.encode()
    for index, ref in enumerate(list(field_refs(filled))):
        if ref.field.type == FieldDescriptor.TYPE_STRING or is_map(ref.field):
            for text in MALFORMED:
                changed = _copy(filled)
                _put(list(field_refs(changed))[index], text)
                yield changed.SerializeToString()


def _fill(message: Any) -> None:
    for ref in list(field_refs(message)):
        if ref.field.name in WELL_FORMED:
            ref.owner.ClearField(ref.field.name)
            ref.owner.MergeFrom(type(ref.owner)(**{ref.field.name: WELL_FORMED[ref.field.name]}))


def _copy(message: Message) -> Any:
    copy = type(message)()
    copy.CopyFrom(message)
    return copy


def _changed(message: Message, values: dict[str, Any]) -> Any:
    copy = _copy(message)
    for name, value in values.items():
        if name in copy.DESCRIPTOR.fields_by_name:
            copy.ClearField(name)
            if value:
                setattr(copy, name, value)
    return copy


def _put(ref: Any, text: str) -> None:
    if is_map(ref.field):
        getattr(ref.owner, ref.field.name).update({text: text})
    else:
        ref.put(text)


class Caller:
    """Calls every RPC, and collects everything it receives except the records."""

    def __init__(self, address: str) -> None:
        self.channel = grpc.insecure_channel(address)
        self.outputs: dict[str, list[str]] = {}
        self.assignment_id = "a1"

    def prepare(self) -> None:
        """Creates records with private values in every field, and assignments, as far as planted defects permit.

        It changes each record, so that there are versions with private values.
        """
        for kind in ("Therapist", "Patient"):
            for number in (1, 2):
                record = getattr(resources_pb2, kind)()
                record.MergeFrom(type(record)(**{k: v for k, v in WELL_FORMED.items() if k in names_of(record)}))
                fields = {f"{kind.lower()}_id": f"{kind[0].lower()}{number}", kind.lower(): record}
                self._try(f"Create{kind}", **fields)
                setattr(record, f"{kind.lower()}_id", f"{kind[0].lower()}{number}")
                record.display_name = f"{CANARY} Poe"
                self._try(f"Update{kind}", **{kind.lower(): record}, update_mask={"paths": ["display_name"]})
        for pair in ({"therapist_id": "t2"}, {"patient_id": "p2"}, {}):
            asked = {"therapist_id": "t1", "patient_id": "p1", "focus": CANARY.lower(), **pair}
            if answer := self._try("AssignPatient", **asked):
                self.assignment_id = AssignPatientResponse.FromString(answer).assignment.assignment_id

    def _try(self, rpc: str, **fields: Any) -> bytes:
        """Returns the response, or nothing if the call fails."""
        ask: Any = self.channel.unary_unary(full_name(rpc))
        with suppress(grpc.RpcError):
            return bytes(ask(request(rpc, **fields).SerializeToString(), timeout=HUNG_SECONDS))
        return b""

    def call_everything(self) -> None:
        """Calls every RPC with every request, and lists old versions with private values."""
        self._list_versions("Therapist", "t1", {"email": "other@example.org"})
        self._list_versions("Patient", "p1", {"email": "other@example.org"})
        self._list_versions("Assignment", self.assignment_id, {"focus": "grief"})
        for method in METHODS:
            for data in requests(method):
                self._call(method, data)
        reflection: Any = reflection_pb2_grpc.ServerReflectionStub
        asked = [
            reflection_pb2.ServerReflectionRequest(file_containing_symbol="caseload.v1.PatientService"),
            reflection_pb2.ServerReflectionRequest(file_containing_symbol="caseload.v1.Patient"),
        ]
        for answer in reflection(self.channel).ServerReflectionInfo(iter(asked), timeout=HUNG_SECONDS):
            self._record("reflection", answer.SerializeToString().decode("latin-1"))

    def _list_versions(self, kind: str, record_id: str, change: dict[str, str]) -> None:
        """Changes a record, and lists its versions, one on a page and all."""
        field = f"{kind.lower()}_id"
        self._try(f"Update{kind}", **{kind.lower(): {field: record_id, **change}, "update_mask": {"paths": [*change]}})
        for page_size in (1, 0):
            rpc = f"List{kind}Versions"
            self._call(RPCS[rpc], request(rpc, page_size=page_size, **{field: record_id}).SerializeToString())

    def _call(self, method: MethodDescriptor, data: bytes) -> None:
        name = full_name(method.name)
        make: Any = self.channel.unary_stream if method.server_streaming else self.channel.unary_unary
        try:
            if method.server_streaming:
                stream = make(name)(data, timeout=HUNG_SECONDS)
                answer, call = next(stream), stream
                stream.cancel()
            else:
                answer, call = make(name).with_call(data, timeout=HUNG_SECONDS)
        except grpc.RpcError as error:
            self._record("refusal", full_error_text(error))
        else:
            self._record("answer", without_records(GetMessageClass(method.output_type).FromString(answer)))
            self._record("metadata", str([*call.initial_metadata(), *call.trailing_metadata()]))

    def _record(self, where: str, text: str) -> None:
        self.outputs.setdefault(where, []).append(text)

    def close(self) -> None:
        self.channel.close()


def names_of(message: Any) -> set[str]:
    return set(message.DESCRIPTOR.fields_by_name)


def without_records(message: Any) -> str:
    """The content of a response without its records: tokens, revisions, changes, flags."""
    said = []
    for field, value in message.ListFields():
        for one in value if field.is_repeated else [value]:
            if not field.message_type or is_map(field):
                said.append(f"{field.name}={one}")
            elif field.message_type.name not in RECORDS:
                said.append(without_records(one))
    return "\n".join(said)


def leaking_outputs(outputs: dict[str, str]) -> list[str]:
    """The names of the outputs that contain a private value, as plain text or base64."""
    return [
        name for name, text in outputs.items() if PRIVATE.search(text) or any(map(PRIVATE.search, decoded_base64(text)))
    ]


def decoded_base64(text: str) -> Iterator[str]:
    """Every part of a text that decodes as base64."""
    for word in set(re.findall(r"[\w+/-]{12,}={0,2}", text)):
        for altchars in (b"-_", b"+/"):
            with suppress(binascii.Error, ValueError):
                yield base64.b64decode(word + "=" * (-len(word) % 4), altchars, validate=True).decode("latin-1")
