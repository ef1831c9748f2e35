"""Filters, orders and totals of lists, compared with a plain reference."""

import json
from collections import ChainMap
from collections.abc import Callable, Iterator
from contextlib import suppress
from itertools import combinations, islice
from typing import Any, NamedTuple

import pytest
from caseload_server.domain import errors
from caseload_server.domain.records import Person
from caseload_server.domain.requests import BY_ID, Order, PageRequest, RecordQuery
from caseload_server.store import PATIENT, THERAPIST, RelationshipStore, search
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.store.conftest import Clock
from tests.store.store_calls import CALL, AnyKind, assign, both_kinds, delete, make, run, update

# The examples share a store. Each one begins by emptying it.
few_examples = settings(max_examples=20, suppress_health_check=list(HealthCheck))
MATCHES: dict[str, Callable[[Any, Any], bool]] = {
    "name_prefix": lambda record, prefix: all(
        any(word.startswith(typed) for word in search.record_words(record.display_name, json.loads(record.aliases)))
        for typed in search.typed_words(prefix)
    ),
    "statuses": lambda record, statuses: record.status in statuses,
    "identifier": lambda record, pair: list(pair) in json.loads(record.identifiers),
    "identifier_value": lambda record, value: value in [pair[1] for pair in json.loads(record.identifiers)],
    "unassigned": lambda record, _: not any(getattr(record, kind.count_column, 0) for kind in (THERAPIST, PATIENT)),
    "specialties": lambda record, codes: bool(set(codes) & set(json.loads(record.specialties))),
    "accepting_patients": lambda record, _: (
        record.deleted_us is None
        and record.status == 1
        and (record.max_active_patients is None or record.active_patient_count < record.max_active_patients)
    ),
    "birth_date": lambda record, date: record.birth_date == date or record.birth_date.startswith(f"{date}-"),
    "phone_number": lambda record, number: record.phone_number == number,
    "email": lambda record, address: record.email.lower() == address.lower(),
    "without_primary": lambda record, _: not record.primary_therapist_id,
    "deleted_only": lambda record, _: record.deleted_us is not None,
}
"""Whether a record meets a filter, by the name of the filter."""


def matches(record: Person, query: RecordQuery) -> bool:
    """Whether a record is on the list of a query."""
    is_hidden = record.deleted_us is not None and not query.show_deleted and not query.deleted_only
    return not is_hidden and all(
        check(record, getattr(query, name)) for name, check in MATCHES.items() if getattr(query, name)
    )


def in_order(records: list[Person], order: Order) -> list[str]:
    """The ids of records in the order of a list."""

    def key(record: Person) -> tuple[str | int, str]:
        first: dict[str, str | int] = {
            "name_key": search.name_key(record.display_name),
            "updated_us": record.updated_us,
        }
        return first.get(order.column, ""), record[0]

    return [record[0] for record in sorted(records, key=key, reverse=order.descending)]


def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes a few records as many as a walk must give up on."""
    monkeypatch.setattr("caseload_server.store.lists._BUDGETS", [1, 2, 3, 5, 10**6])
    monkeypatch.setattr("caseload_server.store.lists._MAX_WORDS", 2)
    monkeypatch.setattr("caseload_server.store.lists._MIN_CHUNK", 1)
    monkeypatch.setattr("caseload_server.store.lists._MAX_CHUNK", 2)


NAMES = ("Ada Lovelace", "Ada Byron", "Adam Bly", "Adele Byrd", "ada", "Béa Byron", "Zoe")
ORDERS = (BY_ID, *(Order(column, descending) for column in ("name_key", "updated_us") for descending in (False, True)))
FIELDS: dict[str, tuple[Any, ...]] = {
    "display_name": NAMES,
    "aliases": ("[]", "[]", '["Byron King","Ada"]'),
    "email": ("", "a@example.org", "A@Example.org"),
    "status": (1, 1, 2),
    "identifiers": ("", "a", "b", "ab"),  # the systems; the value is the number
}
FILTERS: dict[str, tuple[Any, ...]] = {
    "name_prefix": ("ad", "ada", "by", "ad by", "ada ki", "zo", "xy"),
    "statuses": ((1,), (2,), (1, 2)),
    "identifier": (("a", "5"), ("b", "5")),
    "identifier_value": ("5", "99"),
    "unassigned": (True,),
    "email": ("a@example.ORG", "b@example.org"),
    "deleted_only": (True,),
    "show_deleted": (True,),
}
OWN_FIELDS: dict[str, dict[str, tuple[Any, ...]]] = {
    "therapist": {
        "specialties": ("[]", '["cbt"]', '["cbt","gait"]', '["gait"]'),
        "max_active_patients": (None, 0, 1),
    },
    "patient": {
        "birth_date": ("", "1980", "1980-02", "1980-02-03", "1980-11-30", "1981-02-03"),
        "phone_number": ("", "+4930123", "+4930124"),
    },
}
OWN_FILTERS: dict[str, dict[str, tuple[Any, ...]]] = {
    "therapist": {"specialties": (("cbt",), ("cbt", "gait"), ("none",)), "accepting_patients": (True,)},
    "patient": {
        "birth_date": ("1980", "1980-02", "1980-02-03", "1981", "1979"),
        "phone_number": ("+4930123",),
        "without_primary": (True,),
    },
}


def filters_of(kind: AnyKind) -> list[dict[str, Any]]:
    """Each filter of a kind, with each of its values."""
    return [{name: one} for name, values in (FILTERS | OWN_FILTERS[kind.name]).items() for one in values]


def pairs_of_filters(kind: AnyKind) -> Iterator[dict[str, Any]]:
    """Yields pairs of different filters of a kind: each value of a filter beside each other filter."""
    for (one, values), (other, others) in combinations((FILTERS | OWN_FILTERS[kind.name]).items(), 2):
        for n in range(max(len(values), len(others))):
            yield {one: values[n % len(values)], other: others[n % len(others)]}


class Scene(NamedTuple):
    """Records by number, which of them are deleted or assigned; the query, the page size, a write after each page."""

    records: list[dict[str, Any]]
    deleted: list[int]
    roles: dict[int, int]
    query: dict[str, Any]
    size: int
    writes: list[tuple[str, int, dict[str, Any]]]


def scenes(kind: AnyKind) -> st.SearchStrategy[Scene]:
    """Scenes of one kind of record."""
    columns = {name: st.sampled_from(values) for name, values in (FIELDS | OWN_FIELDS[kind.name]).items()}
    record = st.fixed_dictionaries(columns)
    filters = st.lists(st.sampled_from(filters_of(kind)), max_size=2).map(lambda some: dict(ChainMap(*some)))
    orders = st.fixed_dictionaries({"order": st.sampled_from(ORDERS), "with_total": st.booleans()})
    numbers = st.integers(0, 11)
    return st.builds(
        Scene,
        st.lists(record, min_size=6, max_size=12),
        st.lists(numbers, max_size=2),
        st.dictionaries(numbers, st.integers(1, 2), max_size=4),
        st.tuples(filters, orders).map(lambda parts: parts[0] | parts[1]),
        st.integers(1, 3),
        st.lists(st.tuples(st.sampled_from(["update", "delete", "insert"]), numbers, record), max_size=6),
    )


def attempt(work: Callable[[], object]) -> None:
    """Runs a write that a rule of the store may reject."""
    with suppress(errors.DomainError):
        work()


def build(store: RelationshipStore, clock: Clock, kind: AnyKind, scene: Scene) -> None:
    """Empties the store, and creates the records of a scene."""
    for table in ("assignment", "therapist", "patient"):
        run(store, f"DELETE FROM {table}")
    make(store, THERAPIST if kind is PATIENT else PATIENT, "other")
    for number, values in enumerate(scene.records):
        clock.step(number % 3)  # some have the same update_time
        identifiers = json.dumps([[system, str(number)] for system in values["identifiers"]])
        store.create(kind, f"r{number:02}", {**values, "identifiers": identifiers}, CALL)
    for number, role in scene.roles.items():
        pair = ("other", f"r{number:02}") if kind is PATIENT else (f"r{number:02}", "other")
        attempt(lambda p=pair, r=role: assign(store, *p, role=r))  # type: ignore[misc]
    for number in scene.deleted:
        attempt(lambda n=number: delete(store, kind, f"r{n:02}"))  # type: ignore[misc]


def all_records(store: RelationshipStore, kind: AnyKind) -> dict[str, Person]:
    """Every record of a kind by its id, read without a list."""
    columns = ", ".join(kind.record._fields)
    return {row[0]: kind.record._make(row) for row in run(store, f"SELECT {columns} FROM {kind.name}")}


def write(store: RelationshipStore, clock: Clock, kind: AnyKind, step: tuple[str, int, dict[str, Any]]) -> None:
    """Makes one of the writes of a scene."""
    verb, number, fields = step
    values = {**fields, "identifiers": "[]"}
    clock.step(1)
    record_id = f"r{number:02}"
    if verb == "update":
        attempt(lambda: update(store, kind, record_id, **values))
    elif verb == "delete":
        attempt(lambda: delete(store, kind, record_id, force=True))
    else:
        attempt(lambda: store.create(kind, f"{record_id}x", values, CALL))


def pages(store: RelationshipStore, kind: AnyKind, query: RecordQuery, size: int) -> Iterator[Any]:
    """Yields the pages of a list. Each is read when it is asked for."""
    after, key = "", ""
    for _ in range(1000):
        page: Any = store.list_records(kind, query, PageRequest(size, after, key))
        yield page
        after, key = page.next_after, page.next_after_key
        if not after:
            return
    raise AssertionError("the list does not end")


def check(store: RelationshipStore, clock: Clock, kind: AnyKind, scene: Scene) -> None:
    """Compares the pages of a list, with writes between them, with the reference."""
    build(store, clock, kind, scene)
    query = RecordQuery(**scene.query)
    before = all_records(store, kind)
    seen: list[str] = []
    writes = iter(scene.writes)
    for page in pages(store, kind, query, scene.size):
        now = all_records(store, kind)
        seen += [record[0] for record in page.records]
        assert page.records == [now[record[0]] for record in page.records]
        expected = sum(matches(record, query) for record in now.values())
        assert page.total_size == (expected if query.with_total else None)
        for step in islice(writes, 1):
            write(store, clock, kind, step)
    after = all_records(store, kind)
    steady = [record for record_id, record in before.items() if after[record_id] == record and matches(record, query)]
    assert [one for one in seen if after[one] == before.get(one)] == in_order(steady, query.order)


@both_kinds
@pytest.mark.parametrize(
    "prepare",
    [pytest.param(lambda _: None, id="as it is", marks=pytest.mark.slow), pytest.param(small, id="with small budgets")],
)
def test_pages_of_each_filter_order_and_pair_of_filters_are_those_of_a_plain_reference(
    store: RelationshipStore,
    clock: Clock,
    kind: AnyKind,
    prepare: Callable[[pytest.MonkeyPatch], None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    prepare(monkeypatch)
    columns = FIELDS | OWN_FIELDS[kind.name]
    some = [
        {name: values[n * (2 + i) % len(values)] for i, (name, values) in enumerate(columns.items())} for n in range(26)
    ]
    build(store, clock, kind, Scene(some, [3, 7, 11], {2: 1, 5: 2, 8: 1, 9: 2}, {}, 0, []))
    records = all_records(store, kind)
    one_filter = [{**one, "order": order} for one in [{}, *filters_of(kind)] for order in ORDERS]
    in_turn = [{**both, "order": ORDERS[n % len(ORDERS)]} for n, both in enumerate(pairs_of_filters(kind))]
    found = 0
    for fields in [*one_filter, *in_turn]:
        query = RecordQuery(**fields, with_total=True)
        expected = in_order([record for record in records.values() if matches(record, query)], query.order)
        listed = list(pages(store, kind, query, 4))
        assert [record for page in listed for record in page.records] == [records[one] for one in expected], query
        assert {page.total_size for page in listed} == {len(expected)}, query
        found += len(expected) > 4
    assert found > 100


@pytest.mark.slow
@both_kinds
@given(data=st.data())
@few_examples
def test_pages_of_any_query_are_those_of_a_plain_reference(
    store: RelationshipStore, clock: Clock, kind: AnyKind, data: st.DataObject
) -> None:
    check(store, clock, kind, data.draw(scenes(kind)))


@pytest.mark.slow
@both_kinds
@given(data=st.data())
@few_examples
def test_pages_are_the_same_however_they_are_found(
    store: RelationshipStore, clock: Clock, kind: AnyKind, data: st.DataObject
) -> None:
    with pytest.MonkeyPatch.context() as monkeypatch:
        small(monkeypatch)
        check(store, clock, kind, data.draw(scenes(kind)))
