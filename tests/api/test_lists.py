"""Filters of list RPCs. test_page_tokens.py covers pages."""

import time
from collections.abc import Iterator

import pytest

from tests.api.client_calls import SIDES, T0, People, Side, covers, refused
from tests.conftest import NewDatabase, serving
from tests.support.servers import Client

MRN = {"system": "urn:example:mrn", "value": "12"}


@pytest.fixture(scope="module", params=SIDES)
def named(new_database: NewDatabase, request: pytest.FixtureRequest) -> Iterator[People]:
    """People who are found by their names. Tests only read them."""
    with new_database() as url, serving(url) as server:
        people = People(Client(server.address), request.param)
        for one, name in zip(
            "abcde", ["Zoë Müller-Lüdenscheidt", "Ann Lee", "Anja", "100% Sure", "Straße"], strict=True
        ):
            people.create(one, display_name=name)
        yield people
        people.client.close()


def found(people: People, *, show_deleted: bool = False, **wanted: object) -> list[str]:
    return people.ids(people.call("List", filter=wanted, show_deleted=show_deleted))


@covers("List{A}sRequest.filter", "{A}Filter.name_prefix")
@pytest.mark.parametrize(
    ("prefix", "matches"),
    [
        ("zo", ["a"]),
        ("ZOË", ["a"]),
        ("lud mu zoe", ["a"]),
        ("muller-lud", ["a"]),
        ("an", ["b", "c"]),
        ("an lee", ["b"]),
        ("ee", []),
        ("a%", ["b", "c"]),
        ("100%", ["d"]),
        ("100_", ["d"]),
        ("straß", ["e"]),
        ("STRASS", ["e"]),
    ],
)
def test_each_prefix_word_matches_the_start_of_a_name_word(named: People, prefix: str, matches: list[str]) -> None:
    assert found(named, name_prefix=prefix) == matches


@pytest.mark.parametrize(
    ("prefix", "allowed"),
    [
        ("a", False),
        (" a ", False),
        ("\u00e6", False),
        ("\u5c0f", True),
        ("\uff76", True),
        ("\uae40", True),
        ("a" * 100, True),
        ("a" * 101, False),
    ],
    ids=ascii,
)
def test_a_name_prefix_has_2_to_100_characters_or_one_that_can_be_a_name(
    named: People, prefix: str, *, allowed: bool
) -> None:
    if allowed:
        assert found(named, name_prefix=prefix) == []
    else:
        assert refused(found, named, name_prefix=prefix).fields == ["filter.name_prefix"]


@pytest.mark.parametrize("prefix", ["--", "__", "- -", "\u0301\u0301", "\u200b\u200c'"], ids=ascii)
def test_a_name_prefix_without_a_word_is_rejected(named: People, prefix: str) -> None:
    assert refused(found, named, name_prefix=prefix).fields == ["filter.name_prefix"]


@covers("{A}Filter.statuses")
def test_a_status_filter_matches_any_of_its_statuses(people: People) -> None:
    people.create("a")
    people.create("b", status=people.idle)
    assert found(people, statuses=[people.idle]) == ["b"]
    assert found(people, statuses=[people.idle, 1, 1]) == ["a", "b"]
    assert refused(found, people, statuses=[1, 0]).fields == ["filter.statuses[1]"]


@covers("{A}Filter.identifier")
def test_an_identifier_filter_matches_system_and_value(people: People) -> None:
    people.create("a", identifiers=[MRN])
    people.create("b", identifiers=[{**MRN, "value": "13"}])
    people.create("c", identifiers=[{**MRN, "system": "urn:example:other"}])
    assert found(people, identifier=MRN) == ["a"]
    assert found(people, identifier={**MRN, "value": "1"}) == []
    people.delete("a")
    assert found(people, identifier=MRN) == []
    assert found(people, identifier=MRN, show_deleted=True) == ["a"]


@covers("{A}Filter.unassigned")
def test_unassigned_matches_records_without_an_active_assignment(side: Side) -> None:
    side.mine.create("other")
    side.assign()
    assert found(side.mine, unassigned=True) == ["other"]
    side.unassign()
    assert found(side.mine, unassigned=True) == ["other", f"{side.name[0]}1"]


@covers("List{A}sRequest.show_deleted")
def test_deleted_records_are_listed_only_on_request(people: People) -> None:
    for one in ("a", "b"):
        people.create(one)
    people.delete("a")
    assert found(people) == ["b"]
    assert found(people, show_deleted=True) == ["a", "b"]


def test_filters_of_a_record_list_are_combined_with_and(people: People) -> None:
    people.create("a", display_name="Ann", status=people.idle)
    people.create("b", display_name="Ann")
    people.create("c", display_name="Bob")
    assert found(people, name_prefix="ann", statuses=[1], unassigned=True) == ["b"]


def test_an_empty_filter_matches_every_record(people: People) -> None:
    people.create("a")
    assert people.ids(people.call("List")) == found(people) == ["a"]


@covers("List{A}{B}sRequest.{a}_id")
def test_a_parent_list_returns_its_assignments_with_the_current_other_record(side: Side) -> None:
    side.others.create("elsewhere")
    side.mine.create("else")
    made = side.assign(role=1).assignment
    pair = ("else", "elsewhere") if side.kind == "Therapist" else ("elsewhere", "else")
    side.assign(*pair)
    [entry] = side.page().entries
    other = side.others.get(side.others.id_of(getattr(entry, side.others.name)))
    assert (entry.assignment, getattr(entry, side.others.name)) == (made, other)
    assert getattr(other, side.others.count) == 1
    unknown = refused(side.page, "unknown")
    assert unknown.reason == f"{side.kind.upper()}_NOT_FOUND"


@covers("List{A}{B}sRequest.roles")
def test_a_roles_filter_restricts_the_list(side: Side) -> None:
    made = side.assign(role=3).assignment
    assert side.listed(roles=[3]) == side.listed(roles=[1, 3, 3]) == [made.assignment_id]
    assert side.listed(roles=[1, 2, 4]) == []
    assert refused(side.page, roles=[3, 0]).fields == ["roles[1]"]


@covers("List{A}{B}sRequest.states")
def test_a_states_filter_restricts_the_list_and_defaults_to_active(side: Side) -> None:
    first = side.assign().assignment.assignment_id
    side.unassign()
    second = side.assign().assignment.assignment_id
    assert side.listed() == side.listed(states=[1]) == [second]
    assert side.listed(states=[2]) == [first]
    assert side.listed(states=[1, 2]) == [first, second]
    assert refused(side.page, states=[0]).fields == ["states[0]"]


@covers("List{A}{B}sRequest.as_of_time")
def test_as_of_time_matches_assignments_in_force_then(side: Side) -> None:
    first = side.assign(start_time={"seconds": T0}).assignment.assignment_id
    side.unassign(end_time={"seconds": T0 + 60})
    second = side.assign(start_time={"seconds": T0 + 60}).assignment.assignment_id
    in_force = {seconds: side.listed(as_of_time={"seconds": T0 + seconds}) for seconds in (-1, 0, 59, 60, 1000)}
    assert in_force == {-1: [], 0: [first], 59: [first], 60: [second], 1000: [second]}
    side.unassign(end_reason=5)
    assert side.listed(as_of_time={"seconds": T0 + 1000}) == []


def test_as_of_time_is_at_most_a_minute_ahead_and_not_combined_with_states(side: Side) -> None:
    assert refused(side.page, as_of_time={"seconds": int(time.time()) + 3600}).fields == ["as_of_time"]
    assert refused(side.page, as_of_time={"seconds": T0}, states=[1]).fields == ["as_of_time"]


def test_the_lists_of_a_deleted_parent_include_deleted_records(side: Side) -> None:
    made = side.assign().assignment
    for people in (side.mine, side.others):
        people.delete(f"{people.name[0]}1", force=True)
    [entry] = side.page(states=[2]).entries
    assert entry.assignment.assignment_id == made.assignment_id
    assert getattr(entry, side.others.name).HasField("delete_time")
