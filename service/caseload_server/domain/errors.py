"""What can go wrong, in the words of the domain. One class a reason of the contract's ErrorReason.

Texts and metadata are public: they reach the caller. They hold ids that passed their pattern, counts and field
paths, and never another value that was sent or stored.
"""

from collections.abc import Sequence
from typing import ClassVar, NamedTuple


class Violation(NamedTuple):
    """One field that is wrong: its path in the request, and what is asked of it."""

    field: str
    description: str


class Resource(NamedTuple):
    """A record that an error is about: its type, such as "caseload.v1.Therapist", and its id."""

    type: str
    name: str


class DomainError(Exception):
    """An error that reaches the caller."""

    reason: ClassVar[str]
    """The value of the contract's ErrorReason."""
    text: ClassVar[str]
    """What is wrong, in one sentence."""
    retry_after_seconds: float | None = None

    def __init__(self, *, resources: Sequence[Resource] = (), **metadata: object) -> None:
        """Args: resources, the records it is about; metadata, what ErrorInfo carries besides the reason."""
        super().__init__(self.text)
        self.message = self.text
        self.violations: tuple[Violation, ...] = ()
        self.resources = tuple(resources)
        self.metadata = {key: str(value) for key, value in metadata.items()}


class InvalidField(DomainError):
    """One or more fields of the request are missing or malformed."""

    reason = "INVALID_FIELD"
    text = "A field is missing or malformed."

    def __init__(self, *violations: Violation) -> None:
        """Takes at least one violation; the first is told in the message, up to 20 in the details."""
        super().__init__()
        self.violations = violations[:20]
        first = violations[0]
        rest = len(violations) - 1
        self.message = f"{first.field or 'request'}: {first.description}" + (f" (and {rest} more)" if rest else "")


class PageTokenInvalid(DomainError):
    reason = "PAGE_TOKEN_INVALID"
    text = "page_token: was not issued by this store, or is damaged."


class PageTokenMismatch(DomainError):
    reason = "PAGE_TOKEN_MISMATCH"
    text = "page_token: belongs to a request with other arguments."


class RequestIdReused(DomainError):
    reason = "REQUEST_ID_REUSED"
    text = "request_id: was used before with another request."


class TherapistNotFound(DomainError):
    reason = "THERAPIST_NOT_FOUND"
    text = "There is no therapist with this id."


class PatientNotFound(DomainError):
    reason = "PATIENT_NOT_FOUND"
    text = "There is no patient with this id."


class AssignmentNotFound(DomainError):
    reason = "ASSIGNMENT_NOT_FOUND"
    text = "There is no such assignment."


class IdTaken(DomainError):
    reason = "ID_TAKEN"
    text = "The id is taken, perhaps by a deleted record: ids are never reused."


class IdentifierTaken(DomainError):
    reason = "IDENTIFIER_TAKEN"
    text = "Another live record carries this identifier."


class AssignmentDiffers(DomainError):
    reason = "ASSIGNMENT_DIFFERS"
    text = "The two are assigned already, with another role, focus or start_time; replace begins a new period."


class TherapistDeleted(DomainError):
    reason = "THERAPIST_DELETED"
    text = "The therapist is deleted; undelete first."


class PatientDeleted(DomainError):
    reason = "PATIENT_DELETED"
    text = "The patient is deleted; undelete first."


class TherapistNotActive(DomainError):
    reason = "THERAPIST_NOT_ACTIVE"
    text = "The therapist's status accepts no new assignment."


class PatientNotActive(DomainError):
    reason = "PATIENT_NOT_ACTIVE"
    text = "The patient is discharged."


class PrimaryExists(DomainError):
    reason = "PRIMARY_EXISTS"
    text = "The patient has a primary therapist; replace_primary ends that period."


class TherapistAtCapacity(DomainError):
    reason = "THERAPIST_AT_CAPACITY"
    text = "The therapist's max_active_patients is reached."


class HasActiveAssignments(DomainError):
    reason = "HAS_ACTIVE_ASSIGNMENTS"
    text = "Active assignments stand in the way: end them first."


class PeriodOverlaps(DomainError):
    reason = "PERIOD_OVERLAPS"
    text = "The period would overlap another of the pair, or another primary one of the patient."


class TooManyAssignments(DomainError):
    reason = "TOO_MANY_ASSIGNMENTS"
    text = "One call changes at most 1000 assignments: transfer them in parts, or unassign some first."


class EtagMismatch(DomainError):
    reason = "ETAG_MISMATCH"
    text = "The record has changed since this etag was read: read it again, then decide again."


class StoreBusy(DomainError):
    reason = "STORE_BUSY"
    text = "Writers collided and nothing was written: try again."
    no_connection: ClassVar[str] = "No connection to the database was free in time, and nothing was done: try again."
    retry_after_seconds = 0.1

    def __init__(self, text: str = text) -> None:
        """Args: text, what the call waited for in vain."""
        super().__init__()
        self.message = text


class StoreUnavailable(DomainError):
    reason = "STORE_UNAVAILABLE"
    text = "The database does not answer and nothing was written: try again."
    retry_after_seconds = 1.0


class OutcomeUnknown(DomainError):
    reason = "OUTCOME_UNKNOWN"
    text = "The database failed during the commit: repeat the call with the same request_id."


class StoreFull(DomainError):
    reason = "STORE_FULL"
    text = "The disk is full; nothing was written."


class ShuttingDown(DomainError):
    reason = "SHUTTING_DOWN"
    text = "This instance is stopping: try again, and another one or its successor answers."


class Overloaded(DomainError):
    reason = "OVERLOADED"
    text = "There are too many calls at once, and this one was not begun: try again after the delay in RetryInfo."

    def __init__(self, retry_after_seconds: float) -> None:
        super().__init__()
        self.retry_after_seconds = retry_after_seconds


class RevisionPruned(DomainError):
    reason = "REVISION_PRUNED"
    text = "Changes that old were pruned: start after oldest_revision, and read the records anew."


class RevisionForeign(DomainError):
    reason = "REVISION_FOREIGN"
    text = "The revision is malformed, from another store, or from before a restore."


class TooManyWatches(DomainError):
    reason = "TOO_MANY_WATCHES"
    text = "This instance has as many open watches as it may: close one, or try later."


class WatchTooSlow(DomainError):
    reason = "WATCH_TOO_SLOW"
    text = "The watch was read too slowly: resume from the through_revision received last."


class Unauthenticated(DomainError):
    reason = "UNAUTHENTICATED"
    text = "There are no credentials, or none that are known."


class PermissionDenied(DomainError):
    reason = "PERMISSION_DENIED"
    text = "The caller lacks the permission that the method needs."


class DeadlineExceeded(DomainError):
    reason = "DEADLINE_EXCEEDED"
    text = "The deadline had passed before the work began; nothing was written."


class Internal(DomainError):
    reason = "INTERNAL"
    text = "A defect in the service; the error_id finds it in the server's log."
