"""What a caller without `read` gets: no personal data in a response, and no fact about a record in an error.

A method that needs `write` answers with records, and so does a replay or a call with validate_only. Without `read` the
response keeps ids, times, etags, flags and the revision. Everything else is removed, and so is every field that the
tables below do not name: a new field stays hidden until it is added here.

An id of another record is kept only if the request names it, because it shows who treats whom. A list leaves out
assignments with such an id. So a transfer of a whole caseload, with validate_only or not, does not list the caseload.

With validate_only, etags and update times are removed too: they stay the same only if the request has the stored
values. So a caller could guess values until one is right, without changing anything.
"""

from collections.abc import Iterator
from typing import Any, Final

from google.protobuf.descriptor import FieldDescriptor

from caseload_server.domain.errors import DomainError
from caseload_server.security.principal import current_principal

_RESPONSE_FIELDS: Final = frozenset(
    {
        *("revision", "created", "ended", "active", "results"),  # flags and lists
        *("therapist", "patient", "assignment", "source", "target"),  # records
        *("therapists", "patients"),
    }
)
"""Fields of every response to keep. The records in them are redacted too."""
_PERSON_FIELDS: Final = frozenset({"etag", "create_time", "update_time", "delete_time"})
_RECORD_FIELDS: Final = {
    "caseload.v1.Therapist": _PERSON_FIELDS | {"therapist_id"},
    "caseload.v1.Patient": _PERSON_FIELDS | {"patient_id"},
    "caseload.v1.Assignment": frozenset(
        {"assignment_id", "etag", "create_time", "update_time", "start_time", "end_time", "expire_time"}
    ),
    "caseload.v1.BatchAssignResponse.Result": frozenset({"assignment", "created"}),
}
"""Fields of records to keep."""
_REFERENCES: Final = {
    "caseload.v1.Assignment": frozenset({"therapist_id", "patient_id"}),
    "caseload.v1.Patient": frozenset({"merged_into_patient_id"}),
}
"""Ids of other records, which are kept if the request names them."""
_PUBLIC_METADATA: Final = frozenset({"index"})
"""Metadata of every error to keep: the position of an entry in the request."""
_OTHER_RECORDS: Final = {"target": "patient_id"}
"""Fields with a record that the request may not name, and the field with its id."""
_SIGNS_OF_CHANGE: Final = frozenset({"etag", "update_time"})
"""Fields of records that show whether a call that only validates would change anything."""
_NONE: Final[frozenset[str]] = frozenset()


def may_read() -> bool:
    """Returns whether the current call's principal has the permission read. False before authentication."""
    principal = current_principal.get(None)
    return principal is not None and "read" in principal.permissions


def redact(response: Any, request: Any) -> None:
    """Removes from a response everything that needs `read`. Args: request, the message that it answers."""
    removed = _SIGNS_OF_CHANGE if getattr(request, "validate_only", False) else _NONE
    _redact(response, frozenset(_ids(request)), removed)


def redact_error(error: DomainError) -> None:
    """Removes the metadata and the resources of an error that need `read`."""
    public = error.public_metadata | _PUBLIC_METADATA
    error.metadata = {key: value for key, value in error.metadata.items() if key in public}
    error.resources = error.resources if error.public_resources else ()


def _redact(message: Any, named: frozenset[str], removed: frozenset[str]) -> bool:
    """Returns whether the message refers to a record that the request does not name."""
    kind = message.DESCRIPTOR.full_name
    kept = _RECORD_FIELDS.get(kind, _RESPONSE_FIELDS if kind.endswith("Response") else _NONE) - removed
    references = _REFERENCES.get(kind, _NONE)
    refers_to_others = False
    for field, value in message.ListFields():
        if field.name in references:
            is_kept = value in named
            refers_to_others |= not is_kept
        else:
            is_kept = field.name in kept and _is_named(field, value, named)
        if not is_kept:
            message.ClearField(field.name)
        elif _is_record(field):
            _redact_field(field, value, named, removed)
    return refers_to_others


def _is_named(field: FieldDescriptor, value: Any, named: frozenset[str]) -> bool:
    id_field = _OTHER_RECORDS.get(field.name)
    return id_field is None or getattr(value, id_field) in named


def _redact_field(field: FieldDescriptor, value: Any, named: frozenset[str], removed: frozenset[str]) -> None:
    if field.is_repeated:
        kept = [record for record in value if not _redact(record, named, removed)]
        del value[:]
        value.extend(kept)
    else:
        _redact(value, named, removed)


def _is_record(field: FieldDescriptor) -> bool:
    message = field.message_type
    return message is not None and message.file.package == "caseload.v1" and not message.GetOptions().map_entry


def _ids(message: Any) -> Iterator[str]:
    """Yields all ids of records in a request."""
    for field, value in message.ListFields():
        if _is_record(field):
            for nested in value if field.is_repeated else (value,):
                yield from _ids(nested)
        elif field.name == "request_id":  # any UUID, so it could guess the id of a record
            continue
        elif field.name.endswith("_id"):
            yield value
        elif field.name.endswith("_ids"):
            yield from value
