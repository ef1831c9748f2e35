"""The records of the reference model, and its lines of the change log."""

from dataclasses import dataclass, field
from typing import Final

from tests.support.api_driver import ENTERED_IN_ERROR, PRIMARY

CREATED, UPDATED, DELETED, UNDELETED = 1, 2, 3, 4
THERAPIST, PATIENT = "therapist", "patient"
IDLE: Final = {THERAPIST: 3, PATIENT: 2}


FOR_EVER: Final = 10**12


Line = tuple[int, str, str, tuple[str, ...]]
"""Change kind, therapist id, patient id, sorted field names. Both ids are set for an assignment."""


Flags = dict[str, bool]


class Refused(Exception):
    """A rejected verb; the text is the error reason."""


@dataclass
class Person:
    """A therapist or a patient."""

    display_name: str
    status: int = 1
    max_active_patients: int | None = None
    identifier: str = ""
    """Those of the record, one character each."""
    deleted: bool = False
    aliases: list[str] = field(default_factory=list)
    merged_into: str = ""


@dataclass
class Period:
    """An assignment; times in seconds."""

    therapist: str
    patient: str
    role: int
    focus: str
    start: int
    end: int | None = None
    end_reason: int = 0
    expire: int | None = None

    @property
    def until(self) -> int:
        """The end, or else the planned one."""
        return next((time for time in (self.end, self.expire) if time is not None), FOR_EVER)

    def in_force(self, at: int) -> bool:
        return self.end_reason != ENTERED_IN_ERROR and self.start <= at < self.until

    def rivals(self, other: "Period") -> bool:
        """Whether the two periods must never be in force at the same time."""
        same_pair = (self.therapist, self.patient) == (other.therapist, other.patient)
        return same_pair or (self.patient == other.patient and self.role == other.role == PRIMARY)

    def clashes(self, other: "Period") -> bool:
        if not self.rivals(other) or ENTERED_IN_ERROR in (self.end_reason, other.end_reason):
            return False
        return max(self.start, other.start) < min(self.until, other.until)


def names_of(person: Person) -> list[str]:
    return [person.display_name, *person.aliases]


def record_line(change: int, kind: str, one: str, *fields: str) -> Line:
    return (change, one if kind == THERAPIST else "", one if kind == PATIENT else "", tuple(sorted(fields)))


def end_period(period: Period, end: int, reason: int) -> Line:
    period.end, period.end_reason = min(end, period.until), reason
    fields = ["state", "end_time", "ended_by", *(["end_reason"] if reason else [])]
    return (UPDATED, period.therapist, period.patient, tuple(sorted(fields)))
