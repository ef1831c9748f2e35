"""What callers ask of the store, after validation. Times are integer microseconds since 1970 (UTC)."""

from typing import NamedTuple

from caseload_server.domain.enums import ROLE_TREATING

Fields = dict[str, str | int | None]
"""Columns of a therapist or patient that a caller sets, with their values as stored."""


class CallContext(NamedTuple):
    """Who asks for a write, and how."""

    actor: str
    method: str
    request_id: str = ""
    fingerprint: bytes = b""
    """The request in deterministic bytes; what a repeat under the same request_id must equal."""
    validate_only: bool = False


class PageRequest(NamedTuple):
    """Which part of a list: at most so many records, with ids after this one."""

    size: int
    after: str


class RecordQuery(NamedTuple):
    """Which therapists or patients to list; all that is set must hold."""

    name_prefix: str = ""
    statuses: tuple[int, ...] = ()
    identifier: tuple[str, str] | None = None
    unassigned: bool = False
    specialties: tuple[str, ...] = ()
    accepting_patients: bool = False
    show_deleted: bool = False


class CaseloadQuery(NamedTuple):
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


class ChangeQuery(NamedTuple):
    """Which change sets; all that is set must hold."""

    therapist_id: str = ""
    patient_id: str = ""
    actor: str = ""
