"""Checks of pairs: the assignment in force of a therapist and a patient, if there is one."""

from caseload_server.domain import enums
from caseload_server.domain.results import CheckResult
from caseload_server.store import expiry
from caseload_server.store.backends.protocol import Row


def few(items: str) -> str:
    """Returns a condition that is always true. Args: items, the alias of a json_each.

    With it, PostgreSQL expects few items and looks each up. It would expect a hundred, and read most of a small table.
    """
    return f"{items}.key BETWEEN 0 AND 1000000"


SELECT = f"""
SELECT (SELECT head_revision FROM store), pair.key, period.assignment_id, period.role, other.patient_id
FROM json_each(:pairs) AS pair
LEFT JOIN same_person AS own ON own.patient_id = pair.value ->> 1
LEFT JOIN same_person AS other ON other.person_id = own.person_id
LEFT JOIN assignment AS period ON period.therapist_id = pair.value ->> 0
    AND period.patient_id = COALESCE(other.patient_id, pair.value ->> 1)
    AND period.start_us <= :at_us AND {expiry.in_force("at_us")}
    AND period.end_reason <> {enums.END_ENTERED_IN_ERROR}
WHERE {few("pair")}"""
"""A row has the head revision, the index of a pair, a period in force and its role (or NULLs), and the patient who has
it if the records of a person were merged."""


def results(rows: list[Row], pairs: list[tuple[str, str]]) -> list[CheckResult]:
    """Returns the result for each pair. Args: rows, as SELECT returns them; pairs, (therapist_id, patient_id) each."""
    one_of_each = sorted(rows, key=lambda row: row[1]) if len(rows) == len(pairs) else _first_of_each(rows, pairs)
    return [CheckResult(*row[1:4]) for row in one_of_each]


def _first_of_each(rows: list[Row], pairs: list[tuple[str, str]]) -> list[Row]:
    """Returns one row for each pair, if a merge gave some pairs several rows.

    A period in force comes first, then one of the record that the pair names, then the lowest role and id.
    """

    def rank(row: Row) -> tuple[object, ...]:
        _, index, assignment_id, role, patient_id = row
        return index, assignment_id is None, patient_id != pairs[index][1], role, assignment_id

    return list({row[1]: row for row in sorted(rows, key=rank, reverse=True)}.values())[::-1]
