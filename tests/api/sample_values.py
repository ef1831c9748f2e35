"""A sample value for every field of every request, and references to the fields of a request."""

from collections.abc import Iterator
from typing import Any, Final, NamedTuple

from google.api import field_behavior_pb2
from google.protobuf.descriptor import FieldDescriptor, MethodDescriptor
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass

from tests.support.api_driver import RPCS

METHODS: Final[list[MethodDescriptor]] = list(RPCS.values())
"""All methods of the four services."""

SAMPLES: Final[dict[str, Any]] = {
    "accepting_patients": True,
    "active_patient_count": 7,
    "active_therapist_count": 7,
    "actor": "local",
    "after_revision": "",  # see page_token
    "aliases": ["Annie Lee"],
    "allow_missing": True,
    "annotations": {"team": "blue"},
    "as_of_time": {"seconds": 1_600_000_000},
    "assignment_id": "0190a3c4-0000-7000-8000-00000000000a",
    "birth_date": {"year": 1980, "month": 2, "day": 29},
    "created_by": "local",
    "create_time": {"seconds": 1},
    "deleted_only": True,
    "delete_time": {"seconds": 1},
    "demote_primary": True,
    "display_name": "Ann Lee",
    "effective_time": {"seconds": 1_600_000_000},
    "email": "ann@example.org",
    "end_reason": 1,
    "end_time": {"seconds": 1_600_000_000},
    "ended_by": "local",
    "etag": "0123456789abcdef",
    "expire_time": {"seconds": 4_000_000_000},
    "focus": "anxiety",
    "force": True,
    "identifier": {"system": "urn:example:mrn", "value": "12345"},
    "identifier_value": "12345",
    "ignore_capacity": True,
    "include_total_size": True,
    "known_at": {"seconds": 1_600_000_000},
    "max_active_patients": 5,
    "merged_into_patient_id": "p9",
    "name_prefix": "ann",
    "on_behalf_of": "jdoe",
    "order_by": "display_name",
    "page_size": 10,
    "page_token": "",  # only a list returns a valid one; test_page_tokens.py sends those
    "patient_id": "p1",
    "patient_ids": ["p1"],
    "phone_number": "+4930123456",
    "primary_therapist_id": "t9",
    "release_identifiers": True,
    "replace": True,
    "replace_primary": True,
    "request_id": "0190a3c4-0000-7000-8000-000000000001",
    "role": 2,
    "roles": [2],
    "show_deleted": True,
    "source_patient_id": "p1",
    "source_therapist_id": "t1",
    "specialties": ["hand-therapy"],
    "start_time": {"seconds": 1_600_000_000},
    "state": 1,
    "states": [1],
    "status": 1,
    "statuses": [1],
    "system": "urn:example:mrn",
    "target_therapist_id": "t2",
    "target_patient_id": "p2",
    "therapist_id": "t1",
    "therapist_ids": ["t1"],
    "unassigned": True,
    "update_mask": {"paths": ["*"]},
    "update_time": {"seconds": 1},
    "validate_only": True,
    "value": "12345",
    "without_primary": True,
}
"""Valid values by field name."""


class FieldRef(NamedTuple):
    """A field in a request: its path, the message that owns it, and its descriptor."""

    path: str
    owner: Any
    field: FieldDescriptor

    def behaves(self, behavior: int) -> bool:
        return behaves(self.field, behavior)

    def put(self, value: Any) -> str:
        """Sets the field (a list: to this one entry) and returns the path of the value."""
        self.owner.ClearField(self.field.name)
        if not self.field.is_repeated:
            setattr(self.owner, self.field.name, value)
            return self.path
        getattr(self.owner, self.field.name).append(value)
        return f"{self.path}[0]"


def behaves(field: FieldDescriptor, behavior: int) -> bool:
    """Whether the field has this google.api.field_behavior."""
    return behavior in field.GetOptions().Extensions[field_behavior_pb2.field_behavior]


def is_map(field: FieldDescriptor) -> bool:
    return field.message_type is not None and field.message_type.GetOptions().map_entry


def is_ours(field: FieldDescriptor) -> bool:
    """Whether the field holds a message of the contract, or a list of them."""
    return field.message_type is not None and field.message_type.file.package == "caseload.v1" and not is_map(field)


def full(method: MethodDescriptor) -> Any:
    """Returns a request with every field set, except fields that exclude each other."""
    request = GetMessageClass(method.input_type)()
    _fill(request)
    for ref in list(field_refs(request)):
        excluded = _EXCLUDED.get(ref.owner.DESCRIPTOR.name, _EXCLUDED_EVERYWHERE)
        if ref.field.name in (excluded | _OF_A_BATCH if ref.path.startswith("requests[") else excluded):
            ref.owner.ClearField(ref.field.name)
    return request


_OF_A_BATCH: Final = {"request_id", "validate_only"}
"""Fields of a batch that must not be set on its entries."""
_EXCLUDED_EVERYWHERE: Final = {"states"}
"""Fields that other fields of their message exclude: as_of_time excludes states."""
_EXCLUDED: Final = {
    name: {"end_time", "end_reason", "demote_primary"} for name in ("AssignPatientRequest", "AssignTherapistRequest")
}
"""The same, by message."""


def _fill(message: Message) -> None:
    fields: Any = message.DESCRIPTOR.fields
    for field in fields:
        if not is_ours(field):
            message.MergeFrom(type(message)(**{field.name: SAMPLES[field.name]}))
        elif field.is_repeated:
            _fill(getattr(message, field.name).add())
        else:
            _fill(getattr(message, field.name))
            getattr(message, field.name).SetInParent()


def field_refs(message: Any, prefix: str = "") -> Iterator[FieldRef]:
    """Yields every field of a request and of its nested messages."""
    for field in message.DESCRIPTOR.fields:
        path = f"{prefix}{field.name}"
        yield FieldRef(path, message, field)
        if is_ours(field):
            value = getattr(message, field.name)
            children = enumerate(value) if field.is_repeated else [(None, value)]
            for index, child in children:
                yield from field_refs(child, f"{path}." if index is None else f"{path}[{index}].")
