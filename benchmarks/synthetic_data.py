"""Synthetic data sets of any size, as the lines of an export.

python -m benchmarks.synthetic_data ASSIGNMENTS | caseload import -

Every size has the same number of rare records, at the end of the order: therapists on leave, with free capacity,
with a rare specialty or the same e-mail address; discharged and unassigned patients, with the same birth date, e-mail
address and phone number; and one therapist and one patient with a fixed history.
So a call about them is slower on a large data set only if it reads other records too.
"""

import json
import secrets
import sys
from collections.abc import Iterator
from itertools import islice
from typing import BinaryIO, Final, NamedTuple

from caseload_server.domain.enums import PATIENT_DISCHARGED, ROLE_PRIMARY, STATUS_ACTIVE
from caseload_server.domain.records import Assignment, Patient, Therapist
from caseload_server.store.backends.migrations import migrations
from caseload_server.store.backends.protocol import Row
from caseload_server.store.hash_chain import NO_HASH, START
from caseload_server.store.portability import content
from caseload_server.store.portability.content import PAGE_ROWS, TABLES, ContentDigest
from caseload_server.store.portability.export import FORMAT

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
_FIRST: Final = ("Ada", "Bob", "Chen", "Dora", "Efua", "Zoë")
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
            "change": map(self._change, range(1, self.revisions + 1)),
        }

    def _store(self) -> Row:
        """All change sets are from before the hash chain, and from before versions."""
        last_us = START_US + self.revisions if self.revisions else 0
        return self.revisions, 0, self.revisions, START, START, self.revisions, last_us

    @property
    def revisions(self) -> int:
        """The change log's length."""
        return max(self.few, self.people // 2) if self.few else 0

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
            display_name=_name(number),
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

    def _patient(self, number: int) -> Row:
        is_active = self.is_active(number)
        is_primary = is_active and self._role(number) == ROLE_PRIMARY
        return Patient(
            patient_id=person_id("b", number),
            display_name=_name(number),
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
        for number in range(self.people * self.periods):
            nth, patient = divmod(number, self.people)
            start_us = START_US + nth * _YEAR_US + patient
            ends = nth + 1 < self.periods or not self.is_active(patient)
            end_us = start_us + _YEAR_US // 2 if ends else None
            yield self._assignment(self.few + number, (self.therapist_of(patient), patient), start_us, end_us)

    def _assignment(self, number: int, pair: tuple[int, int], start_us: int, end_us: int | None) -> Row:
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

    def _change(self, revision: int) -> Row:
        patient = 0 if self._is_rare(revision) else revision
        return revision, 0, 1, "", None, person_id("b", patient), None, None, None

    def _is_rare(self, revision: int) -> bool:
        return revision > self.revisions - self.few


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


def _name(number: int) -> str:
    return f"{_FIRST[number % len(_FIRST)]} {_LAST[number % len(_LAST)]} {number}"


def _birth_date(number: int) -> str:
    return f"{1930 + number % 90}-{1 + number // 90 % 12:02}-{1 + number // 1080 % 28:02}"


def _identifiers(number: int) -> str:
    return json.dumps([[SYSTEM, str(number)]], separators=(",", ":"))


if __name__ == "__main__":
    main()
