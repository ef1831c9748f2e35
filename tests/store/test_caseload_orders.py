"""Orders and totals of caseloads and of lists of assignments, compared with a plain reference."""

from typing import Any, NamedTuple

import pytest
from caseload_server.domain import enums
from caseload_server.domain.records import Assignment
from caseload_server.domain.requests import BY_ID, AssignmentQuery, CaseloadQuery, Order, PageRequest
from caseload_server.store import PATIENT, THERAPIST, RelationshipStore, search
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.store.conftest import Clock
from tests.store.store_builders import periods
from tests.store.store_calls import ALL, AnyKind, assign, assigned, both_kinds, make, other, run, unassign, update

few_examples = settings(max_examples=20)
NAMES = ("Ada", "béa", "Zoe", "ada byron")
ORDERS = (BY_ID, *(Order(column, descending) for column in ("name_key", "start_us") for descending in (False, True)))
both_states = (enums.STATE_ACTIVE, enums.STATE_ENDED)


def fill(store: RelationshipStore, clock: Clock, kind: AnyKind, names: list[str], ended: set[int]) -> None:
    """Empties the store, and assigns a record of each name to the record `it`, some at the same time."""
    for table in ("assignment", "therapist", "patient"):
        run(store, f"DELETE FROM {table}")
    make(store, kind, "it")
    for number, name in enumerate(names):
        clock.advance(number % 2)
        make(store, other(kind), f"o{number}", display_name=name)
        assign(store, *pair(kind, number))
        if number in ended:
            clock.advance(1)
            unassign(store, *pair(kind, number))


def pair(kind: AnyKind, number: int) -> tuple[str, str]:
    """The ids of `it` and another record."""
    return ("it", f"o{number}") if kind is THERAPIST else (f"o{number}", "it")


def in_order(store: RelationshipStore, kind: AnyKind, query: CaseloadQuery) -> list[str]:
    """The ids of the assignments of a caseload, by the reference."""
    other_id = f"{other(kind).name}_id"

    def key(one: Assignment) -> tuple[Any, str]:
        name = search.name_key(store.get(other(kind), getattr(one, other_id)).display_name)
        return {"name_key": name, "start_us": one.start_us}.get(query.order.column, 0), one.assignment_id

    shown = [one for one in periods(store) if one.end_us is None or query.states]
    return [one.assignment_id for one in sorted(shown, key=key, reverse=query.order.descending)]


class Scene(NamedTuple):
    """The names of a caseload and who of them has ended; an order, states and a page size; renamed after each page."""

    names: list[str]
    ended: set[int]
    order: Order
    states: tuple[int, ...]
    size: int
    renamed: list[int]


scenes = st.builds(
    Scene,
    st.lists(st.sampled_from(NAMES), max_size=8),
    st.sets(st.integers(0, 7)),
    st.sampled_from(ORDERS),
    st.sampled_from([(), both_states]),
    st.integers(1, 4),
    st.lists(st.integers(0, 7), max_size=3),
)


@pytest.mark.slow
@both_kinds
@given(scene=scenes)
@few_examples
def test_a_caseload_is_listed_in_the_order_of_a_plain_reference(
    store: RelationshipStore, clock: Clock, kind: AnyKind, scene: Scene
) -> None:
    fill(store, clock, kind, scene.names, scene.ended)
    query = CaseloadQuery("it", states=scene.states, order=scene.order, with_total=True)
    expected = in_order(store, kind, query)
    after: tuple[str, str | int] = ("", "")
    seen: list[str] = []
    moved: set[tuple[str, str]] = set()
    renamed = iter(scene.renamed)
    for _ in range(20):
        page = assigned(store, kind, query, PageRequest(scene.size, *after))
        assert page.total_size == len(expected)
        seen += [period.assignment_id for period, _ in page.records]
        after = page.next_after, page.next_after_key
        if not page.next_after:
            break
        if (number := next(renamed, 8)) < len(scene.names):
            update(store, other(kind), f"o{number}", display_name="Moved")
            moved.add(pair(kind, number))
    pairs = {one.assignment_id: (one.therapist_id, one.patient_id) for one in periods(store)}
    hidden = moved if scene.order.column == "name_key" else set()
    assert [one for one in seen if pairs[one] not in hidden] == [one for one in expected if pairs[one] not in hidden]


@both_kinds
def test_the_total_of_a_caseload_follows_its_filters(store: RelationshipStore, clock: Clock, kind: AnyKind) -> None:
    fill(store, clock, kind, ["Ada", "Zoe", "Béa"], {0})
    assign(store, *pair(kind, 0), role=enums.ROLE_PRIMARY)

    def total(**filters: Any) -> int | None:
        page = assigned(store, kind, CaseloadQuery("it", with_total=True, **filters), PageRequest(1, ""))
        return page.total_size

    assert (total(), total(states=both_states), total(states=(enums.STATE_ENDED,))) == (3, 4, 1)
    assert total(roles=(enums.ROLE_PRIMARY,)) == 1
    assert total(as_of_us=clock.now_us) == 3
    assert assigned(store, kind, CaseloadQuery("it")).total_size is None


def test_the_total_of_a_list_of_assignments_follows_its_filters(store: RelationshipStore, clock: Clock) -> None:
    fill(store, clock, THERAPIST, ["Ada", "Zoe", "Béa"], {0})

    def total(**filters: Any) -> int | None:
        return store.list_assignments(AssignmentQuery(with_total=True, **filters), PageRequest(1, "")).total_size

    assert (total(), total(states=both_states), total(states=(enums.STATE_ENDED,))) == (2, 3, 1)
    assert (total(therapist_id="it"), total(patient_id="o0"), total(patient_id="o0", states=both_states)) == (2, 0, 1)
    assert (total(roles=(enums.ROLE_TREATING,)), total(roles=(enums.ROLE_PRIMARY,))) == (2, 0)
    assert (total(as_of_us=clock.now_us), total(as_of_us=clock.now_us, therapist_id="it")) == (2, 2)
    then = clock.now_us
    clock.advance(1)
    unassign(store, "it", "o1")
    assert (total(), total(known_at_us=then)) == (1, 2)
    assert store.list_assignments(AssignmentQuery(), ALL).total_size is None


def test_the_total_of_a_patient_as_of_a_time_has_the_periods_of_merged_records(
    store: RelationshipStore, clock: Clock
) -> None:
    fill(store, clock, PATIENT, ["Ada", "Zoe"], set())
    make(store, PATIENT, "copy")
    run(store, "UPDATE patient SET merged_into_patient_id = 'it' WHERE patient_id = 'copy'")
    run(store, "INSERT INTO same_person VALUES ('copy', 'it'), ('it', 'it')")
    query = CaseloadQuery("copy", as_of_us=clock.now_us, with_total=True)
    assert assigned(store, PATIENT, query).total_size == 2
