"""SELECTs of lists of assignments: which indexes are scanned, and how filters become SQL.

Each filter by itself is a scan of an index in the order of ids. A caseload in the order of names or start times costs
the caseload: each page reads and sorts all of it. A total costs its matches.
"""

import json
from collections.abc import Iterable, Iterator
from typing import Any, Final, NamedTuple

from caseload_server.domain import enums
from caseload_server.domain.records import Assignment
from caseload_server.domain.requests import AssignmentQuery, CaseloadQuery
from caseload_server.store import expiry, known_at
from caseload_server.store.assignments import COLUMNS
from caseload_server.store.backends.protocol import Dialect, Query, Value
from caseload_server.store.records import RecordKind

_ACTIVE: Final = "period.end_us IS NULL"
_ENDED: Final = "period.end_us IS NOT NULL"
_NOT_IN_ERROR: Final = f"period.end_reason <> {enums.END_ENTERED_IN_ERROR}"
_AS_OF: Final = (
    f"{_ACTIVE} AND {expiry.not_expired('as_of_us')}",
    """period.assignment_id IN (
    SELECT assignment_id FROM assignment
    WHERE end_us > :as_of_us AND start_us <= :as_of_us AND assignment_id > :after)""",
)
"""Conditions for the periods in force at a time: those that are still active, and those that ended later. The latter
are looked up and sorted."""


class _Scan(NamedTuple):
    """A SELECT that reads one index in the order of its first result column."""

    select: str
    order: str = "1"
    """The columns of the index."""


def select_caseload(
    kind: RecordKind[Any], other: RecordKind[Any], query: CaseloadQuery, dialect: Dialect, now_us: int
) -> Query:
    """Returns the SELECT of one page of a record's periods, without the parameters of Query.of_page.

    A row holds the columns of the assignment, those of the record on the other side, and the sort key if the list is
    not ordered by id. Args: now_us, in microseconds since 1970 (UTC): an active period that has expired by then is left
    out.
    """
    conditions, parameters = _conditions(query, {kind.id_column: query.parent_id}, dialect, now_us)
    if query.order.column:
        return Query(_sorted_caseload(other, query, conditions, dialect), parameters)
    sql = (
        f"SELECT {COLUMNS}, {other.columns} FROM assignment AS period"
        f" JOIN {other.name} AS record ON record.{other.id_column} = period.{other.id_column}"
        f" WHERE {_after_id(query, conditions)} ORDER BY period.assignment_id LIMIT :limit"
    )
    return Query(sql, parameters)


def _sorted_caseload(other: RecordKind[Any], query: CaseloadQuery, conditions: list[str], dialect: Dialect) -> str:
    """Returns the SELECT of a caseload in the order of its last column. The database reads the periods first."""
    key = f"{'record' if query.order.column == 'name_key' else 'period'}.{query.order.column}"
    operator, direction = ("<", " DESC") if query.order.descending else (">", "")
    position = f"(:after = '' OR ({key}, period.assignment_id) {operator} (:after_key, :after))"
    where = [f"record.{other.id_column} = period.{other.id_column}", *conditions, position]
    number = len(Assignment._fields) + len(other.record._fields) + 1
    return (
        f"SELECT * FROM (SELECT {COLUMNS}, {other.columns}, {key}"
        f" FROM assignment AS period CROSS JOIN {other.name} AS record WHERE {' AND '.join(where)}{dialect.fence})"
        f" AS caseload ORDER BY {number}{direction}, 1{direction} LIMIT :limit"
    )


def count_caseload(kind: RecordKind[Any], query: CaseloadQuery, dialect: Dialect, now_us: int) -> Query:
    """Returns the SELECT of the number of a record's periods. Args: as select_caseload."""
    return _count(*_conditions(query, {kind.id_column: query.parent_id}, dialect, now_us))


def count_assignments(query: AssignmentQuery, dialect: Dialect, now_us: int) -> Query:
    """Returns the SELECT of the number of periods. Args: as select_caseload."""
    if query.known_at_us is None:
        return _count(*_conditions(query, _sides(query), dialect, now_us))
    conditions, parameters = _conditions(query, _sides(query), dialect, query.known_at_us)
    parameters["known_at_us"] = query.known_at_us
    counts = [_count([*conditions, source.condition], {}, source.table).sql for source in _known_sources(query)]
    return Query(f"SELECT {' + '.join(f'({count})' for count in counts)}", parameters, plan_for_values=True)


def _count(conditions: list[str], parameters: dict[str, Value], source: str = "assignment AS period") -> Query:
    where = f" WHERE {' AND '.join(conditions)}" if conditions else ""
    return Query(f"SELECT count(*) FROM {source}{where}", parameters, plan_for_values=True)


def _sides(query: AssignmentQuery) -> dict[str, str]:
    return {"therapist_id": query.therapist_id, "patient_id": query.patient_id}


def select_assignments(query: AssignmentQuery, dialect: Dialect, now_us: int) -> Query:
    """Returns the SELECT of one page of periods, without its parameters :after and :limit. Args: as select_caseload."""
    sides = _sides(query)
    if query.known_at_us is not None:
        return _select_known(query, sides, dialect, query.known_at_us)
    restrictions, parameters = _conditions(query, sides, dialect, now_us)
    conditions = _after_id(query, restrictions)
    scans = [_scan(conditions)]
    is_of_all_records = not any(sides.values())  # else one caseload limits the scan
    if is_of_all_records and query.as_of_us is not None:
        scans = _as_of_scans(query) if dialect.has_statistics else [_scan(f"{conditions} AND {c}") for c in _AS_OF]
    elif is_of_all_records and query.roles:
        scans = list(_role_scans(query, dialect))
    is_costly = is_of_all_records and query.as_of_us is not None
    return Query(_merge_scans(scans, dialect), parameters, plan_for_values=is_costly)


def _select_known(query: AssignmentQuery, sides: dict[str, str], dialect: Dialect, known_at_us: int) -> Query:
    """Returns the SELECT of periods as they were known at a time, as if the list had been read then."""
    conditions, parameters = _conditions(query, sides, dialect, known_at_us)
    where = " AND ".join(["period.assignment_id > :after", *conditions])
    scans = [
        _Scan(
            f"SELECT {COLUMNS.replace('period.assignment_id', source.id_column)} FROM {source.table}"
            f" WHERE {where} AND {source.condition}"
        )
        for source in _known_sources(query)
    ]
    return Query(_merge_scans(scans, dialect), {**parameters, "known_at_us": known_at_us}, plan_for_values=True)


def _known_sources(query: AssignmentQuery) -> tuple[known_at.Source, ...]:
    return known_at.CASELOAD_SOURCES if any(_sides(query).values()) else known_at.SOURCES


def _scan(conditions: str) -> _Scan:
    return _Scan(f"SELECT {COLUMNS} FROM assignment AS period WHERE {conditions}")


def _as_of_scans(query: AssignmentQuery) -> list[_Scan]:
    """Returns the scans of the periods in force at a time. Each finds the ids in an index before it reads a period."""
    roles = f" AND period.role IN ({_enum_list(query.roles)})" if query.roles else ""
    return [
        _Scan(
            f"SELECT {COLUMNS} FROM (SELECT period.assignment_id FROM assignment AS period WHERE {condition}"
            f" AND period.start_us <= :as_of_us AND period.assignment_id > :after{roles} ORDER BY 1 LIMIT :limit)"
            " AS found JOIN assignment AS period ON period.assignment_id = found.assignment_id"
        )
        for condition in (_AS_OF[0], f"period.end_us > :as_of_us AND {_NOT_IN_ERROR}")
    ]


def _role_scans(query: AssignmentQuery, dialect: Dialect) -> Iterator[_Scan]:
    """Yields the scan of each role and state, for which there is an index."""
    for role in sorted(set(query.roles)):
        is_role = dialect.index_range.format(column="period.role", value=int(role), record_id="period.assignment_id")
        for state in sorted(set(query.states)) or [enums.STATE_ACTIVE]:
            yield _scan(f"{is_role} AND {_state_condition(state, query)}")._replace(order="period.role, 1")


def _state_condition(state: int, query: CaseloadQuery | AssignmentQuery) -> str:
    """Returns the condition for one state. A list of active periods alone leaves out those that have expired.

    A list of both states has them in their stored state: active until they end.
    """
    if state == enums.STATE_ENDED:
        return _ENDED
    return _ACTIVE if enums.STATE_ENDED in query.states else f"{_ACTIVE} AND {expiry.not_expired('now_us')}"


def _conditions(
    query: CaseloadQuery | AssignmentQuery, sides: dict[str, str], dialect: Dialect, now_us: int
) -> tuple[list[str], dict[str, Value]]:
    """Returns the conditions of a query, and its parameters. Args: sides, id columns with their ids, or ""."""
    parameters: dict[str, Value] = {column: value for column, value in sides.items() if value}
    conditions = [f"period.{column} = :{column}" for column in parameters]
    if len(query.same_person) > 1:
        conditions.remove("period.patient_id = :patient_id")
        conditions.append("period.patient_id IN (SELECT atom FROM json_each(:same_person))")
        parameters["same_person"] = json.dumps(query.same_person)
    if query.as_of_us is not None:
        conditions += [
            "period.start_us <= :as_of_us",
            expiry.in_force("as_of_us"),
            _NOT_IN_ERROR,
        ]
        parameters["as_of_us"] = query.as_of_us
    elif set(query.states) <= {enums.STATE_ACTIVE}:
        conditions.append(_state_condition(enums.STATE_ACTIVE, query))
        parameters["now_us"] = now_us
    elif set(query.states) == {enums.STATE_ENDED}:
        conditions.append(_ENDED)
    if query.roles:
        # Else SQLite would scan all periods of a role instead of one caseload.
        conditions.append(f"{dialect.unindexed}period.role IN ({_enum_list(query.roles)})")
    return conditions, parameters


def _after_id(query: CaseloadQuery | AssignmentQuery, conditions: list[str]) -> str:
    """Returns the WHERE clause of a page by id."""
    where = " AND ".join(["period.assignment_id > :after", *conditions])
    if query.as_of_us is not None and "period.therapist_id = :therapist_id" in conditions:
        # An index holds all of this, so periods that ended before are not read from the table.
        found = f"SELECT period.assignment_id FROM assignment AS period WHERE {where} ORDER BY 1 LIMIT :limit"
        return f"period.assignment_id IN ({found})"
    return where


def _merge_scans(scans: list[_Scan], dialect: Dialect) -> str:
    """Returns the SELECT of one page of all given scans."""
    if len(scans) == 1:
        return f"{scans[0].select} ORDER BY {scans[0].order} LIMIT :limit"
    selects = [
        dialect.merged_scan.format(scan=scan.select, number=number, order=scan.order)
        for number, scan in enumerate(scans)
    ]
    return f"SELECT * FROM ({' UNION ALL '.join(selects)}) AS merged ORDER BY 1 LIMIT :limit"


def _enum_list(values: Iterable[int]) -> str:
    """Returns enum numbers as SQL text. Only known numbers occur, so there are few statements to prepare."""
    return ", ".join(str(int(value)) for value in sorted(set(values)))
