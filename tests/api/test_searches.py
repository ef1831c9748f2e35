"""Searches as a front desk makes them: filters, orders and totals. tests/store has their rules on many records."""

import itertools
from typing import Any

import pytest
from google.protobuf.json_format import MessageToDict

from tests.api.client_calls import T0, People, Side, covers, refused
from tests.api.test_lists import found
from tests.support.api_driver import ApiDriver

MRN = {"system": "urn:example:mrn", "value": "12"}
BY_NAME = ["Åsa", "bob", "Zoë", "zorro"]


@covers("PatientFilter.birth_date")
def test_a_birth_date_filter_finds_the_dates_within_it(patients: People) -> None:
    dates: dict[str, dict[str, int]] = {
        "day": {"year": 1990, "month": 5, "day": 1},
        "day-2": {"year": 1990, "month": 5, "day": 2},
        "june": {"year": 1990, "month": 6, "day": 1},
        "month": {"year": 1990, "month": 5},
        "other": {"year": 1991, "month": 5, "day": 1},
        "year": {"year": 1990},
    }
    for record_id, date in dates.items():
        patients.create(record_id, birth_date=date)
    patients.create("unknown")
    assert found(patients, birth_date={"year": 1990}) == ["day", "day-2", "june", "month", "year"]
    assert found(patients, birth_date={"year": 1990, "month": 5}) == ["day", "day-2", "month"]
    assert found(patients, birth_date={"year": 1990, "month": 5, "day": 1}) == ["day"]
    assert found(patients, birth_date={"year": 1992}) == []


@pytest.mark.parametrize("date", [{}, {"year": 1990, "day": 1}, {"month": 5}, {"year": 85}, {"year": 9999}], ids=str)
def test_an_invalid_birth_date_in_a_filter_is_named(patients: People, date: dict[str, int]) -> None:
    assert refused(found, patients, birth_date=date).fields == ["filter.birth_date"]


@covers("PatientFilter.phone_number")
def test_a_phone_number_filter_matches_the_whole_number(patients: People) -> None:
    patients.create("a", phone_number="+4930123")
    patients.create("b", phone_number="+49301234")
    assert found(patients, phone_number=" +4930123 ") == ["a"]
    for invalid in ("030123", "+49 30 123", " "):
        assert refused(found, patients, phone_number=invalid).fields == ["filter.phone_number"]


@covers("{A}Filter.email")
def test_an_email_filter_ignores_case(people: People) -> None:
    people.create("a", email="Ann.Lee@Example.org")
    people.create("b", email="jürgen@example.org")
    people.create("c", email="lee@example.org")
    assert found(people, email="ann.lee@EXAMPLE.ORG ") == ["a"]
    assert found(people, email="JU\u0308RGEN@example.org") == ["b"]
    for invalid in ("ann", " "):
        assert refused(found, people, email=invalid).fields == ["filter.email"]


@covers("{A}Filter.identifier_value")
def test_an_identifier_value_is_found_in_any_system(people: People) -> None:
    people.create("a", identifiers=[MRN])
    people.create("b", identifiers=[{"system": "urn:example:card", "value": "12"}])
    people.create("c", identifiers=[{**MRN, "value": "123"}])
    assert found(people, identifier_value=" 12 ") == ["a", "b"]
    assert found(people, identifier_value="\uff11\uff12") == ["a", "b"]
    assert found(people, identifier_value="12", identifier=MRN) == ["a"]
    for invalid in (" ", "1\x00", "x" * 201):
        assert refused(found, people, identifier_value=invalid).fields == ["filter.identifier_value"]


@covers("PatientFilter.without_primary")
def test_without_primary_matches_patients_without_an_active_primary_assignment(api: ApiDriver) -> None:
    def listed() -> list[str]:
        answer = api.send("ListPatients", filter={"without_primary": True})
        return [record.patient_id for record in answer.patients]

    api.assign("t1", "p1", role=1)
    api.assign("t1", "p2")
    assert listed() == ["p2", "p3"]
    api.unassign("t1", "p1")
    assert listed() == ["p1", "p2", "p3"]


@covers("{A}Filter.deleted_only")
def test_deleted_only_lists_only_soft_deleted_records(people: People) -> None:
    for one in "abc":
        people.create(one)
    people.delete("b")
    assert found(people, deleted_only=True) == found(people, deleted_only=True, show_deleted=True) == ["b"]
    assert found(people, deleted_only=True, name_prefix="ann") == ["b"]


@covers("List{A}sRequest.order_by")
def test_records_are_listed_in_the_order_of_names_and_of_changes(people: People) -> None:
    for number, name in enumerate(reversed(BY_NAME)):
        people.create(f"{number}", display_name=name)
    people.update("2", email="bob@example.org")

    def names(order_by: str, size: int) -> list[str]:
        return [record.display_name for record in walk(people, order_by=order_by, page_size=size)]

    for size in (1, 3, 50):
        assert names("display_name", size) == BY_NAME
        assert names(" display_name  desc", size) == BY_NAME[::-1]
        assert names("update_time", size) == ["zorro", "Zoë", "Åsa", "bob"]
        assert names("update_time desc", size) == ["bob", "Åsa", "Zoë", "zorro"]
        assert names("", size) == BY_NAME[::-1]
    assert refused(people.call, "List", order_by="email").fields == ["order_by"]


def walk(people: People, **fields: Any) -> list[Any]:
    """The records of all pages."""
    records: list[Any] = []
    for _ in range(1000):
        answer = people.call("List", **fields)
        records += people.records(answer)
        if not answer.next_page_token:
            return records
        fields["page_token"] = answer.next_page_token
    raise AssertionError("no end")


def test_an_ordered_search_returns_each_match_once(people: People) -> None:
    for number, name in enumerate(itertools.islice(itertools.cycle(BY_NAME), 20)):
        people.create(f"r{number:02}", display_name=f"{name} Lee")
    people.create("other", display_name="Cleo Roe")
    listed = walk(people, order_by="display_name", page_size=3, filter={"name_prefix": "lee"})
    assert [people.id_of(record) for record in listed] == [f"r{n:02}" for k in range(4) for n in range(k, 20, 4)]


@covers("List{A}{B}sRequest.order_by")
def test_a_caseload_is_listed_in_the_order_of_names_and_of_starts(side: Side) -> None:
    mine = f"{side.name[0]}1"
    for number, name in enumerate(BY_NAME):
        side.others.create(name.lower().encode("ascii", "ignore").decode(), display_name=name)
        other = side.others.ids(side.others.call("List", filter={"name_prefix": name}))[0]
        pair = (mine, other) if side.kind == "Therapist" else (other, mine)
        side.assign(*pair, start_time={"seconds": T0 + number * 37 % 5})

    def names(order_by: str) -> list[str]:
        listed, token = [], ""
        for _ in range(10):
            page = side.page(order_by=order_by, page_size=2, page_token=token)
            listed += [getattr(entry, side.others.name).display_name for entry in page.entries]
            token = page.next_page_token
            if not token:
                break
        return listed

    assert names("display_name") == BY_NAME
    assert names("start_time") == ["Åsa", "zorro", "bob", "Zoë"]
    assert names("start_time desc") == ["Zoë", "bob", "zorro", "Åsa"]
    assert sorted(names("")) == sorted(BY_NAME)
    for invalid in ("display_name desc", "update_time"):
        assert refused(side.page, order_by=invalid).fields == ["order_by"]


@covers("List{A}sRequest.include_total_size")
def test_a_total_is_the_number_of_matches_on_all_pages_and_absent_unless_asked(people: People) -> None:
    for one in "abc":
        people.create(one)
    assert not people.call("List", page_size=1).HasField("total_size")
    answer = people.call("List", page_size=2, include_total_size=True, order_by="display_name")
    assert (answer.total_size, len(people.ids(answer))) == (3, 2)
    sent = {"page_size": 2, "include_total_size": True, "order_by": "display_name"}
    rest = people.call("List", page_token=answer.next_page_token, **sent)
    assert (rest.total_size, len(people.ids(rest))) == (3, 1)
    none = people.call("List", include_total_size=True, filter={"name_prefix": "nobody"})
    assert (none.HasField("total_size"), none.total_size) == (True, 0)


@covers("List{A}{B}sRequest.include_total_size")
def test_a_caseload_has_a_total(side: Side) -> None:
    none = side.page(include_total_size=True)
    assert (none.HasField("total_size"), none.total_size) == (True, 0)
    side.assign()
    assert side.page(include_total_size=True).total_size == 1
    assert not side.page().HasField("total_size")


@covers("ListAssignmentsRequest.include_total_size")
def test_a_list_of_assignments_has_a_total(api: ApiDriver) -> None:
    for patient in ("p1", "p2", "p3"):
        api.assign("t1", patient)
    answer = api.send("ListAssignments", page_size=1, include_total_size=True)
    assert (answer.total_size, len(answer.assignments)) == (3, 1)
    assert not api.send("ListAssignments").HasField("total_size")


def test_a_search_by_name_and_birth_date_finds_a_partly_known_date(patients: People) -> None:
    patients.create("a", display_name="Zoë Lee", birth_date={"year": 1990})
    patients.create("b", display_name="Zoë Lee", birth_date={"year": 1991, "month": 5, "day": 1})
    [record] = patients.records(patients.call("List", filter={"name_prefix": "zoe", "birth_date": {"year": 1990}}))
    assert MessageToDict(record.birth_date) == {"year": 1990}


@pytest.mark.parametrize("before", ["\u202a", "\u202b", "\u202e", "\u2066", "\u2068"], ids=ascii)
def test_a_search_ignores_the_characters_that_set_the_writing_direction(patients: People, before: str) -> None:
    """A name that is copied from another program can have them around it."""
    patients.create("a", display_name="Zoë Lee")
    assert found(patients, name_prefix=f"{before}zoe\u202c \u2069lee") == ["a"]
    assert refused(found, patients, name_prefix=f"{before}\u202c").fields == ["filter.name_prefix"]
