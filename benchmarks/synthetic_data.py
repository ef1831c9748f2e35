"""Synthetic data sets of any size, as the lines of an export.

python -m benchmarks.synthetic_data ASSIGNMENTS | caseload import -

Every size has the same number of rare records, at the end of the order: therapists on leave, with free capacity,
with a rare specialty or the same e-mail address; discharged and unassigned patients, with the same birth date, e-mail
address and phone number; and one therapist and one patient with a fixed history. Every second patient and their active
assignment have a version, and those of the first patient have many.
So a call about them is slower on a large data set only if it reads other records too.
"""

import json
import secrets
import sys
from collections.abc import Iterator
from itertools import chain, islice, starmap
from typing import BinaryIO, Final, NamedTuple

from caseload_server.domain.enums import CHANGE_UPDATED, PATIENT_DISCHARGED, ROLE_PRIMARY, STATUS_ACTIVE
from caseload_server.domain.records import Assignment, Patient, Therapist
from caseload_server.store.backends.migrations import migrations
from caseload_server.store.backends.protocol import Row
from caseload_server.store.hash_chain import NO_HASH, START
from caseload_server.store.portability import content
from caseload_server.store.portability.content import PAGE_ROWS, TABLES, ContentDigest
from caseload_server.store.portability.export import FORMAT
from caseload_server.store.version_images import version_of

FEW: Final = 1010
"""The number of rare records: enough for a hundred pages of ten."""
PERIODS: Final = 4
"""Periods of each patient; the last one is active."""
SYSTEM: Final = "https://example.org/number"
RARE_SPECIALTY: Final = "rare-therapy"
RARE_ROLE: Final = 3
RARE_ACTOR: Final = "auditor"
RARE_BIRTH_DATE: Final = "1912-06-07"
RARE_PHONE_NUMBER: Final = "+4930555555"
RARE_EMAIL: Final = "family@example.org"
_ON_LEAVE: Final = 2
_YEAR_US: Final = 365 * 24 * 3600 * 1_000_000
START_US: Final = 1_577_836_800_000_000
"""2020-01-01."""
_FIRST: Final = ("Ada", "Bob", "Chen", "Dora", "Efua", "Zoë", "")
"""The last one is for a name without spaces."""
_LAST: Final = ("Lovelace", "Ray", "Müller-Lüdenscheidt", "O'Neil", "Kowalski")


def main() -> None:
    """Writes an export of a data set to standard output."""
    write(sys.stdout.buffer, of_assignments(int(sys.argv[1])))


class DataSet(NamedTuple):
    """Therapists (and as many patients), periods of each patient, and rare records."""

    people: int
    periods: int
    few: int

    def rows(self) -> dict[str, Iterator[Row]]:
        """The rows of each table that has any."""
        return {
            "store": iter([self._store()]),
            "therapist": map(self._therapist, range(self.people)),
            "patient": map(self._patient, range(self.people)),
            "assignment": self._assignments(),
            "change_set": map(self._change_set, range(1, self.revisions + 1)),
            "change": chain.from_iterable(map(self._changes, range(1, self.revisions + 1))),
            "patient_version": starmap(self._patient_version, self._changed_patients()),
            "assignment_version": starmap(self._assignment_version, self._changed_patients()),
        }

    def _store(self) -> Row:
        """All change sets are from before the hash chain."""
        return self.revisions, 0, self.revisions, START, START, 0, START_US - 1

    @property
    def revisions(self) -> int:
        """The change log's length: every patient of the first therapist changed, in the smallest data set too."""
        return self.few + max(self.few, self.people // 2 - self.few) if self.few else 0

    def therapist_of(self, patient: int) -> int:
        """The number of a patient's therapist: 0 for the first `few`, the others in reverse order of the patients."""
        if patient < self.few:
            return 0
        return self._busy - (patient - self.few) % self._busy

    def therapist_with_capacity(self, nth: int) -> int:
        """The number of a therapist with free capacity, who has no patients yet in a small data set."""
        return self._busy - self.few + 1 + nth % (self.few // 2)

    @property
    def _busy(self) -> int:
        """The number of the last therapist who is not on leave."""
        return self.people - self.few - 1

    def _count(self, therapist: int) -> int:
        if therapist == 0:
            return self.few
        if therapist > self._busy:
            return 0
        return (self.people - 2 * self.few - (self._busy - therapist) + self._busy - 1) // self._busy

    def is_active(self, patient: int) -> bool:
        """Whether the patient is active: all but the last `few`."""
        return patient < self.people - self.few

    def _therapist(self, number: int) -> Row:
        count = self._count(number)
        is_on_leave = number > self._busy
        has_capacity = self._busy - self.few < number <= self._busy
        return Therapist(
            therapist_id=person_id("a", number),
            display_name=name(number),
            aliases="[]",
            email=RARE_EMAIL if is_on_leave else f"{number}@example.org",
            status=_ON_LEAVE if is_on_leave else STATUS_ACTIVE,
            identifiers=_identifiers(number),
            specialties=f'["{RARE_SPECIALTY}"]' if is_on_leave else '["hand-therapy"]',
            max_active_patients=None if has_capacity else count,
            annotations="{}",
            active_patient_count=count,
            created_us=START_US,
            updated_us=START_US,
            deleted_us=None,
            etag=f"{number:016x}",
        )

    def _patient(self, number: int) -> Patient:
        is_active = self.is_active(number)
        is_primary = is_active and self._role(number) == ROLE_PRIMARY
        return Patient(
            patient_id=person_id("b", number),
            display_name=name(number),
            aliases="[]",
            birth_date=_birth_date(number) if is_active else RARE_BIRTH_DATE,
            email=f"{number}@example.org" if is_active else RARE_EMAIL,
            phone_number=f"+49151{number:08}" if is_active else RARE_PHONE_NUMBER,
            status=STATUS_ACTIVE if is_active else PATIENT_DISCHARGED,
            identifiers=_identifiers(number),
            annotations="{}",
            primary_therapist_id=person_id("a", self.therapist_of(number)) if is_primary else "",
            active_therapist_count=int(is_active),
            merged_into_patient_id="",
            created_us=START_US,
            updated_us=START_US + number,
            deleted_us=None,
            etag=f"{number:016x}",
        )

    def _role(self, patient: int) -> int:
        return RARE_ROLE if self.few <= patient < 2 * self.few else ROLE_PRIMARY

    def _assignments(self) -> Iterator[Row]:
        """The first patient's long history, then the first period of each patient, and so on: ended ones first."""
        for number in range(self.few):
            start_us = START_US - _YEAR_US + number * 1_000_000
            yield self._assignment(number, (number + 1, 0), start_us, start_us + 1_000_000)
        for nth in range(self.periods - 1):
            for patient in range(self.people):
                start_us = START_US + nth * _YEAR_US + patient
                number = self.few + nth * self.people + patient
                pair = self.therapist_of(patient), patient
                yield self._assignment(number, pair, start_us, start_us + _YEAR_US // 2)
        yield from map(self._last_assignment, range(self.people))

    def _last_assignment(self, patient: int) -> Assignment:
        """The last period of a patient, which is active if the patient is. It changed with the patient."""
        start_us = START_US + (self.periods - 1) * _YEAR_US + patient
        end_us = None if self.is_active(patient) else start_us + _YEAR_US // 2
        number = self.few + (self.periods - 1) * self.people + patient
        period = self._assignment(number, (self.therapist_of(patient), patient), start_us, end_us)
        if patient > self._common_changes:
            return period
        return period._replace(updated_us=START_US + (patient or self.revisions))

    def _assignment(self, number: int, pair: tuple[int, int], start_us: int, end_us: int | None) -> Assignment:
        therapist, patient = pair
        return Assignment(
            assignment_id=person_id("c", number),
            therapist_id=person_id("a", therapist),
            patient_id=person_id("b", patient),
            role=self._role(patient),
            focus="",
            start_us=start_us,
            end_us=end_us,
            expire_us=None,
            end_reason=0 if end_us is None else 1,
            created_by="reception",
            ended_by="" if end_us is None else "reception",
            created_us=START_US,
            updated_us=START_US,
            etag=f"{number:016x}",
        )

    def _change_set(self, revision: int) -> Row:
        actor = RARE_ACTOR if self._is_rare(revision) else "reception"
        method = "/caseload.v1.PatientService/CreatePatient"
        return revision, START_US + revision, actor, "", method, "", NO_HASH, b""

    def _changes(self, revision: int) -> Iterator[Row]:
        """A patient changed, and the patient's last assignment."""
        patient = 0 if self._is_rare(revision) else revision
        therapist_id, patient_id = person_id("a", self.therapist_of(patient)), person_id("b", patient)
        yield revision, 0, CHANGE_UPDATED, "email", None, patient_id, None, None, None
        assignment_id = self._last_assignment(patient).assignment_id
        yield revision, 1, CHANGE_UPDATED, "focus", therapist_id, patient_id, assignment_id, None, None

    def _is_rare(self, revision: int) -> bool:
        return revision > self._common_changes

    @property
    def _common_changes(self) -> int:
        """The number of changes of which each is of another patient. The later ones are all of the first patient."""
        return self.revisions - self.few

    def _changed_patients(self) -> Iterator[tuple[int, int]]:
        """The number of a patient, and a revision that changed the patient, in the order of versions."""
        for revision in range(self._common_changes + 1, self.revisions + 1):
            yield 0, revision
        for patient in range(1, self._common_changes + 1):
            yield patient, patient

    def _patient_version(self, patient: int, revision: int) -> Row:
        old = self._patient(patient)._replace(email="old@example.org", updated_us=self._version_us(revision))
        patient_id, *values = version_of(old).values
        return patient_id, revision, START_US + revision, *values

    def _assignment_version(self, patient: int, revision: int) -> Row:
        old = self._last_assignment(patient)._replace(focus="old", updated_us=self._version_us(revision))
        return old[0], revision, START_US + revision, *old[1:]

    def _version_us(self, revision: int) -> int:
        """The time of the change before a change of the same patient."""
        return START_US + revision - 1 if revision > self._common_changes + 1 else START_US


def of_assignments(count: int) -> DataSet:
    """A data set with about count assignments (at most 4 fewer)."""
    return DataSet((count - FEW) // PERIODS, PERIODS, FEW)


def write(lines: BinaryIO, data: DataSet) -> None:
    """Writes the data set's export."""
    digest = ContentDigest()
    schema = migrations("sqlite")[-1].name
    header = {"caseload": {"format": FORMAT, "schema": schema, "secret": secrets.token_hex(32)}}
    lines.write(f"{content.dumps(header)}\n".encode())
    rows = data.rows()
    for table in TABLES:
        while some := list(islice(rows.get(table.name, iter(())), PAGE_ROWS)):
            text = content.to_lines(table, some)
            lines.write(text)
            digest.add(table, len(some), text)
    lines.write(f"{content.dumps({'end': {'rows': digest.row_counts, 'digest': digest.digest}})}\n".encode())


def person_id(letter: str, number: int) -> str:
    """An id of the length of a UUID; higher numbers sort later."""
    return f"{number:012x}-{letter * 8}-{number * 7919 % 0xFFFFFFFFFFFF:014x}"


def name(number: int) -> str:
    first = _FIRST[number % len(_FIRST)] or f"王{chr(0x4E00 + number % 2000)}"
    return f"{first} {_LAST[number % len(_LAST)]} {number}"


def _birth_date(number: int) -> str:
    return f"{1930 + number % 90}-{1 + number // 90 % 12:02}-{1 + number // 1080 % 28:02}"


def _identifiers(number: int) -> str:
    return json.dumps([[SYSTEM, str(number)]], separators=(",", ":"))


if __name__ == "__main__":
    main()
