"""SELECTs of lists of assignments: which indexes are scanned, and how filters become SQL."""

from collections.abc import Iterator
from typing import Any, Final

from caseload_server.domain import enums
from caseload_server.domain.requests import AssignmentQuery, CaseloadQuery
from caseload_server.store import lists
from caseload_server.store.assignments import COLUMNS
from caseload_server.store.backends.protocol import Dialect, Query, Value
from caseload_server.store.records import RecordKind

_STATE_CONDITIONS: Final = {
    enums.STATE_ACTIVE: "period.end_us IS NULL",
    enums.STATE_ENDED: "period.end_us IS NOT NULL",
}
_ENDED_LATER: Final = "period.end_us > :as_of_us"
_ENDED_LATER_LOOKUP: Final = """period.assignment_id IN (
    SELECT assignment_id FROM assignment
    WHERE end_us > :as_of_us AND start_us <= :as_of_us AND assignment_id > :after)"""
"""The same, by a lookup whose rows are sorted. A scan in order would read every period that ended earlier."""


def select_caseload(kind: RecordKind[Any], other: RecordKind[Any], query: CaseloadQuery, dialect: Dialect) -> Query:
    """Returns the SELECT of one page of a record's periods, without its parameters :after and :limit.

    A row holds the columns of the assignment and then those of the record on the other side.
    """
    conditions, parameters = _conditions(query, {kind.id_column: query.parent_id}, dialect)
    sql = (
        f"SELECT {COLUMNS}, {other.columns} FROM assignment AS period"
        f" JOIN {other.name} AS record ON record.{other.id_column} = period.{other.id_column}"
        f" WHERE {conditions} ORDER BY period.assignment_id LIMIT :limit"
    )
    return Query(sql, parameters)


def select_assignments(query: AssignmentQuery, dialect: Dialect) -> Query:
    """Returns the SELECT of one page of periods, without its parameters :after and :limit."""
    sides = {"therapist_id": query.therapist_id, "patient_id": query.patient_id}
    conditions, parameters = _conditions(query, sides, dialect)
    scans = [conditions]
    if not any(sides.values()):  # periods of all records: one caseload does not limit the scan
        if query.as_of_us is not None:
            ended_later = _ENDED_LATER if dialect.has_statistics else _ENDED_LATER_LOOKUP
            scans = [f"{scan} AND {conditions}" for scan in (_STATE_CONDITIONS[enums.STATE_ACTIVE], ended_later)]
        elif query.roles:
            scans = [f"{scan} AND period.assignment_id > :after" for scan in _role_scans(query)]
    selects = [f"SELECT {COLUMNS} FROM assignment AS period WHERE {scan}" for scan in scans]
    is_costly = query.as_of_us is not None and len(scans) > 1
    return Query(lists.merge_scans(selects, dialect), parameters, plan_for_values=is_costly)


def _role_scans(query: AssignmentQuery) -> Iterator[str]:
    """Yields the condition of each role and state, for which there is an index in id order."""
    for role in sorted(set(query.roles)):
        for state in sorted(set(query.states)) or [enums.STATE_ACTIVE]:
            yield f"period.role = {int(role)} AND {_STATE_CONDITIONS[state]}"


def _conditions(
    query: CaseloadQuery | AssignmentQuery, sides: dict[str, str], dialect: Dialect
) -> tuple[str, dict[str, Value]]:
    """Returns the WHERE clause of a query, and its parameters. Args: sides, id columns with their ids, or ""."""
    parameters: dict[str, Value] = {column: value for column, value in sides.items() if value}
    conditions = ["period.assignment_id > :after", *(f"period.{column} = :{column}" for column in parameters)]
    if query.as_of_us is not None:
        conditions += [
            "period.start_us <= :as_of_us",
            "(period.end_us IS NULL OR period.end_us > :as_of_us)",
            f"period.end_reason <> {enums.END_ENTERED_IN_ERROR}",
        ]
        parameters["as_of_us"] = query.as_of_us
    elif set(query.states) <= {enums.STATE_ACTIVE}:
        conditions.append(_STATE_CONDITIONS[enums.STATE_ACTIVE])
    elif set(query.states) == {enums.STATE_ENDED}:
        conditions.append(_STATE_CONDITIONS[enums.STATE_ENDED])
    if query.roles:
        # Else SQLite would scan all periods of a role instead of one caseload.
        conditions.append(f"{dialect.unindexed}period.role IN ({lists.enum_list(query.roles)})")
    return " AND ".join(conditions), parameters
