"""A reference model of Caseload in plain Python: each mutating RPC without SQL, tables or gRPC.

Each verb returns its change log entries. It raises Refused before it changes anything.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Any

from tests.api.model_records import (
    CREATED,
    DELETED,
    FOR_EVER,
    IDLE,
    PATIENT,
    THERAPIST,
    UNDELETED,
    UPDATED,
    Flags,
    Line,
    Period,
    Person,
    Refused,
    end_period,
    names_of,
    record_line,
)
from tests.support.api_driver import EXPIRED, MERGED, PRIMARY, RECORD_DELETED, REPLACED, TRANSFERRED, TREATING


@dataclass
class Model:
    """All records, all periods in creation order, and the current time."""

    now: int
    people: dict[str, dict[str, Person]] = field(default_factory=lambda: {THERAPIST: {}, PATIENT: {}})
    periods: list[Period] = field(default_factory=list)
    purged: set[tuple[str, str]] = field(default_factory=set)
    """The kinds and ids that are not used again."""

    def active(self, **sides: str) -> list[Period]:
        """The active periods of a therapist, a patient, or the pair."""
        return [one for one in self.periods if one.end is None and sides.items() <= vars(one).items()]

    def expire(self) -> None:
        """Ends what has expired. Its change sets are not those of a verb."""
        for one in self.periods:
            if one.end is None and one.until <= self.now:
                end_period(one, one.until, EXPIRED)

    def create(self, kind: str, one: str, identifier: str = "") -> list[Line]:
        if one in self.people[kind] or (kind, one) in self.purged:
            raise Refused("ID_TAKEN")
        person = Person("Ann Lee", identifier=identifier)
        self._refuse_taken(kind, identifier, person)
        self.people[kind][one] = person
        return [record_line(CREATED, kind, one)]

    def update(self, kind: str, one: str, wanted: dict[str, Any], force: int | None) -> list[Line]:
        """Args: force, the end reason of the active periods, or None without force."""
        person = self._live(kind, one)
        differing = {name: value for name, value in wanted.items() if getattr(person, name) != value}
        active = self.active(**{kind: one}) if differing.get("status") == IDLE[kind] else []
        if active and force is None:
            raise Refused("HAS_ACTIVE_ASSIGNMENTS")
        if "identifier" in differing:
            self._refuse_taken(kind, differing["identifier"], person)
        lines = [end_period(period, max(self.now, period.start), force or 0) for period in active]
        for name, value in differing.items():
            setattr(person, name, value)
        fields = ["identifiers" if name == "identifier" else name for name in differing]
        return [*lines, record_line(UPDATED, kind, one, *fields)] if differing else []

    def delete(self, kind: str, one: str, *, force: bool) -> list[Line]:
        person = self._known(kind, one)
        if person.deleted:
            return []
        active = self.active(**{kind: one})
        if active and not force:
            raise Refused("HAS_ACTIVE_ASSIGNMENTS")
        lines = [end_period(period, max(self.now, period.start), RECORD_DELETED) for period in active]
        person.deleted = True
        return [*lines, record_line(DELETED, kind, one, "delete_time")]

    def undelete(self, kind: str, one: str, *, release_identifiers: bool) -> list[Line]:
        person = self._unmerged(kind, one)
        if not person.deleted:
            return []
        released = []
        taken = [each for each in person.identifier if self._holders(kind, each)]
        if taken:
            if not release_identifiers:
                raise Refused("IDENTIFIER_TAKEN")
            released = ["identifiers"]
            person.identifier = "".join(each for each in person.identifier if each not in taken)
        person.deleted = False
        return [record_line(UNDELETED, kind, one, "delete_time", *released)]

    def _holders(self, kind: str, identifier: str) -> list[str]:
        """The live records that have an identifier."""
        people = self.people[kind].items()
        return [one for one, person in people if identifier in person.identifier and not person.deleted]

    def _refuse_taken(self, kind: str, identifiers: str, besides: Person) -> None:
        holders = [one for each in identifiers for one in self._holders(kind, each)]
        if any(self.people[kind][one] is not besides for one in holders):
            raise Refused("IDENTIFIER_TAKEN")

    def record(self, wanted: Period) -> list[Line]:
        """Records a finished period."""
        self._undeleted(wanted)
        if wanted in [replace(one, expire=None) for one in self.periods]:
            return []
        if any(one.clashes(wanted) for one in self.periods):
            raise Refused("PERIOD_OVERLAPS")
        self.periods.append(wanted)
        return [(CREATED, wanted.therapist, wanted.patient, ())]

    def _undeleted(self, wanted: Period) -> tuple[Person, Person]:
        therapist = self._known(THERAPIST, wanted.therapist)
        patient = self._known(PATIENT, wanted.patient)
        self._live(THERAPIST, wanted.therapist)
        self._live(PATIENT, wanted.patient)
        return therapist, patient

    def assign(self, wanted: Period, start: int | None, chosen: Flags) -> list[Line]:
        """Args: chosen, which flags of the request are set."""
        if (chosen["replace_primary"] and chosen["demote_primary"]) or wanted.until <= self.now:
            raise Refused("INVALID_FIELD")
        therapist, patient = self._undeleted(wanted)
        current = self.active(therapist=wanted.therapist, patient=wanted.patient)
        for one in current:
            same_times = start in (None, one.start) and wanted.expire in (None, one.expire)
            if same_times and (one.role, one.focus) == (wanted.role, wanted.focus):
                return []
        if current and not chosen["replace"]:
            raise Refused("ASSIGNMENT_DIFFERS")
        if not current and therapist.status != 1:
            raise Refused("THERAPIST_NOT_ACTIVE")
        if patient.status != 1:
            raise Refused("PATIENT_NOT_ACTIVE")
        return self._begin(wanted, start, current, chosen)

    def _begin(self, wanted: Period, start: int | None, current: list[Period], chosen: Flags) -> list[Line]:
        rivals = [one for one in self.active(patient=wanted.patient) if one.rivals(wanted) and one not in current]
        self._place(wanted, start, current + rivals)
        if any(wanted.start < one.start for one in current):
            raise Refused("PERIOD_OVERLAPS")
        if rivals and not (chosen["replace_primary"] or chosen["demote_primary"]):
            raise Refused("PRIMARY_EXISTS")
        if any(wanted.start < one.start for one in rivals):
            raise Refused("PERIOD_OVERLAPS")
        if wanted.until <= wanted.start:
            raise Refused("INVALID_FIELD")
        if not (current or chosen["ignore_capacity"] or self._has_room(wanted.therapist)):
            raise Refused("THERAPIST_AT_CAPACITY")
        lines = [end_period(one, wanted.start, REPLACED) for one in current + rivals]
        demoted = [
            Period(one.therapist, one.patient, TREATING, one.focus, wanted.start, expire=one.expire)
            for one in rivals
            if chosen["demote_primary"] and wanted.start < (one.expire or FOR_EVER)
        ]
        self.periods += [wanted, *demoted]
        return [*lines, *((CREATED, one.therapist, one.patient, ()) for one in (wanted, *demoted))]

    def unassign(self, therapist: str, patient: str, end: int | None, reason: int) -> list[Line]:
        self._known(THERAPIST, therapist)
        self._unmerged(PATIENT, patient)
        current = self.active(therapist=therapist, patient=patient)
        if not current:
            if any((one.therapist, one.patient) == (therapist, patient) for one in self.periods):
                return []
            raise Refused("ASSIGNMENT_NOT_FOUND")
        end = max(self.now, current[0].start) if end is None else end
        if end < current[0].start:
            raise Refused("INVALID_FIELD")
        return [end_period(current[0], end, reason)]

    def correct(self, period: Period, wanted: dict[str, str | int | None]) -> list[Line]:
        differing = {name: value for name, value in wanted.items() if getattr(period, name) != value}
        corrected = Period(**{**vars(period), **differing})
        if period.end is None and differing.keys() & {"end", "end_reason"}:
            raise Refused("INVALID_FIELD")
        if corrected.end is not None and (corrected.end < corrected.start or "expire" in differing):
            raise Refused("INVALID_FIELD")
        if differing and corrected.end is None and corrected.until <= max(self.now, corrected.start):
            raise Refused("INVALID_FIELD")
        if differing and any(one is not period and one.clashes(corrected) for one in self.periods):
            raise Refused("PERIOD_OVERLAPS")
        vars(period).update(differing)
        names = {"start": "start_time", "end": "end_time", "expire": "expire_time"}
        fields = sorted(names.get(name, name) for name in differing)
        return [(UPDATED, period.therapist, period.patient, tuple(fields))] if differing else []

    def transfer(
        self, source: str, target: str, patients: list[str], effective: int | None, *, ignore_capacity: bool
    ) -> list[Line]:
        therapists = [self._known(THERAPIST, source), self._known(THERAPIST, target)]
        asked = [self._known(PATIENT, one) for one in patients]
        if any(one.deleted for one in therapists):
            raise Refused("THERAPIST_DELETED")
        if any(one.merged_into for one in asked):
            raise Refused("PATIENT_MERGED")
        if any(one.deleted for one in asked):
            raise Refused("PATIENT_DELETED")
        moved = self.active(therapist=source)
        if patients:
            by_patient = {one.patient: one for one in moved}
            if not by_patient.keys() >= set(patients):
                raise Refused("ASSIGNMENT_NOT_FOUND")
            moved = [by_patient[one] for one in dict.fromkeys(patients)]
        if effective is not None and any(effective < one.start for one in moved):
            raise Refused("INVALID_FIELD")
        if moved and therapists[1].status != 1:
            raise Refused("THERAPIST_NOT_ACTIVE")
        return [line for one in moved for line in self._move(one, target, effective, ignore_capacity=ignore_capacity)]

    def _move(self, period: Period, target: str, effective: int | None, *, ignore_capacity: bool) -> Iterable[Line]:
        there = self.active(therapist=target, patient=period.patient)
        after = Period(target, period.patient, period.role, period.focus, 0)
        self._place(after, effective, [period, *there])
        if any(after.start < one.start for one in there):
            raise Refused("PERIOD_OVERLAPS")
        if not (there or ignore_capacity or self._has_room(target)):
            raise Refused("THERAPIST_AT_CAPACITY")
        yield end_period(period, after.start, TRANSFERRED)
        if there and period.role != PRIMARY:
            return
        for one in there:
            yield end_period(one, after.start, REPLACED)
        self.periods.append(after)
        yield (CREATED, after.therapist, after.patient, ())

    def merge(self, source: str, target: str) -> list[Line]:
        gone, kept = self._known(PATIENT, source), self._known(PATIENT, target)
        for one in (source, target):
            self._unmerged(PATIENT, one)
        for one in (source, target):
            self._live(PATIENT, one)
        moved = self.active(patient=source)
        if moved and kept.status != 1:
            raise Refused("PATIENT_NOT_ACTIVE")
        has_primary = any(one.role == PRIMARY for one in self.active(patient=target))
        lines = [line for one in moved for line in self._merge_period(one, target, has_primary=has_primary)]
        gone.deleted, gone.merged_into = True, target
        more = [name for name in dict.fromkeys([gone.display_name, *gone.aliases]) if name not in names_of(kept)]
        kept.aliases += more
        kept.identifier += gone.identifier
        lines.append(record_line(DELETED, PATIENT, source, "delete_time", "merged_into_patient_id"))
        gained = [*(["aliases"] if more else []), *(["identifiers"] if gone.identifier else [])]
        return [*lines, record_line(UPDATED, PATIENT, target, *gained)]

    def _merge_period(self, period: Period, target: str, *, has_primary: bool) -> Iterable[Line]:
        role = TREATING if has_primary and period.role == PRIMARY else period.role
        after = Period(period.therapist, target, role, period.focus, 0)
        there = self.active(therapist=period.therapist, patient=target)
        self._place(after, None, [period])
        after.expire = None if period.expire is None else max(after.start, period.expire)
        yield end_period(period, after.start, MERGED)
        if not there:
            self.periods.append(after)
            yield (CREATED, after.therapist, target, ())

    def unmerge(self, source: str) -> list[Line]:
        person = self._known(PATIENT, source)
        target = person.merged_into
        if not target:
            return []
        kept = self._unmerged(PATIENT, target)
        self._refuse_taken(PATIENT, person.identifier, kept)
        before = kept.identifier
        kept.identifier = "".join(each for each in before if each not in person.identifier)
        person.deleted, person.merged_into = False, ""
        undeleted = record_line(UNDELETED, PATIENT, source, "delete_time", "merged_into_patient_id")
        lost = ["identifiers"] if kept.identifier != before else []
        return [record_line(UPDATED, PATIENT, target, *lost), undeleted]

    def records_of(self, patient: str) -> list[str]:
        """The patient, and those who were merged into them."""
        merged = [one for one, person in self.people[PATIENT].items() if person.merged_into == patient]
        return [patient, *(record for one in merged for record in self.records_of(one))]

    def erase(self, kind: str, ids: list[str]) -> None:
        """Forgets records, as if they had never been."""
        self.purged |= {(kind, one) for one in ids}
        for one in ids:
            self.people[kind].pop(one, None)
        self.periods = [one for one in self.periods if getattr(one, kind) not in ids]

    def person(self, patient: str) -> str:
        """The record of the patient that is not merged."""
        found = self.people[PATIENT].get(patient)
        return self.person(found.merged_into) if found and found.merged_into else patient

    def treats(self, therapist: str, patient: str, at: int) -> bool:
        person = self.person(patient)
        theirs = [one for one in self.periods if one.therapist == therapist and self.person(one.patient) == person]
        return any(one.in_force(at) for one in theirs)

    def _place(self, wanted: Period, start: int | None, replaced: list[Period]) -> None:
        """Sets the start of a period: the requested one, or the first that does not overlap an ended period."""
        ended = [one for one in self.periods if one.end is not None]
        wanted.start = max([self.now, *(one.start for one in replaced)]) if start is None else start
        while clashing := [one for one in ended if one.clashes(wanted)]:
            if start is not None:
                raise Refused("PERIOD_OVERLAPS")
            wanted.start = max(one.end or 0 for one in clashing)

    def _has_room(self, therapist: str) -> bool:
        limit = self.people[THERAPIST][therapist].max_active_patients
        return limit is None or len(self.active(therapist=therapist)) < limit

    def _known(self, kind: str, one: str) -> Person:
        if one not in self.people[kind]:
            raise Refused(f"{kind.upper()}_NOT_FOUND")
        return self.people[kind][one]

    def _unmerged(self, kind: str, one: str) -> Person:
        person = self._known(kind, one)
        if person.merged_into:
            raise Refused("PATIENT_MERGED")
        return person

    def _live(self, kind: str, one: str) -> Person:
        person = self._unmerged(kind, one)
        if person.deleted:
            raise Refused(f"{kind.upper()}_DELETED")
        return person
