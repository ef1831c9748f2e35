"""Query plans: a list reads only its page, not the history before it; a check is one statement."""

import itertools
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import apsw
import pytest
from caseload_server.domain import requests
from caseload_server.domain.requests import BY_ID, ChangeQuery, Order, PageRequest, RecordQuery
from caseload_server.store import (
    ASSIGNMENT_HISTORY,
    PATIENT,
    PATIENT_HISTORY,
    THERAPIST,
    THERAPIST_HISTORY,
    RelationshipStore,
    assignment_lists,
    change_log,
    checks,
    expiry,
    finished_periods,
    key_catch_up,
    known_at,
)
from caseload_server.store.backends.protocol import Query
from caseload_server.store.backends.sqlite.database import SqliteDatabase
from caseload_server.store.backends.sqlite.migrate import migrate
from caseload_server.store.records import RecordKind
from caseload_server.store.versions import History

from tests.store.backends.recorded_statements import statements_of_list
from tests.store.conftest import Clock
from tests.store.store_builders import crowd, run, therapists
from tests.store.store_calls import CALL, AnyKind, assign, both_kinds, make_pair
from tests.store.test_checks import checked

pytestmark = pytest.mark.slow  # each test fills a store


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
        ({"therapist_id": "t", "roles": (1,)}, "assignment_active_by_therapist"),
        ({"roles": (1,)}, "assignment_active_by_role"),
        ({"roles": (1,), "states": (2,)}, "assignment_ended_by_role"),
        ({"states": (2,)}, "assignment_ended_by_id"),
    ],
    ids=str,
)
def test_a_list_of_assignments_reads_its_index_in_order(
    store: RelationshipStore, query: dict[str, Any], index: str
) -> None:
    plan = plan_of(
        store, assignment_lists.select_assignments(requests.AssignmentQuery(**query), SqliteDatabase.dialect, 0)
    )
    assert len(plan) == 1
    assert plan[0].split("INDEX ")[1].split()[0] == index


def test_the_same_finished_period_is_found_by_its_pair(store: RelationshipStore) -> None:
    """Many periods of an imported history may have the same start and end."""
    names = ("patient_id", "therapist_id", "start_us", "end_us", "role", "focus", "end_reason")
    [step] = plan_of(store, Query(finished_periods.SELECT_SAME, dict.fromkeys(names)))
    assert "INDEX assignment_by_pair (patient_id=? AND therapist_id=? AND start_us=?)" in step


def plan_of(store: RelationshipStore, query: Query) -> list[str]:
    parameters = {"after": "", "limit": 1, **query.parameters}
    return [row[3] for row in run(store, f"EXPLAIN QUERY PLAN {query.sql}", parameters)]


@pytest.mark.parametrize(
    "query", [{}, {"therapist_id": "t"}, {"patient_id": "p"}, {"as_of_us": 5}, {"states": (2,), "roles": (1,)}], ids=str
)
def test_a_list_as_known_at_a_time_reads_indexes_in_order(store: RelationshipStore, query: dict[str, Any]) -> None:
    asked = requests.AssignmentQuery(known_at_us=5, **query)
    plan = plan_of(store, assignment_lists.select_assignments(asked, SqliteDatabase.dialect, 0))
    assert not [step for step in plan if "TEMP B-TREE" in step or step.startswith("SCAN")], plan


def test_a_check_as_known_at_a_time_reads_the_versions_of_a_period_once(
    store: RelationshipStore, clock: Clock, tmp_path: Path
) -> None:
    make_pair(store)
    begun = assign(store)
    pairs = {"pairs": '[[0,"t","p"]]', "at_us": clock.now_us, "known_at_us": clock.now_us}
    steps = []
    for focus in range(200):
        clock.advance(1)
        store.correct(begun.assignment_id, "", {"focus": f"f{focus}"}, CALL)
        if focus in (49, 199):
            steps.append(steps_of(tmp_path / "caseload.db", known_at._SELECT_IN_FORCE, pairs))
    assert steps[1] < 6 * steps[0]  # 16 times as many if each version read the others


def steps_of(path: Path, sql: str, parameters: dict[str, Any]) -> int:
    """Runs a statement. Returns how many steps SQLite took for it, divided by 20."""
    count = 0

    def step() -> bool:
        nonlocal count
        count += 1
        return False

    with closing(apsw.Connection(str(path))) as connection:
        connection.set_progress_handler(step, 20)
        connection.execute(sql, parameters).fetchall()
    return count


@pytest.mark.parametrize("sql", [known_at._SELECT_IN_FORCE, known_at._SELECT_LINKS], ids=["periods", "merges"])
def test_a_check_as_known_at_a_time_looks_up_the_pairs_and_their_merges(store: RelationshipStore, sql: str) -> None:
    plan = plan_of(store, Query(sql, dict.fromkeys(("pairs", "ids", "at_us", "known_at_us"))))
    assert [step for step in plan if step.startswith("SCAN") and "VIRTUAL TABLE" not in step] == []
    assert [step for step in plan if " INDEX " in step and "VIRTUAL" not in step and "=?" not in step] == []


@both_kinds
def test_the_look_for_records_without_keys_reads_indexes_of_those_alone(
    store: RelationshipStore, kind: AnyKind
) -> None:
    """Each process looks every 10 seconds."""
    [outdated] = plan_of(store, Query(key_catch_up._select_outdated(kind), {}))
    assert f"INDEX {kind.name}_without_keys" in outdated
    without_holder = plan_of(store, Query(key_catch_up._select_without_holder(kind), {}))
    scans = [step for step in without_holder if step.startswith("SCAN")]
    assert scans == [f"SCAN waiting USING INDEX {kind.name}_identifier_doubles"]


@pytest.mark.parametrize("history", [THERAPIST_HISTORY, PATIENT_HISTORY, ASSIGNMENT_HISTORY], ids=lambda one: one.table)
def test_a_list_of_versions_reads_those_of_one_record(store: RelationshipStore, history: History[Any]) -> None:
    for sql in (history.select_versions, history.select_current_origin):
        plan = plan_of(store, Query(sql, dict.fromkeys(("id", "before"))))
        steps = [step for step in plan if not step.endswith(("version", "CONSTANT ROW"))]
        assert not [step for step in steps if "TEMP B-TREE" in step or step.startswith("SCAN")], plan


@pytest.mark.parametrize(
    ("kind", "query", "index"),
    [
        (THERAPIST, {"statuses": (2,)}, "therapist_by_live_status"),
        (THERAPIST, {"statuses": (1, 2, 3)}, "therapist_by_live_status"),
        (THERAPIST, {"unassigned": True}, "therapist_unassigned_by_live_status"),
        (THERAPIST, {"accepting_patients": True}, "therapist_accepting"),
        (THERAPIST, {"specialties": ("a",)}, "therapist_specialty_by_specialty"),
        (THERAPIST, {"specialties": ("a", "b", "c"), "statuses": (1, 2)}, "therapist_specialty_by_specialty"),
        (PATIENT, {"statuses": (1, 2)}, "patient_by_live_status"),
        (PATIENT, {"unassigned": True}, "patient_unassigned_by_live_status"),
        (PATIENT, {"unassigned": True, "statuses": (1, 2)}, "patient_unassigned_by_live_status"),
        (THERAPIST, {"unassigned": True, "statuses": (3,)}, "therapist_unassigned_by_live_status"),
        (THERAPIST, {"email": "a@b"}, "therapist_by_email"),
        (PATIENT, {"phone_number": "+491"}, "patient_by_phone_number"),
        (PATIENT, {"birth_date": "1980-02-03"}, "patient_by_birth_date"),
        (PATIENT, {"birth_date": "1980-02"}, "patient_by_birth_month"),
        (PATIENT, {"birth_date": "1980"}, "patient_by_birth_month"),
        (PATIENT, {"without_primary": True}, "patient_without_primary"),
        (PATIENT, {"without_primary": True, "statuses": (1,)}, "patient_without_primary"),
        (PATIENT, {"deleted_only": True}, "patient_deleted"),
        (PATIENT, {"order": Order("name_key")}, "patient_by_name"),
        (PATIENT, {"order": Order("updated_us", descending=True)}, "patient_by_update"),
        (PATIENT, {"order": Order("name_key"), "email": "a@b", "statuses": (1,)}, "patient_by_name"),
        (PATIENT, {"name_prefix": "ad"}, "patient_name_word_by_word"),
        (PATIENT, {"name_prefix": "ad lo", "birth_date": "1980"}, "patient_by_birth_month"),
    ],
    ids=lambda value: value.name if isinstance(value, RecordKind) else str(value),
)
def test_a_list_of_people_reads_its_index_page_by_page(
    people: RelationshipStore, monkeypatch: pytest.MonkeyPatch, kind: Any, query: dict[str, Any], index: str
) -> None:
    monkeypatch.setattr("caseload_server.store.lists._BUDGETS", [1, 1000])
    after = PageRequest(1, "a", 1 if query.get("order", BY_ID).column == "updated_us" else "a")
    statements = statements_of_list(people._database, kind, RecordQuery(**query), after)
    walks = [plan_of(people, one) for one in statements if "gathered" not in one.sql and "count(*)" not in one.sql]
    assert [step for plan in walks for step in plan if f"INDEX {index} " in step], walks
    assert not [step for plan in walks for step in plan if step.startswith(("SCAN record", "SCAN found"))], walks
    sorts = [plan for plan in walks if "USE TEMP B-TREE FOR ORDER BY" in plan]
    few_ids = {"SCAN json_each VIRTUAL TABLE INDEX 1:", "CO-ROUTINE merged"}
    assert all(few_ids & set(plan) for plan in sorts), sorts


@pytest.mark.parametrize(
    "query", [{"unassigned": True}, {"without_primary": True, "statuses": (1,)}, {"statuses": (1, 2)}], ids=str
)
def test_a_list_by_status_does_not_read_soft_deleted_records(
    people: RelationshipStore, tmp_path: Path, query: dict[str, Any]
) -> None:
    """None of them has an active assignment, so all of them meet two of these filters."""
    steps = []
    for first in (0, 20):
        for number in range(first, 10 * first + 20):
            people.create(PATIENT, f"a{number}", {"display_name": "Ann Lee"}, CALL)
        run(people, "UPDATE patient SET deleted_us = 1 WHERE patient_id < 'b'")
        page = statements_of_list(people._database, PATIENT, RecordQuery(**query), PageRequest(1, ""))
        steps.append(sum(steps_of(tmp_path / "caseload.db", one.sql, one.parameters) for one in page))
    assert steps[1] < 2 * steps[0]  # 10 times as many if it read them


def test_a_list_by_an_identifier_reads_the_indexes_of_its_key_and_of_its_value(people: RelationshipStore) -> None:
    query = RecordQuery(identifier=("urn:mrn", "1"), order=Order("name_key"))
    [statement] = statements_of_list(people._database, PATIENT, query, PageRequest(1, ""))
    searches = [step for step in plan_of(people, statement) if step.startswith("SEARCH patient_identifier")]
    assert [step.split("(", 1)[1] for step in searches] == ["value_key=? AND system=?)", "system=? AND value=?)"]


@pytest.fixture
def people(store: RelationshipStore) -> RelationshipStore:
    """The store with two people of each kind who match nearly every filter."""
    fields: dict[str, Any] = {"display_name": "Ada Lovelace", "email": "a@b"}
    for name in ("b", "c"):
        store.create(THERAPIST, name, {**fields, "specialties": '["a","b"]', "status": 1}, CALL)
        store.create(PATIENT, name, {**fields, "phone_number": "+491", "birth_date": "1980-02-03"}, CALL)
    return store


@pytest.mark.parametrize("query", [{"as_of_us": 5}, {"roles": (1, 2)}, {"roles": (1,), "as_of_us": 5}], ids=str)
def test_a_list_of_all_assignments_needs_no_sort(store: RelationshipStore, query: dict[str, Any]) -> None:
    plan = plan_of(
        store, assignment_lists.select_assignments(requests.AssignmentQuery(**query), SqliteDatabase.dialect, 0)
    )
    assert not [step for step in plan if "TEMP B-TREE" in step or step.startswith("SCAN")], plan
    assert not [step for step in plan if "PRIMARY KEY (assignment_id>?)" in step], plan


def test_the_patients_of_a_therapist_are_listed_from_the_active_ones(store: RelationshipStore) -> None:
    query = requests.CaseloadQuery("t")
    plan = plan_of(store, assignment_lists.select_caseload(THERAPIST, PATIENT, query, SqliteDatabase.dialect, 0))
    assert "assignment_active_by_therapist" in plan[0]
    assert not [step for step in plan if "TEMP B-TREE" in step]


def test_a_list_of_a_therapist_as_of_a_time_reads_older_periods_from_an_index_alone(store: RelationshipStore) -> None:
    query = requests.CaseloadQuery("t", as_of_us=5)
    plan = plan_of(store, assignment_lists.select_caseload(THERAPIST, PATIENT, query, SqliteDatabase.dialect, 0))
    assert [step for step in plan if "COVERING INDEX assignment_by_therapist (therapist_id=? AND" in step], plan


@pytest.mark.parametrize(
    ("sql", "search"),
    [
        (expiry.SELECT_NEXT, "assignment_expiring (expire_us>?)"),
        (expiry._SELECT_OLDEST_DUE, "assignment_expiring (expire_us>? AND expire_us<?)"),
        (expiry.select_due(THERAPIST), "assignment_active_by_therapist (therapist_id=?)"),
        (expiry.select_due(PATIENT), "assignment_by_pair (patient_id=?)"),
    ],
    ids=["next", "oldest", "of a therapist", "of a patient"],
)
def test_a_sweep_reads_only_what_is_planned_or_one_record(store: RelationshipStore, sql: str, search: str) -> None:
    [step] = [row[3] for row in run(store, f"EXPLAIN QUERY PLAN {sql}", {"now_us": 0, "id": "t"})]
    assert step.endswith(search)


def test_a_check_of_a_hundred_pairs_is_one_statement(store: RelationshipStore, database: SqliteDatabase) -> None:
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
    assert statements == [checks.SELECT]


def test_a_transfer_updates_the_therapists_in_one_statement(store: RelationshipStore, database: SqliteDatabase) -> None:
    therapists(store, "s", "t")
    crowd(store, "s", 30)
    run(store, "UPDATE therapist SET active_patient_count = 30 WHERE therapist_id = 's'")
    updates: list[str] = []

    def note(_cursor: object, sql: str, _bindings: object) -> bool:
        verb, table, *_ = f"{sql} ; ;".split()
        if verb == "UPDATE":
            updates.append(table)
        return True

    database._writer.exec_trace = note
    try:
        store.transfer(requests.Transfer("s", "t"), CALL)
    finally:
        database._writer.exec_trace = None
    assert (updates.count("therapist"), updates.count("patient")) == (1, 0)


def test_a_check_reads_only_the_periods_of_the_pair(store: RelationshipStore) -> None:
    plan = [row[3] for row in run(store, f"EXPLAIN QUERY PLAN {checks.SELECT}", {"pairs": "[]", "at_us": 0})]
    [lookup] = [step for step in plan if "period" in step]
    assert lookup.startswith("SEARCH period USING INDEX assignment_by_pair (patient_id=? AND therapist_id=?")


@pytest.mark.parametrize("given", [n for k in (1, 2, 3, 4) for n in itertools.combinations(ChangeQuery._fields, k)])
def test_each_filter_uses_an_index(store: RelationshipStore, given: tuple[str, ...]) -> None:
    revisions, parameters = change_log._select_revisions(ChangeQuery(**dict.fromkeys(given, "x")))
    sql = change_log._SELECT_PAGE.format(revisions=revisions)
    plan = run(store, f"EXPLAIN QUERY PLAN {sql}", {**parameters, "after": 0, "limit": 10, "max_rows": 10})
    steps = [row[3] for row in plan]
    assert [step for step in steps if step.startswith("SCAN") and "matching" not in step] == []
    assert not any("TEMP B-TREE FOR ORDER BY" in step for step in steps), steps


def test_the_filter_of_an_end_user_reads_the_index_of_end_users(store: RelationshipStore) -> None:
    sql, parameters = change_log._select_revisions(ChangeQuery(on_behalf_of="x", actor="y"))
    [step, *_] = [row[3] for row in run(store, f"EXPLAIN QUERY PLAN {sql}", {**parameters, "after": 0, "limit": 10})]
    assert step.startswith(
        "SEARCH entry USING COVERING INDEX change_set_by_on_behalf_of (on_behalf_of=? AND revision>?"
    )
