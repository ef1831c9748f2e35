"""The results of the store's methods, one type for each verb.

`revision` is the revision of the write, the head revision when nothing was written, or empty with validate_only.
"""

from typing import Generic, NamedTuple, TypeVar

from caseload_server.domain.records import Assignment, ChangeSet, Patient

R = TypeVar("R", covariant=True)


class RecordResult(NamedTuple, Generic[R]):
    """A record that was created, corrected or undeleted."""

    record: R
    revision: str


class BatchCreateResult(NamedTuple, Generic[R]):
    """The records that a batch created, in the order of its entries."""

    records: list[R]
    revision: str


class UpdateResult(NamedTuple, Generic[R]):
    """A record that was updated."""

    record: R
    ended_count: int
    """The number of assignments that an update with force ended."""
    revision: str


class DeleteResult(NamedTuple, Generic[R]):
    """A record that was deleted."""

    record: R | None
    """None when the record does not exist and the request has allow_missing."""
    ended_count: int
    """The number of assignments that a delete with force ended."""
    revision: str


class AssignResult(NamedTuple):
    """The assignment of a pair: active, or finished if the request has an end."""

    record: Assignment
    created: bool
    """False when the same assignment was already active, or recorded."""
    revision: str
    demoted: Assignment | None = None
    """The TREATING assignment of the therapist who was PRIMARY before."""


class BatchAssignResult(NamedTuple):
    """The assignments of a batch, in the order of its entries."""

    records: list[Assignment]
    created: list[bool]
    """False where the same assignment was already recorded."""
    revision: str


class UnassignResult(NamedTuple):
    """The ended assignment of a pair."""

    record: Assignment | None
    """None when the pair was never assigned and the request has allow_missing."""
    ended: bool
    """False when it had already ended."""
    revision: str


class TransferResult(NamedTuple):
    """The assignments that a transfer moved."""

    ended: list[Assignment]
    """The assignments of the source that ended."""
    active: list[Assignment]
    """The active assignment of the target for each of them."""
    revision: str


class MergeResult(NamedTuple):
    """Two merged patients, and the assignments that moved."""

    source: Patient
    target: Patient
    ended: list[Assignment]
    """The assignments of the source that ended."""
    active: list[Assignment]
    """The active assignment of the target for each of them."""
    primary_demoted: bool
    """True when the therapist of the source's PRIMARY assignment is not PRIMARY on the target."""
    revision: str


class UnmergeResult(NamedTuple):
    """A patient that is not merged any more."""

    source: Patient
    target: Patient | None
    """None when the source was not merged."""
    revision: str


class Page(NamedTuple, Generic[R]):
    """One page of a list."""

    records: list[R]
    next_after: str
    """The id that the next page starts after. Empty on the last page."""
    revision: str
    next_after_key: str | int = ""
    """The sort key that the next page starts after, if the list is not ordered by id."""
    total_size: int | None = None
    """The number of all matches, if the request asks for it."""


class RecordVersion(NamedTuple, Generic[R]):
    """What a record was between two changes."""

    record: R
    """Without the columns that are derived from assignments."""
    from_revision: str
    """Of the change that wrote it. Empty if that is not known."""
    from_us: int
    """The time of that change, in microseconds since 1970 (UTC)."""
    to_revision: str
    """Of the change that replaced it. Empty for the current record."""
    to_us: int | None
    actor: str
    """Who made the change of from_revision. Empty if the change log does not have it any more."""
    on_behalf_of: str


class VersionPage(NamedTuple, Generic[R]):
    """One page of the versions of a record, newest first."""

    versions: list[RecordVersion[R]]
    next_after: str
    """As Page.next_after."""
    revision: str
    oldest_revision: str
    """The versions are complete for the changes after it. Empty if they are complete since the creation."""
    oldest_us: int | None
    """The time of that revision, in microseconds since 1970 (UTC)."""


class CheckResult(NamedTuple):
    """Whether a pair is assigned."""

    pair_index: int
    """The index of the pair in the request."""
    assignment_id: str | None
    """The assignment in force, or None."""
    role: int | None


class LogHead(NamedTuple):
    """The end of the change log."""

    revision: int
    """The number of the newest revision."""
    hash: bytes
    """The hash of its change set, which depends on all change sets before."""

    def __str__(self) -> str:
        """Returns REVISION:HASH, the form in which operators keep it."""
        return f"{self.revision}:{self.hash.hex()}"


class ChangePage(NamedTuple):
    """A page of the change log. The contract's ListChangesResponse explains the revisions."""

    change_sets: list[ChangeSet]
    through: str
    head: str
    oldest: str
