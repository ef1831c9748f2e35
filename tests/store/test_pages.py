"""Pages miss or repeat no record, whatever is written between them and however large records are."""

import json
import threading
from typing import Any, NamedTuple

import pytest
from caseload_server.domain import errors, requests
from caseload_server.domain.limits import MAX_PAGE_BYTES
from caseload_server.domain.requests import CaseloadQuery, PageRequest, RecordQuery, Update
from caseload_server.store import THERAPIST, RelationshipStore
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.store.conftest import Clock
from tests.store.store_calls import CALL, AnyKind, assign, assigned, both_kinds, delete, make, other, walk
from tests.support.waiting import join

# The store is shared by a test's examples, each of which works on records of its own.
few_examples = settings(max_examples=50)


# Paging with writes between two pages.

_FIELDS: requests.Fields = {"display_name": "Paging"}
names = st.text("abc-19", min_size=1, max_size=3).map(lambda text: "x" + text)
writes = st.lists(st.tuples(st.sampled_from(["insert", "delete", "rename", "restore"]), names), max_size=4)


def write(store: RelationshipStore, kind: AnyKind, mark: str, what: str, name: str) -> None:
    record_id = mark + name
    match what:
        case "insert":
            store.create(kind, record_id, {"display_name": mark}, CALL)
        case "delete":
            store.delete(kind, requests.Delete(record_id, allow_missing=True), CALL)
        case "rename":
            store.update(kind, Update(record_id, {"display_name": "elsewhere"}), CALL)
        case "restore":
            store.undelete(kind, record_id, CALL)
            store.update(kind, Update(record_id, {"display_name": mark}), CALL)


class Plan(NamedTuple):
    """The records at the start, the page size, and the writes after each page."""

    start: Any
    size: int
    between: list[list[tuple[Any, Any]]]


people_plans = st.builds(Plan, st.sets(names, min_size=1, max_size=10), st.integers(1, 4), st.lists(writes, max_size=6))


@pytest.mark.slow
@both_kinds
@given(plan=people_plans)
@few_examples
def test_pages_show_a_constantly_matching_record_exactly_once_during_writes(
    store: RelationshipStore, clock: Clock, kind: AnyKind, plan: Plan
) -> None:
    mark = f"m{clock.advance(1)}"
    for name in plan.start:
        write(store, kind, mark, "insert", name)
    throughout = {mark + name for name in plan.start}
    seen: list[str] = []
    after, turns = "", iter(plan.between)
    for _ in range(100):
        page = store.list_records(kind, RecordQuery(name_prefix=mark), PageRequest(plan.size, after))
        seen += [record[0] for record in page.records]
        after = page.next_after
        if not after:
            break
        for what, name in next(turns, []):
            try:
                write(store, kind, mark, what, name)
            except errors.DomainError:
                continue
            if what in {"delete", "rename"}:
                throughout.discard(mark + name)
    assert seen == sorted(set(seen))
    assert throughout <= set(seen)


assignment_plans = st.builds(
    Plan,
    st.integers(1, 8),
    st.integers(1, 3),
    st.lists(st.lists(st.tuples(st.booleans(), st.integers(0, 11)), max_size=4), max_size=6),
)


@pytest.mark.slow
@both_kinds
@given(plan=assignment_plans)
@few_examples
def test_pages_show_a_constantly_active_assignment_exactly_once(
    store: RelationshipStore, clock: Clock, kind: AnyKind, plan: Plan
) -> None:
    parent = f"m{clock.advance(1)}"
    make(store, kind, parent)
    for number in range(12):
        store.create(other(kind), f"n{number}", _FIELDS, CALL._replace(request_id=f"n{number}"))

    def pair(number: int) -> tuple[str, str]:
        return (parent, f"n{number}") if kind is THERAPIST else (f"n{number}", parent)

    throughout = {assign(store, *pair(number)).assignment_id: number for number in range(plan.start)}
    seen: list[str] = []
    after, turns = "", iter(plan.between)
    for _ in range(100):
        page = assigned(store, kind, CaseloadQuery(parent), PageRequest(plan.size, after))
        seen += [entry[0].assignment_id for entry in page.records]
        after = page.next_after
        if not after:
            break
        for begin, number in next(turns, []):
            if begin:
                assign(store, *pair(number))
            else:
                store.unassign(requests.Unassign(*pair(number), allow_missing=True), CALL)
                throughout = {key: value for key, value in throughout.items() if value != number}
    assert seen == sorted(set(seen))
    assert set(throughout) <= set(seen)


@both_kinds
def test_pages_miss_no_record_while_threads_write(store: RelationshipStore, kind: AnyKind) -> None:
    steady = [f"s{number:03}" for number in range(60)]
    for name in steady:
        make(store, kind, name)
    done = threading.Event()

    def churn(worker: int) -> None:
        for turn in range(10_000):
            if done.is_set():
                return
            name = f"s{(turn * 7) % 60:03}-{worker}"
            store.create(kind, name + f"-{turn}", {"display_name": "Ada"}, CALL)
            delete(store, kind, name + f"-{turn}")

    workers = [threading.Thread(target=churn, args=(worker,)) for worker in range(2)]
    for worker in workers:
        worker.start()
    try:
        for size in (1, 7, 20):
            seen = [record[0] for page in walk(store, kind, RecordQuery(), size) for record in page]
            assert seen == sorted(set(seen))
            assert set(steady) <= set(seen)
    finally:
        done.set()
        join(*workers)


# Pages of large records.


def size_of(row: tuple[Any, ...]) -> int:
    return sum(len(value.encode()) for value in row if isinstance(value, str))


LARGE = json.dumps({f"k{n}": "é" * 470 for n in range(32)}, ensure_ascii=False)


@both_kinds
def test_a_page_stops_at_2_mib_and_the_next_one_continues(store: RelationshipStore, kind: AnyKind) -> None:
    names = [f"a{number:03}" for number in range(80)]
    for name in names:
        make(store, kind, name, annotations=LARGE)
    pages = walk(store, kind, RecordQuery(), 1000)
    assert [record[0] for page in pages for record in page] == names
    assert len(pages) == 2
    full = sum(size_of(record) for record in pages[0])
    assert MAX_PAGE_BYTES * 0.9 < full <= MAX_PAGE_BYTES
    assert full + size_of(pages[1][0]) > MAX_PAGE_BYTES * 0.98


@both_kinds
def test_the_size_of_a_page_of_assignments_includes_the_other_records(store: RelationshipStore, kind: AnyKind) -> None:
    make(store, kind, "it")
    for number in range(80):
        make(store, other(kind), f"o{number}", annotations=LARGE)
        assign(store, *(("it", f"o{number}") if kind is THERAPIST else (f"o{number}", "it")))
    first = assigned(store, kind, CaseloadQuery("it"))
    rest = assigned(store, kind, CaseloadQuery("it"), PageRequest(1000, first.next_after))
    assert first.next_after == first.records[-1][0].assignment_id
    assert rest.next_after == ""
    assert {entry[1][0] for entry in first.records + rest.records} == {f"o{number}" for number in range(80)}
    assert len(first.records) + len(rest.records) == 80
    assert sum(size_of(entry[0]) + size_of(entry[1]) for entry in first.records) <= MAX_PAGE_BYTES


def test_a_page_holds_at_least_one_record_of_any_size(
    store: RelationshipStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("caseload_server.store.pages.MAX_PAGE_BYTES", 10)
    for name in "abc":
        make(store, THERAPIST, name)
    assert [len(page) for page in walk(store, THERAPIST, RecordQuery(), 10)] == [1, 1, 1]
