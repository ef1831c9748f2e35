"""Validated requests to the store. Times are microseconds since 1970 (UTC)."""

from typing import NamedTuple

from caseload_server.domain.enums import ROLE_TREATING

Fields = dict[str, str | int | None]
"""The columns of a therapist or patient that a caller sets, and the values to store."""

NewRecord = tuple[str, Fields]
"""The id of a therapist or patient to create, empty to generate one, and the columns that the caller sets."""


class CallContext(NamedTuple):
    """The caller and the method of a write, and what recognizes a repeat of it."""

    actor: str
    method: str
    request_id: str = ""
    fingerprint: bytes = b""
    """The request in deterministic bytes. A repeat with the same request_id must have the same."""
    validate_only: bool = False
    on_behalf_of: str = ""
    """The end user for whom the caller acts, as the caller asserts it."""


class PageRequest(NamedTuple):
    """One page of a list: at most `size` records, which follow a position."""

    size: int
    after: str
    """The id at the position, or empty for the first page."""
    after_key: str | int = ""
    """The sort key at the position, if the list is not ordered by id."""


class Order(NamedTuple):
    """The order of a list: by a column, then by id."""

    column: str = ""
    """Empty orders by id alone."""
    descending: bool = False


BY_ID = Order()


class RecordQuery(NamedTuple):
    """Which therapists or patients to list. All conditions that are set must hold."""

    name_prefix: str = ""
    statuses: tuple[int, ...] = ()
    identifier: tuple[str, str] | None = None
    identifier_value: str = ""
    unassigned: bool = False
    specialties: tuple[str, ...] = ()
    accepting_patients: bool = False
    birth_date: str = ""
    """YYYY, YYYY-MM or YYYY-MM-DD."""
    phone_number: str = ""
    email: str = ""
    without_primary: bool = False
    deleted_only: bool = False
    show_deleted: bool = False
    order: Order = BY_ID
    """The column is name_key or updated_us."""
    with_total: bool = False
    """Whether to count all matches."""


class CaseloadQuery(NamedTuple):
    """Which assignments of one therapist or patient to list. All conditions that are set must hold."""

    parent_id: str
    roles: tuple[int, ...] = ()
    states: tuple[int, ...] = ()
    as_of_us: int | None = None
    same_person: tuple[str, ...] = ()
    """The patients whose assignments to list instead, if the store finds that they are records of one person."""
    order: Order = BY_ID
    """The column is name_key, of the record on the other side, or start_us."""
    with_total: bool = False
    """Whether to count all matches."""


class AssignmentQuery(NamedTuple):
    """Which assignments to list. All conditions that are set must hold."""

    therapist_id: str = ""
    patient_id: str = ""
    roles: tuple[int, ...] = ()
    states: tuple[int, ...] = ()
    as_of_us: int | None = None
    same_person: tuple[str, ...] = ()
    """As in CaseloadQuery."""
    known_at_us: int | None = None
    """The time as of whose knowledge to answer. None means now."""
    with_total: bool = False
    """Whether to count all matches."""


class Assign(NamedTuple):
    """A request to assign a therapist and a patient to each other."""

    therapist_id: str
    patient_id: str
    role: int = ROLE_TREATING
    focus: str = ""
    start_us: int | None = None
    replace: bool = False
    replace_primary: bool = False
    ignore_capacity: bool = False
    end_us: int | None = None
    """The end of a finished period. None begins an active one."""
    end_reason: int = 0
    """Why a finished period ended."""
    expire_us: int | None = None
    demote_primary: bool = False


class Unassign(NamedTuple):
    """A request to end the active assignment of a pair."""

    therapist_id: str
    patient_id: str
    end_reason: int = 0
    end_us: int | None = None
    etag: str = ""
    allow_missing: bool = False


class Transfer(NamedTuple):
    """A request to move active assignments to another therapist. Empty patient_ids means all of them."""

    source_id: str
    target_id: str
    patient_ids: tuple[str, ...] = ()
    ignore_capacity: bool = False
    effective_us: int | None = None
    """When they move. None means now, or as soon as no period would overlap."""


class Merge(NamedTuple):
    """A request to merge a patient, the source, into another record of the same person."""

    source_id: str
    target_id: str
    force: bool = False
    may_compare: bool = True
    """Whether the caller may learn that birth dates or names are equal. Otherwise any two count as different."""


Correction = dict[str, str | int | None]
"""The columns of an assignment that a caller names, and their values as stored."""


class Update(NamedTuple):
    """A request to update a therapist or a patient."""

    record_id: str
    fields: Fields
    etag: str = ""
    end_reason: int | None = None
    """Of the active assignments that `force` ends, if the new status does not permit them. None without force."""


class Delete(NamedTuple):
    """A request to soft-delete a therapist or a patient."""

    record_id: str
    etag: str = ""
    force: bool = False
    allow_missing: bool = False


class ChangeQuery(NamedTuple):
    """Which change sets to return. All conditions that are set must hold."""

    therapist_id: str = ""
    patient_id: str = ""
    actor: str = ""
    on_behalf_of: str = ""
