"""The errors that callers receive. There is one class for each reason of the contract's ErrorReason.

Texts and metadata are public. They may contain well-formed ids, counts and field paths, but never another value that
was sent or stored.
"""

from collections.abc import Callable, Sequence
from typing import ClassVar, NamedTuple


class Violation(NamedTuple):
    """An invalid field: its path in the request, and what the field must be."""

    field: str
    description: str


class Resource(NamedTuple):
    """A record that an error refers to: its type, such as "caseload.v1.Therapist", and its id."""

    type: str
    name: str


class DomainError(Exception):
    """The base class of the errors that callers receive."""

    reason: ClassVar[str]
    """The name of the ErrorReason, without its prefix."""
    text: ClassVar[str]
    """What is wrong and what to do."""
    retry_after_seconds: float | None = None
    """The retry delay to recommend, in seconds; None to recommend none."""
    cause: str = ""
    """The cause of a failure of the database or of the authentication, as metrics count it; else empty."""
    public_metadata: ClassVar[frozenset[str]] = frozenset()
    """The keys of metadata that callers without the permission read get too. They say nothing about a record."""
    public_resources: ClassVar[bool] = False
    """Whether callers without the permission read get the resources too: they are ids that the request named."""

    def __init__(self, *, resources: Sequence[Resource] = (), **metadata: object) -> None:
        """Args: resources, the records it refers to; metadata, of ErrorInfo."""
        super().__init__(self.text)
        self.message = self.text
        self.violations: tuple[Violation, ...] = ()
        self.resources = tuple(resources)
        self.metadata = {key: str(value) for key, value in metadata.items()}

    def of_entry(self, index: int) -> "DomainError":
        """Returns the error of an entry of a batch. A failure of the database is not one. Args: index, from 0."""
        if not self.cause:
            self.metadata["index"] = str(index)
        return self


class InvalidField(DomainError):
    """One or more fields of the request are missing or malformed."""

    reason = "INVALID_FIELD"
    text = "A field is missing or malformed."

    def __init__(self, *violations: Violation) -> None:
        """Takes at least one violation. The message names the first one, the details up to 20."""
        super().__init__()
        self.violations = violations[:20]
        first = violations[0]
        rest = len(violations) - 1
        self.message = f"{first.field or 'request'}: {first.description}" + (f" (and {rest} more)" if rest else "")

    def of_entry(self, index: int) -> "InvalidField":
        """Returns the error with paths from the batch."""
        violations = (one._replace(field=f"requests[{index}].{one.field}") for one in self.violations)
        return InvalidField(*violations)


class PageTokenInvalid(DomainError):
    reason = "PAGE_TOKEN_INVALID"
    text = "page_token: was not issued by this store, or is damaged. Start the list again without a page_token."


class PageTokenMismatch(DomainError):
    reason = "PAGE_TOKEN_MISMATCH"
    text = "page_token: belongs to a request with other arguments. Send the arguments of the first page."


class RequestIdReused(DomainError):
    reason = "REQUEST_ID_REUSED"
    text = "request_id: was already used for a different request. Send this request with a new request_id."


class TherapistNotFound(DomainError):
    reason = "THERAPIST_NOT_FOUND"
    public_metadata = frozenset({"missing"})
    public_resources = True
    text = "No therapist has this id. Check the id."


class PatientNotFound(DomainError):
    reason = "PATIENT_NOT_FOUND"
    public_metadata = frozenset({"missing"})
    public_resources = True
    text = "No patient has this id. Check the id."


class AssignmentNotFound(DomainError):
    reason = "ASSIGNMENT_NOT_FOUND"
    text = "There is no such assignment. Check the ids."


class IdTaken(DomainError):
    reason = "ID_TAKEN"
    public_metadata = frozenset({"other_index"})
    text = "The id is already taken, perhaps by a deleted record. Ids are never reused: choose another id."


class IdentifierTaken(DomainError):
    """Its resource is the record that has the identifier, if it still has it."""

    reason = "IDENTIFIER_TAKEN"
    public_metadata = frozenset({"other_index"})
    text = "Another record has this identifier. Find it with filter.identifier: it may be the same person."


class AssignmentDiffers(DomainError):
    reason = "ASSIGNMENT_DIFFERS"
    text = (
        "The pair already has an active assignment with another role, focus, start_time or expire_time."
        " Set replace to replace it."
    )


class TherapistDeleted(DomainError):
    reason = "THERAPIST_DELETED"
    public_metadata = frozenset({"therapist_id"})
    text = "The therapist is deleted. Undelete the therapist first."


class PatientDeleted(DomainError):
    reason = "PATIENT_DELETED"
    public_resources = True
    text = "The patient is deleted. Undelete the patient first."


class PatientMerged(DomainError):
    reason = "PATIENT_MERGED"
    text = "The patient was merged into another record. Use that record, or unmerge the patient first."


class BirthDatesDiffer(DomainError):
    reason = "BIRTH_DATES_DIFFER"
    text = "The two patients have different birth dates. If they are one person, set force."


class MergeTooLarge(DomainError):
    reason = "MERGE_TOO_LARGE"
    public_metadata = frozenset({"limit", "field"})
    text = "The target of the merge would exceed a limit. Metadata names it. Remove some values first."


class TherapistNotActive(DomainError):
    reason = "THERAPIST_NOT_ACTIVE"
    text = "The therapist is on leave or inactive and accepts no new assignments. Choose another therapist."


class PatientNotActive(DomainError):
    reason = "PATIENT_NOT_ACTIVE"
    text = "The patient is discharged. Set the patient's status to STATUS_ACTIVE first."


class PrimaryExists(DomainError):
    reason = "PRIMARY_EXISTS"
    text = "The patient already has a primary therapist. Set replace_primary or demote_primary, or assign another role."


class TherapistAtCapacity(DomainError):
    reason = "THERAPIST_AT_CAPACITY"
    text = "The therapist has reached max_active_patients. Choose another therapist, or set ignore_capacity."


class HasActiveAssignments(DomainError):
    reason = "HAS_ACTIVE_ASSIGNMENTS"
    text = "The record has active assignments. End them first, or set force."


class PeriodOverlaps(DomainError):
    reason = "PERIOD_OVERLAPS"
    text = "The period overlaps another period of the pair, or another primary period of the patient. Change its times."


class TooManyAssignments(DomainError):
    reason = "TOO_MANY_ASSIGNMENTS"
    public_metadata = frozenset({"limit"})
    text = "One call can change at most 1000 assignments. Transfer them in parts, or unassign some first."


class EtagMismatch(DomainError):
    reason = "ETAG_MISMATCH"
    text = "The record has changed since this etag was read. Read it again, then decide again."


class StoreBusy(DomainError):
    """Has four causes. Metadata `cause` names one of them."""

    reason = "STORE_BUSY"
    public_metadata = frozenset({"cause"})
    COLLISION: ClassVar[str] = "collision"
    LOCK_WAIT: ClassVar[str] = "lock_wait"
    POOL_WAIT: ClassVar[str] = "pool_wait"
    STATEMENT_TIMEOUT: ClassVar[str] = "statement_timeout"
    texts: ClassVar[dict[str, str]] = {
        COLLISION: "Concurrent writes conflicted, and nothing was written. Retry the call.",
        LOCK_WAIT: "Another transaction held a lock for too long, and nothing was written. Retry the call.",
        POOL_WAIT: "No database connection became free in time, and nothing was done. Retry the call.",
        STATEMENT_TIMEOUT: "The database took too long to answer, and nothing was written. Retry the call.",
    }
    text = texts[COLLISION]
    retry_after_seconds = 0.1

    def __init__(self, cause: str = COLLISION) -> None:
        super().__init__(cause=cause)
        self.cause = cause
        self.message = self.texts[cause]


class StoreUnavailable(DomainError):
    reason = "STORE_UNAVAILABLE"
    text = "The database does not respond or accepts no writes, and nothing was written. Retry the call."
    retry_after_seconds = 1.0
    cause = "unavailable"

    def __init__(self, sqlstate: str = "", detail: str = "") -> None:
        """Args: for the log, never for the caller: PostgreSQL's code, and what is wrong with the database."""
        super().__init__()
        self.sqlstate = sqlstate
        self.detail = detail
        self.add_note(f"{sqlstate} {detail}".strip())  # for tracebacks, such as those of tests


class OutcomeUnknown(DomainError):
    reason = "OUTCOME_UNKNOWN"
    cause = "outcome_unknown"
    text = (
        "The database failed during the commit, and the write may have succeeded. Repeat it with the same request_id."
    )


class StoreFull(DomainError):
    reason = "STORE_FULL"
    cause = "full"
    text = "The disk of the database is full, and nothing was written. Free some space."


class ShuttingDown(DomainError):
    reason = "SHUTTING_DOWN"
    text = "This instance is shutting down. Retry the call: another instance, or this one after a restart, will answer."
    aged: ClassVar[str] = "The watch has reached its largest age. Resume it after the last through_revision received."

    def __init__(self, text: str = text) -> None:
        """Args: text, the default, or `aged`."""
        super().__init__()
        self.message = text


class Overloaded(DomainError):
    reason = "OVERLOADED"
    text = "The server is overloaded and did not start this call. Retry it after the delay in RetryInfo."

    def __init__(self, retry_after_seconds: float) -> None:
        super().__init__()
        self.retry_after_seconds = retry_after_seconds


class AccessLogUnavailable(DomainError):
    reason = "ACCESS_LOG_UNAVAILABLE"
    text = "The server must log every call, but cannot write its access log. Nothing was written. Retry the call."
    retry_after_seconds = 1.0


class RevisionPruned(DomainError):
    reason = "REVISION_PRUNED"
    public_metadata = frozenset({"oldest_revision"})
    text = "Changes after this revision were pruned. Read the records again, and start after oldest_revision or later."


class VersionsNotKept(DomainError):
    reason = "VERSIONS_NOT_KEPT"
    public_metadata = frozenset({"oldest_time"})
    text = "The server does not keep all versions since known_at. Send oldest_time of the metadata, or a later time."


class RevisionForeign(DomainError):
    reason = "REVISION_FOREIGN"
    text = "The revision is malformed, from another store, or from before a restore. Read the records again."


class TooManyWatches(DomainError):
    reason = "TOO_MANY_WATCHES"
    public_metadata = frozenset({"limit"})
    text = "This instance has reached its limit of open watches. Close a watch, or retry later."


class WatchTooSlow(DomainError):
    reason = "WATCH_TOO_SLOW"
    text = "The watch was closed because it was read too slowly. Resume after the last through_revision received."


class Unauthenticated(DomainError):
    reason = "UNAUTHENTICATED"
    text = "The call has no credentials, or unknown ones. Send a valid key, token or client certificate."
    forwarded_text: ClassVar = (
        "A proxy forwarded this call, and the server requires no credentials. "
        "Start it with --behind-proxy, and with --keys-file or --oidc-issuer."
    )
    """The text for the cause "forwarded": a server without credentials got a call from another machine."""

    causes: ClassVar = (
        *("no_credentials", "unknown_key", "expired_key", "other_caller", "check_failed", "forwarded"),
        *("unknown_certificate", "ambiguous_certificate", "malformed_certificate", "expired_certificate"),
        *("malformed_token", "expired_token", "premature_token", "wrong_issuer", "wrong_audience", "wrong_algorithm"),
        *("wrong_signature", "unknown_token_key", "invalid_token_name", "issuer_unavailable"),
    )

    def __init__(self, cause: str, retry: Callable[[Callable[[], None]], bool] | None = None) -> None:
        """Args: cause, one of `causes`, for the operators only: the caller must not learn what was wrong.

        retry, calls a function once the credentials may be known after all. It returns False if it will not call it.
        """
        super().__init__()
        if cause == "forwarded":
            self.message = self.forwarded_text
        self.cause = cause
        self.retry = retry


class PermissionDenied(DomainError):
    reason = "PERMISSION_DENIED"
    public_metadata = frozenset({"permission"})
    text = "The caller lacks the permission that this method requires. Ask the operators for it."


class DeadlineExceeded(DomainError):
    reason = "DEADLINE_EXCEEDED"
    text = "The deadline passed before the work began, and nothing was written. Retry with a longer deadline."


class Internal(DomainError):
    reason = "INTERNAL"
    public_metadata = frozenset({"error_id"})
    text = "Internal error in the service. Send the error_id to the operators: the server's log has the details."
