"""Rows as NamedTuples, in column order: a row is a record. Times are integer microseconds since 1970 (UTC)."""

from typing import Final, Generic, NamedTuple, TypeVar

STATUS_ACTIVE: Final = 1
THERAPIST_INACTIVE: Final = 3
PATIENT_DISCHARGED: Final = 2
ROLE_PRIMARY: Final = 1
ROLE_TREATING: Final = 2
STATE_ACTIVE: Final = 1
STATE_ENDED: Final = 2
END_TRANSFERRED: Final = 2
END_ENTERED_IN_ERROR: Final = 5
END_RECORD_DELETED: Final = 6
END_REPLACED: Final = 7

MAX_ASSIGNMENTS_A_CALL: Final = 1000
RECORD_BYTES: Final = 32 * 1024


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
    """JSON: an object of texts."""
    active_patient_count: int
    created_us: int
    updated_us: int
    deleted_us: int | None
    etag: str


class Patient(NamedTuple):
    """A row of `patient`."""

    patient_id: str
    display_name: str
    birth_date: str
    """YYYY-MM-DD, or empty."""
    email: str
    phone_number: str
    status: int
    identifiers: str
    """JSON: a list of [system, value]."""
    annotations: str
    """JSON: an object of texts."""
    primary_therapist_id: str
    active_therapist_count: int
    created_us: int
    updated_us: int
    deleted_us: int | None
    etag: str


class Assignment(NamedTuple):
    """A row of `assignment`: one period of a therapist and a patient. It is active until it has an end."""

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


Person = Therapist | Patient
P = TypeVar("P", Therapist, Patient)
Q = TypeVar("Q", Therapist, Patient)
R = TypeVar("R", covariant=True)
Fields = dict[str, str | int | None]
"""Columns of a therapist or patient that a caller sets, with their values as stored."""


class Call(NamedTuple):
    """Who asks for a write, and how."""

    actor: str
    method: str
    request_id: str = ""
    fingerprint: bytes = b""
    """The request in deterministic bytes; what a repeat under the same request_id must equal."""
    validate_only: bool = False


class Outcome(NamedTuple, Generic[R]):
    """What a write answers."""

    record: R
    effect: int
    """created, ended, or how many assignments a forced delete ended."""
    revision: str
    """Of the write; of the store's present head where nothing was written; empty where it was only validated."""


class PageRequest(NamedTuple):
    """Which part of a list: at most so many records, with ids after this one."""

    size: int
    after: str


class Page(NamedTuple, Generic[R]):
    """Part of a list."""

    records: list[R]
    next_after: str
    """The id to go on after; empty on the last page."""
    revision: str


class PeopleQuery(NamedTuple):
    """Which therapists or patients to list; all that is set must hold."""

    name_prefix: str = ""
    statuses: tuple[int, ...] = ()
    identifier: tuple[str, str] | None = None
    unassigned: bool = False
    specialties: tuple[str, ...] = ()
    accepting_patients: bool = False
    show_deleted: bool = False


class AssignedQuery(NamedTuple):
    """Whose assignments to list, and which of them."""

    parent_id: str
    roles: tuple[int, ...] = ()
    states: tuple[int, ...] = ()
    as_of_us: int | None = None


class AssignmentQuery(NamedTuple):
    """Which assignments to list; all that is set must hold."""

    therapist_id: str = ""
    patient_id: str = ""
    roles: tuple[int, ...] = ()
    states: tuple[int, ...] = ()
    as_of_us: int | None = None


class Check(NamedTuple):
    """Whether a pair is assigned; the pair's place in the question, and what is in force, or None."""

    place: int
    assignment_id: str | None
    role: int | None


class Assign(NamedTuple):
    """A request to begin a period."""

    therapist_id: str
    patient_id: str
    role: int = ROLE_TREATING
    focus: str = ""
    start_us: int | None = None
    replace: bool = False
    replace_primary: bool = False
    ignore_capacity: bool = False


class Unassign(NamedTuple):
    """A request to end the active period of a pair."""

    therapist_id: str
    patient_id: str
    end_reason: int = 0
    end_us: int | None = None
    etag: str = ""
    allow_missing: bool = False


class Transfer(NamedTuple):
    """A request to move active periods from one therapist to another; no patient_ids means all."""

    source_id: str
    target_id: str
    patient_ids: tuple[str, ...] = ()
    ignore_capacity: bool = False


Correction = dict[str, str | int | None]
"""Columns of an assignment that a caller names, with their values as stored."""


class Delete(NamedTuple):
    """A request to soft-delete a therapist or a patient."""

    record_id: str
    etag: str = ""
    force: bool = False
    allow_missing: bool = False


class Change(NamedTuple):
    """What happened to one record: ids and names of fields, no values."""

    kind: int
    changed_fields: str
    """Names, a comma between."""
    therapist_id: str | None
    patient_id: str | None
    assignment_id: str | None


class ChangeSet(NamedTuple):
    """One committed transaction."""

    revision: str
    committed_us: int
    actor: str
    method: str
    request_id: str
    changes: list[Change]


class ChangeQuery(NamedTuple):
    """Which change sets; all that is set must hold."""

    therapist_id: str = ""
    patient_id: str = ""
    actor: str = ""


class ChangePage(NamedTuple):
    """Part of the log; the revisions are those of the contract's ListChangesResponse."""

    change_sets: list[ChangeSet]
    through: str
    head: str
    oldest: str
