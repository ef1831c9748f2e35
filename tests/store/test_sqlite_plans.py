"""How SQLite finds rows: a list reads its page and not the history before it, a check is one statement."""

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from service import records
from service.records import ChangeQuery
from service.store import PATIENT, THERAPIST, RelationshipStore, assignments, change_log
from service.store.sqlite import SqliteDatabase
from service.store.sqlite_migrate import migrate
from tests.store.conftest import Clock
from tests.store.test_checks import checked
from tests.store.ward import crowd, run, therapists


@pytest.fixture
def database(tmp_path: Path) -> Iterator[SqliteDatabase]:
    migrate(tmp_path / "caseload.db")
    opened = SqliteDatabase(tmp_path / "caseload.db")
    yield opened
    opened.close()


@pytest.fixture
def store(database: SqliteDatabase, clock: Clock) -> RelationshipStore:
    return RelationshipStore(database, clock)


@pytest.mark.parametrize(
    ("query", "index"),
    [
        ({"therapist_id": "t"}, "assignment_active_by_therapist"),
        ({}, "assignment_active"),
        ({"patient_id": "p", "states": (1, 2)}, "assignment_by_patient"),
        ({"therapist_id": "t", "states": (1, 2)}, "assignment_by_therapist"),
    ],
    ids=str,
)
def test_a_list_of_assignments_walks_its_index_in_order(
    store: RelationshipStore, query: dict[str, Any], index: str
) -> None:
    sql, parameters = assignments.listing(records.AssignmentQuery(**query))
    plan = [row[3] for row in run(store, f"EXPLAIN QUERY PLAN {sql}", {**parameters, "after": "", "limit": 1})]
    assert len(plan) == 1
    assert plan[0].split("INDEX ")[1].split()[0] == index


def test_the_patients_of_a_therapist_are_listed_from_the_active_ones(store: RelationshipStore) -> None:
    sql, parameters = assignments.listing_with(THERAPIST, PATIENT, records.AssignedQuery("t"))
    plan = [row[3] for row in run(store, f"EXPLAIN QUERY PLAN {sql}", {**parameters, "after": "", "limit": 1})]
    assert "assignment_active_by_therapist" in plan[0]
    assert not [step for step in plan if "TEMP B-TREE" in step]


def test_a_hundred_pairs_are_one_statement(store: RelationshipStore, database: SqliteDatabase) -> None:
    therapists(store, "t")
    pairs = [("t", one) for one in crowd(store, "t", 100)]
    connection, _ = database._reader()
    statements: list[str] = []

    def note(_cursor: object, sql: str, _bindings: object) -> bool:
        statements.append(sql)
        return True

    connection.exec_trace = note
    try:
        assert None not in checked(store, 1, *pairs)
    finally:
        connection.exec_trace = None
    assert statements == [assignments.CHECK]


def test_a_check_looks_at_the_pairs_periods_only(store: RelationshipStore) -> None:
    plan = [row[3] for row in run(store, f"EXPLAIN QUERY PLAN {assignments.CHECK}", {"pairs": "[]", "at_us": 0})]
    [lookup] = [step for step in plan if "period" in step]
    assert lookup.startswith("SEARCH period USING INDEX assignment_by_pair (patient_id=? AND therapist_id=?")


@pytest.mark.parametrize("given", [n for k in (1, 2, 3) for n in itertools.combinations(ChangeQuery._fields, k)])
def test_each_filter_walks_an_index(store: RelationshipStore, given: tuple[str, ...]) -> None:
    wanted, parameters = change_log._wanted(ChangeQuery(**dict.fromkeys(given, "x")))
    sql = change_log._PAGE.format(wanted=wanted)
    plan = run(store, f"EXPLAIN QUERY PLAN {sql}", {**parameters, "after": 0, "limit": 10, "lines": 10})
    steps = [row[3] for row in plan]
    assert [step for step in steps if step.startswith("SCAN") and "wanted" not in step] == []
    assert not any("TEMP B-TREE FOR ORDER BY" in step for step in steps), steps
