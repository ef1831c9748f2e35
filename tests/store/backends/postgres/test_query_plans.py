"""Query plans on a large store: a statement reads what it returns, not what lies before or beside it.

PostgreSQL plans a prepared statement for its values five times, and then perhaps once for all values: both are read.
https://www.postgresql.org/docs/current/sql-prepare.html
"""

import itertools
import json
import re
from collections.abc import Iterator
from contextlib import closing
from typing import Any

import psycopg
import pytest
from caseload_server.domain.requests import (
    BY_ID,
    AssignmentQuery,
    CaseloadQuery,
    ChangeQuery,
    Order,
    PageRequest,
    RecordQuery,
)
from caseload_server.store import (
    ASSIGNMENT_HISTORY,
    PATIENT,
    PATIENT_HISTORY,
    THERAPIST,
    THERAPIST_HISTORY,
    assignment_lists,
    assignments,
    change_log,
    checks,
    expiry,
    known_at,
    merges,
    purges,
)
from caseload_server.store.backends.postgres.database import PostgresDatabase
from caseload_server.store.backends.postgres.parameters import positional
from caseload_server.store.backends.protocol import Dialect, Query, Value
from caseload_server.store.records import RecordKind
from psycopg import sql

from tests.store.backends.postgres.large_store import fill
from tests.store.backends.recorded_statements import statements_of_list
from tests.support.postgres.databases import Databases

pytestmark = pytest.mark.slow  # the large store takes seconds to fill
DIALECT = PostgresDatabase.dialect
LIMIT = 51
NOW_US = 4_000_000
"""Later than every period of the store begins."""
FEW = 2000
"""Rows that a millisecond or two are enough for."""
THERAPIST_ID, PATIENT_ID, ASSIGNMENT_ID = "t00000100", "p00010000", "a000030000000"
AFTER = {"assignment AS": ASSIGNMENT_ID, "patient AS": PATIENT_ID, "therapist AS": THERAPIST_ID}
_STARTS = re.compile(r"(_id|revision)\)? (=|>)|ROW\(|value =|word >")
"""A condition that bounds a scan of an index: an id, what lies after one, an identifier, or a word."""


@pytest.fixture(scope="module")
def url(postgres_databases: Databases) -> Iterator[str]:
    with postgres_databases.acquire() as url, psycopg.connect(url, autocommit=True) as connection:
        fill(connection)
        yield url


@pytest.fixture(scope="module")
def connection(url: str) -> Iterator["psycopg.Connection[Any]"]:
    with psycopg.connect(url, autocommit=True) as connection:
        yield connection


@pytest.fixture(scope="module")
def database(url: str) -> Iterator[PostgresDatabase]:
    with closing(PostgresDatabase(url)) as database:
        yield database


def plan(connection: "psycopg.Connection[Any]", query: Query, mode: str) -> list[dict[str, Any]]:
    """Returns the nodes of a query's plan. Args: mode, custom or generic."""
    text, names = positional(query.sql)
    values = [query.parameters[name] for name in names]
    types = ", ".join("bigint" if isinstance(value, int) else "text" for value in values)
    literals = sql.SQL(", ").join(values)
    connection.execute(f"SET plan_cache_mode = force_{mode}_plan".encode())
    connection.execute(b"PREPARE one %b AS %b" % (f"({types})".encode() if types else b"", text))
    try:
        execute = sql.SQL("EXPLAIN (FORMAT JSON) EXECUTE one {}").format(
            sql.SQL("({})").format(literals) if values else sql.SQL("")
        )
        [(explained,)] = connection.execute(execute).fetchall()
    finally:
        connection.execute("DEALLOCATE one")
    return list(nodes((explained if isinstance(explained, list) else json.loads(explained))[0]["Plan"]))


def nodes(node: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield node
    for child in node.get("Plans", ()):
        yield from nodes(child)


def faults(read: list[dict[str, Any]]) -> list[str]:
    """Returns what a plan reads or sorts beyond a page. Rare rows that another filter finds may be read as a whole."""
    scans = [node for node in read if "Index Name" in node and node["Plan Rows"] > FEW]
    return [
        *(f"reads all of {node['Relation Name']}" for node in read if is_full_scan(node)),
        *(f"sorts {node['Plan Rows']} rows" for node in read if node["Node Type"] == "Sort" and is_large(node)),
        *(
            f"reads {one['Index Name']} from its start"
            for one in scans
            if not _STARTS.search(one.get("Index Cond", ""))
        ),
    ]


def is_full_scan(node: dict[str, Any]) -> bool:
    return bool(node["Node Type"].endswith("Seq Scan") and node["Relation Name"] != "store")


def is_large(node: dict[str, Any]) -> bool:
    return bool(node["Plan Rows"] > FEW and not is_limited(node["Plans"][0]))


def is_limited(node: dict[str, Any]) -> bool:
    """Returns whether a node returns some pages at most. In a generic plan the limit is not known."""
    return node["Node Type"] == "Limit" or (
        node["Node Type"] in {"Append", "Subquery Scan", "Nested Loop", "Aggregate"}
        and all(one["Node Type"] == "Function Scan" or is_limited(one) for one in node["Plans"])
    )


def record_lists() -> Iterator[Any]:
    """Yields each list of therapists and patients, with some combinations."""
    kinds: list[RecordKind[Any]] = [PATIENT, THERAPIST]
    for kind, statuses in itertools.product(kinds, ((), (1,), (2,), (1, 2))):
        for unassigned, show_deleted in itertools.product((False, True), repeat=2):
            yield kind, RecordQuery(statuses=statuses, unassigned=unassigned, show_deleted=show_deleted)
        yield kind, RecordQuery(statuses=statuses, identifier=("number", "77"))
    for specialties in (("rare1",), ("rare1", "rare2"), ("common1", "none")):
        for more in ({}, {"statuses": (2,)}, {"accepting_patients": True}, {"unassigned": True}):
            yield THERAPIST, RecordQuery(specialties=specialties, **more)
    yield THERAPIST, RecordQuery(accepting_patients=True)
    filters: list[dict[str, Any]] = [
        {"email": "77@example.org"},
        {"phone_number": "+4977"},
        {"identifier_value": "00000077"},
        *({"birth_date": date} for date in ("1950-02-03", "1950-02", "1950")),
        {"without_primary": True},
        {"without_primary": True, "statuses": (1,)},
        {"deleted_only": True},
        *({"name_prefix": prefix} for prefix in ("fi la", "anna smith", "smith", "last12", "x")),
    ]
    orders = [BY_ID, *(Order(column, desc) for column in ("name_key", "updated_us") for desc in (False, True))]
    for one, order in itertools.product([{}, *filters], orders):
        yield PATIENT, RecordQuery(**one, order=order)
    for one, other in itertools.combinations(filters, 2):
        yield PATIENT, RecordQuery(**(one | other), order=Order("name_key"), with_total=True)


def assignment_lists_of(dialect: Dialect) -> Iterator[Any]:
    """Yields each list of assignments."""
    of_therapist, of_patient = {"therapist_id": THERAPIST_ID}, {"patient_id": PATIENT_ID}
    sides: list[dict[str, Any]] = [{}, of_therapist, of_patient, of_therapist | of_patient]
    for side, roles in itertools.product(sides, ((), (4,), (3, 4), (1, 2, 3, 4))):
        for states, as_of_us in (((), None), ((2,), None), ((1, 2), None), ((), 1_000_000), ((), 2_999_000)):
            query = AssignmentQuery(**side, roles=roles, states=states, as_of_us=as_of_us)
            yield pytest.param(assignment_lists.select_assignments(query, dialect, NOW_US), id=short(query))
    merged: dict[str, Any] = {**of_patient, "same_person": (PATIENT_ID, "p00010001"), "as_of_us": 1_000_000}
    for query in (AssignmentQuery(**merged), AssignmentQuery(**merged, therapist_id=THERAPIST_ID)):
        yield pytest.param(assignment_lists.select_assignments(query, dialect, NOW_US), id=short(query))
    for side, as_of_us in itertools.product(sides, (None, 1_000_000)):
        query = AssignmentQuery(**side, as_of_us=as_of_us, known_at_us=2_999_000)
        yield pytest.param(assignment_lists.select_assignments(query, dialect, NOW_US), id=short(query))
    for kind, other, parent_id in ((THERAPIST, PATIENT, THERAPIST_ID), (PATIENT, THERAPIST, PATIENT_ID)):
        for roles, states, as_of_us in (((), (), None), ((4,), (1, 2), None), ((), (2,), None), ((), (), 1_000_000)):
            query_of_one = CaseloadQuery(parent_id, roles, states, as_of_us)
            select = assignment_lists.select_caseload(kind, other, query_of_one, dialect, NOW_US)
            yield pytest.param(select, id=f"{kind.name}-{short(query_of_one)}")


def short(query: Any) -> str:
    return ",".join(f"{name}={value}" for name, value in query._asdict().items() if value) or "all"


@pytest.mark.parametrize("mode", ["custom", "generic"])
@pytest.mark.parametrize("query", [*assignment_lists_of(DIALECT)])
def test_a_list_reads_its_page(connection: "psycopg.Connection[Any]", query: Query, mode: str) -> None:
    after = next(one for table, one in AFTER.items() if table in query.sql)
    if not query.plan_for_values or mode == "custom":
        assert faults(plan(connection, query.of_page(after, LIMIT), mode)) == []


@pytest.mark.parametrize("mode", ["custom", "generic"])
@pytest.mark.parametrize(
    ("kind", "query"), [pytest.param(*one, id=f"{one[0].name}-{short(one[1])}") for one in record_lists()]
)
def test_the_statements_of_a_list_of_people_read_their_page(
    connection: "psycopg.Connection[Any]", database: PostgresDatabase, kind: Any, query: RecordQuery, mode: str
) -> None:
    key: str | int = 5000 if query.order.column == "updated_us" else "k"
    after = PageRequest(LIMIT - 1, PATIENT_ID if kind is PATIENT else THERAPIST_ID, key)
    for statement in statements_of_list(database, kind, query, after):
        if statement.sql.startswith("SELECT count(*)") or (statement.plan_for_values and mode == "generic"):
            continue  # counts have a limit, or cost what the total costs
        read = plan(connection, statement, mode)
        if "gathered" in statement.sql:  # its matches are known to be few in this store
            assert not any(map(is_full_scan, read)), statement.sql
        else:
            assert faults(read) == [], statement.sql


def lookups() -> Iterator[Any]:
    """Yields the statements that read records by id."""
    pair = {"therapist_id": THERAPIST_ID, "patient_id": PATIENT_ID}
    ids = json.dumps([PATIENT_ID])
    yield "a record", PATIENT.select, {"id": PATIENT_ID}
    yield "several records", PATIENT.select_batch, {"ids": ids}
    yield "an assignment", assignments.SELECT_BY_ID, {"id": ASSIGNMENT_ID}
    yield "checks", checks.SELECT, {"pairs": json.dumps([[THERAPIST_ID, PATIENT_ID]]), "at_us": 1}
    asked = json.dumps([[0, THERAPIST_ID, PATIENT_ID]])
    yield "checks as known at a time", known_at._SELECT_IN_FORCE, {"pairs": asked, "at_us": 1, "known_at_us": 1}
    yield "merges as known at a time", known_at._SELECT_LINKS, {"ids": ids, "known_at_us": 2_999_000}
    of_record = {"before": 100, "limit": LIMIT}
    for history, record_id in (
        (THERAPIST_HISTORY, THERAPIST_ID),
        (PATIENT_HISTORY, PATIENT_ID),
        (ASSIGNMENT_HISTORY, ASSIGNMENT_ID),
    ):
        yield f"versions of a {history.table}", history.select_versions, {"id": record_id, **of_record}
        yield f"the origin of a {history.table}", history.select_current_origin, {"id": record_id, "before": 100}
    yield "the records of a person", merges.SELECT_SAME_PERSON, {"patient_id": PATIENT_ID}
    yield "a part of a person", merges._SPLIT_PERSON, {"source": PATIENT_ID}
    yield "merged records to purge", purges._SELECT_MERGED, {"ids": ids}
    yield "the active period", assignments._SELECT_ACTIVE, pair
    yield "the latest period", assignments._SELECT_LATEST, pair
    yield "another primary", assignments._SELECT_OTHER_PRIMARY, pair
    span = {**pair, "start_us": 1, "before_us": 2**62, "exclusive_role": 1}
    yield "an overlap", assignments._SELECT_LAST_OVERLAPPING, span
    due = {"id": THERAPIST_ID, "now_us": NOW_US}
    yield "what expired of a therapist", expiry.select_due(THERAPIST), due
    yield "what expired of a patient", expiry.select_due(PATIENT), {**due, "id": PATIENT_ID}
    for size in range(5):
        for given in itertools.combinations(ChangeQuery._fields, size):
            known = {**pair, "actor": "auditor", "on_behalf_of": "user-3"}
            revisions, parameters = change_log._select_revisions(ChangeQuery(**{name: known[name] for name in given}))
            page = change_log._SELECT_PAGE.format(revisions=revisions)
            yield f"changes by {given}", page, {**parameters, "after": 100, "limit": LIMIT, "max_rows": 1000}


def test_a_walk_that_merges_many_words_ends_when_it_has_read_its_budget_of_rows(database: PostgresDatabase) -> None:
    query = RecordQuery(name_prefix="first1 first2")  # no patient has two first names
    statements = statements_of_list(database, PATIENT, query, PageRequest(LIMIT - 1, ""))
    merges = [statement.parameters for statement in statements if "AS merged" in statement.sql]
    assert [(len(json.loads(str(one["values"]))), one["limit"]) for one in merges] == [(111, LIMIT)]


@pytest.mark.parametrize("mode", ["custom", "generic"])
@pytest.mark.parametrize("query", [pytest.param(Query(text, values), id=title) for title, text, values in lookups()])
def test_a_lookup_reads_only_what_it_names(connection: "psycopg.Connection[Any]", query: Query, mode: str) -> None:
    assert faults(plan(connection, query, mode)) == []


@pytest.mark.parametrize("mode", ["custom", "generic"])
@pytest.mark.parametrize("sql", [checks.SELECT, known_at._SELECT_IN_FORCE], ids=["now", "as known at a time"])
def test_a_check_in_a_small_store_looks_up_its_pair(connection: "psycopg.Connection[Any]", sql: str, mode: str) -> None:
    """If PostgreSQL expected a hundred pairs, reading all active assignments of a small store would seem cheaper."""
    asked: dict[str, Value] = {"pairs": "[]", "at_us": NOW_US, "known_at_us": NOW_US}
    with connection.transaction(force_rollback=True):
        connection.execute("CREATE TEMP TABLE few AS SELECT * FROM assignment WHERE patient_id < 'p00001000'")
        connection.execute("TRUNCATE assignment CASCADE")
        connection.execute("INSERT INTO assignment SELECT * FROM few")
        connection.execute("ANALYZE assignment, same_person")
        read = plan(connection, Query(sql, asked), mode)
    indexes = {node.get("Index Name") for node in read if node.get("Relation Name") == "assignment"}
    assert indexes == {"assignment_by_pair"}


@pytest.mark.parametrize("mode", ["custom", "generic"])
@pytest.mark.parametrize("sql", [expiry.SELECT_NEXT, expiry._SELECT_OLDEST_DUE], ids=["next", "oldest"])
def test_a_sweep_reads_the_first_entries_of_an_index(
    connection: "psycopg.Connection[Any]", sql: str, mode: str
) -> None:
    read = plan(connection, Query(sql, {"now_us": NOW_US}), mode)
    assert [node["Index Name"] for node in read if "Index Name" in node] == ["assignment_expiring"]
    assert "Limit" in {node["Node Type"] for node in read}


@pytest.mark.parametrize(
    ("change", "query", "fault"),
    [
        ({"merged_scan": "{scan}"}, {"roles": (3, 4), "states": (2,)}, "sorts"),
        ({"index_range": "{column} = {value}"}, {"roles": (2,), "states": (2,)}, "from its start"),
    ],
    ids=["scans without a limit", "a role without an order"],
)
def test_another_dialect_would_be_found_out(
    connection: "psycopg.Connection[Any]", change: dict[str, str], query: dict[str, Any], fault: str
) -> None:
    worse = assignment_lists.select_assignments(AssignmentQuery(**query), DIALECT._replace(**change), NOW_US)  # type: ignore[arg-type]
    assert any(fault in one for one in faults(plan(connection, worse.of_page(ASSIGNMENT_ID, LIMIT), "generic")))
