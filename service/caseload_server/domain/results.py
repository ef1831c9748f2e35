"""What the store answers, one type for each verb.

`revision` is that of the write, that of the store's head where nothing was written, or empty where the call only
validated.
"""

from typing import Generic, NamedTuple, TypeVar

from caseload_server.domain.records import Assignment, ChangeSet

R = TypeVar("R", covariant=True)


class RecordResult(NamedTuple, Generic[R]):
    """A record that was created, updated, corrected or undeleted."""

    record: R
    revision: str


class DeleteResult(NamedTuple, Generic[R]):
    """A record that was deleted."""

    record: R | None
    """None where there is none and the request allows that."""
    ended_count: int
    """The number of assignments that a forced delete ended."""
    revision: str


class AssignResult(NamedTuple):
    """The active assignment of a pair."""

    record: Assignment
    created: bool
    """False where the same assignment was active already."""
    revision: str


class UnassignResult(NamedTuple):
    """The ended assignment of a pair."""

    record: Assignment | None
    """None where the pair was never assigned and the request allows that."""
    ended: bool
    """False where it had ended before."""
    revision: str


class TransferResult(NamedTuple):
    """A caseload that was moved."""

    ended: list[Assignment]
    """The assignments of the source that ended."""
    active: list[Assignment]
    """For each of them the active assignment of the target."""
    revision: str


class Page(NamedTuple, Generic[R]):
    """One page of a list."""

    records: list[R]
    next_after: str
    """The id that the next page starts after; empty on the last page."""
    revision: str


class CheckResult(NamedTuple):
    """Whether a pair is assigned."""

    pair_index: int
    """The position of the pair in the request."""
    assignment_id: str | None
    """The assignment in force; None where there is none."""
    role: int | None


class ChangePage(NamedTuple):
    """Part of the change log. The revisions are those of the contract's ListChangesResponse."""

    change_sets: list[ChangeSet]
    through: str
    head: str
    oldest: str
