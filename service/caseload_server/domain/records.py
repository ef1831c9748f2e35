"""Records as NamedTuples. Their fields are the columns of the table, in order. Times are in microseconds since 1970."""

from typing import NamedTuple, TypeVar


class Therapist(NamedTuple):
    """A row of `therapist`."""

    therapist_id: str
    display_name: str
    email: str
    status: int
    identifiers: str
    """JSON: a list of [system, value]."""
    specialties: str
    """JSON: a list of codes."""
    max_active_patients: int | None
    annotations: str
    """JSON: an object whose values are strings."""
    active_patient_count: int
    created_us: int
    updated_us: int
    deleted_us: int | None
    etag: str
    aliases: str
    """JSON: a list of names."""


class Patient(NamedTuple):
    """A row of `patient`."""

    patient_id: str
    display_name: str
    birth_date: str
    """YYYY, YYYY-MM or YYYY-MM-DD, or empty."""
    email: str
    phone_number: str
    status: int
    identifiers: str
    """JSON: a list of [system, value]."""
    annotations: str
    """JSON: an object whose values are strings."""
    primary_therapist_id: str
    active_therapist_count: int
    created_us: int
    updated_us: int
    deleted_us: int | None
    etag: str
    aliases: str
    """JSON: a list of names."""
    merged_into_patient_id: str
    """Empty unless the record was merged."""


class Assignment(NamedTuple):
    """A row of `assignment`: one period of a therapist and a patient. It is active while end_us is None."""

    assignment_id: str
    therapist_id: str
    patient_id: str
    role: int
    focus: str
    start_us: int
    end_us: int | None
    end_reason: int
    created_by: str
    ended_by: str
    created_us: int
    updated_us: int
    etag: str
    expire_us: int | None
    """The planned end."""


Person = Therapist | Patient
P = TypeVar("P", Therapist, Patient)
Q = TypeVar("Q", Therapist, Patient)
R = TypeVar("R", Therapist, Patient, Assignment)


class Change(NamedTuple):
    """A change of one record. It has ids and names of fields, but no values."""

    kind: int
    changed_fields: str
    """Names, separated by commas."""
    therapist_id: str | None
    patient_id: str | None
    assignment_id: str | None
    through_revision: str = ""
    """Of a purge of the change log or of versions: the last revision that it erased. Else empty."""


class ChangeSet(NamedTuple):
    """The changes of one committed transaction."""

    revision: str
    committed_us: int
    actor: str
    method: str
    request_id: str
    on_behalf_of: str
    changes: list[Change]
