"""Answers as they were known at a time: assignments and merges as the newest change at or before that time left them.

The row of a record, or one of its versions, is what was known: the newest one that was written by then. The time is
compared for each record on its own. So the answer does not depend on the change log, which operators may prune.
"""

import json
from datetime import UTC, datetime, timedelta
from typing import Final, NamedTuple

from caseload_server.domain import enums, errors
from caseload_server.store import checks, expiry
from caseload_server.store.backends.protocol import Row, Transaction, Value


class Source(NamedTuple):
    """Where assignments as they were known at a time are."""

    table: str
    condition: str
    """On the parameter :known_at_us. The conditions of two sources exclude each other."""
    id_column: str = "period.assignment_id"
    """By which the table is read in order."""


_CURRENT: Final = Source("assignment AS period", "period.updated_us <= :known_at_us")
_IS_NEWEST_KNOWN: Final = """period.updated_us <= :known_at_us
    AND (
        SELECT 1 FROM assignment_version AS later
        WHERE later.assignment_id = period.assignment_id AND later.to_revision > period.to_revision
            AND later.updated_us <= :known_at_us
        ORDER BY later.to_revision LIMIT 1) IS NULL"""
"""A version was written by then, and none after it. It reads each version about twice, even if there are thousands."""
SOURCES: Final = (
    _CURRENT,
    Source(
        "assignment_version AS period",
        f"""{_IS_NEWEST_KNOWN} AND :known_at_us < (
        SELECT current.updated_us FROM assignment AS current WHERE current.assignment_id = period.assignment_id)""",
    ),
)
"""Of all assignments."""
CASELOAD_SOURCES: Final = (
    _CURRENT,
    Source(
        "assignment AS current JOIN assignment_version AS period ON current.assignment_id = period.assignment_id",
        f"""current.therapist_id = period.therapist_id AND current.patient_id = period.patient_id
    AND current.updated_us > :known_at_us AND {_IS_NEWEST_KNOWN}""",
        "current.assignment_id",
    ),
)
"""Of a therapist or a patient. An assignment keeps both. So its versions are found by them through the indexes of
assignments, and have none of their own, which each change of an assignment would pay for."""
_SELECT_IN_FORCE: Final = " UNION ALL ".join(
    f"""
SELECT CAST(pair.value ->> 0 AS BIGINT), period.assignment_id, period.role, period.patient_id
FROM json_each(:pairs) AS pair CROSS JOIN {source.table}
WHERE period.therapist_id = pair.value ->> 1 AND period.patient_id = pair.value ->> 2
    AND period.start_us <= :at_us AND {expiry.in_force("at_us")}
    AND period.end_reason <> {enums.END_ENTERED_IN_ERROR} AND {source.condition} AND {checks.few("pair")}"""
    for source in CASELOAD_SOURCES
)
_SELECT_OLDEST: Final = "SELECT versions_us FROM store"
_SELECT_HEAD: Final = "SELECT head_revision FROM store"
_LINK_SOURCES: Final = (
    ("patient AS linked", "linked.updated_us <= :known_at_us"),
    (
        "patient_version AS linked",
        """linked.to_revision = (
        SELECT MIN(known.to_revision) FROM patient_version AS known
        WHERE known.patient_id = linked.patient_id AND known.to_revision > COALESCE((
            SELECT MAX(replaced.to_revision) FROM patient_version AS replaced
            WHERE replaced.patient_id = linked.patient_id AND replaced.to_us <= :known_at_us), 0))
    AND :known_at_us < (
        SELECT current.updated_us FROM patient AS current WHERE current.patient_id = linked.patient_id)
    AND EXISTS (SELECT 1 FROM patient AS target WHERE target.patient_id = linked.merged_into_patient_id)""",
    ),
)
"""Patients as they were known at a time, each with its condition. A version of a patient has no column with the time at
which it was written: it is the next one after those that were replaced by then. A merge into a patient that was purged
since was never known."""
_ENDS: Final = {
    "patient_id": "length(linked.merged_into_patient_id) > 0",  # or SQLite would scan the partial index of merges
    "merged_into_patient_id": "linked.merged_into_patient_id <> ''",
}
"""The columns that link two patients, each with the condition for a link."""
_SELECT_LINKS: Final = " UNION ALL ".join(
    f"""
SELECT linked.patient_id, linked.merged_into_patient_id
FROM json_each(:ids) AS asked CROSS JOIN {source}
WHERE linked.{end} = asked.atom AND {is_link} AND {checks.few("asked")} AND {condition}"""
    for source, condition in _LINK_SOURCES
    for end, is_link in _ENDS.items()
)
"""A CROSS JOIN keeps the order of the tables on SQLite. On PostgreSQL, the few ids are looked up."""


def require_kept(transaction: Transaction, known_at_us: int) -> None:
    """Raises VersionsNotKept unless all versions since a time are kept. Args: known_at_us, as in AssignmentQuery."""
    [(oldest_us,)] = transaction.run(_SELECT_OLDEST)
    if known_at_us < oldest_us:
        oldest = datetime(1970, 1, 1, tzinfo=UTC) + timedelta(microseconds=oldest_us)
        raise errors.VersionsNotKept(oldest_time=oldest.isoformat().replace("+00:00", "Z"))


def check(transaction: Transaction, pairs: list[tuple[str, str]], at_us: int, known_at_us: int) -> list[Row]:
    """Returns rows as checks.SELECT does for pairs, as they were known at a time. Raises VersionsNotKept."""
    require_kept(transaction, known_at_us)
    persons = same_person(transaction, [patient_id for _, patient_id in pairs], known_at_us)
    asked = [
        (index, therapist_id, record_id)
        for index, (therapist_id, patient_id) in enumerate(pairs)
        for record_id in persons[patient_id]
    ]
    parameters: dict[str, Value] = {"pairs": json.dumps(asked), "at_us": at_us, "known_at_us": known_at_us}
    in_force = transaction.run(_SELECT_IN_FORCE, parameters)
    unassigned: list[Row] = [(index, None, None, None) for index in range(len(pairs))]
    [head] = transaction.run(_SELECT_HEAD)
    return [(*head, *row) for row in [*unassigned, *in_force]]


def same_person(transaction: Transaction, ids: list[str], known_at_us: int) -> dict[str, tuple[str, ...]]:
    """Returns the records of the person of each patient, by the merges that were in effect at a time."""
    persons = {patient_id: {patient_id} for patient_id in ids}
    unread = set(persons)
    while unread:
        links = transaction.run(_SELECT_LINKS, {"ids": json.dumps(sorted(unread)), "known_at_us": known_at_us})
        unread = {patient_id for link in links for patient_id in link} - persons.keys()
        for source, target in links:
            joined = persons.get(source, {source}) | persons.get(target, {target})
            persons |= dict.fromkeys(joined, joined)
    return {patient_id: tuple(sorted(persons[patient_id])) for patient_id in ids}
