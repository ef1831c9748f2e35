"""Identifiers, which one live record has, and other names."""

import pytest

from tests.api.client_calls import People, covers, refused

ONE = "0190a3c4-0000-7000-8000-000000000001"


@covers("{A}.identifiers", "Identifier.system", "Identifier.value")
def test_an_identifier_is_unique_among_live_records(people: People) -> None:
    mrn = {"system": "urn:example:mrn", "value": "12"}
    created = people.create("one", identifiers=[mrn, {**mrn, "value": "13"}, {**mrn, "system": "urn:example:other"}])
    assert [(i.system, i.value) for i in created.identifiers] == [
        ("urn:example:mrn", "12"),
        ("urn:example:mrn", "13"),
        ("urn:example:other", "12"),
    ]
    stopped = refused(people.create, "two", identifiers=[mrn])
    assert (stopped.reason, stopped.details["ResourceInfo"].resource_name) == ("IDENTIFIER_TAKEN", "one")
    people.delete("one")
    people.create("two", identifiers=[mrn])
    stopped = refused(people.call, "Undelete", id="one")
    named = stopped.details["ResourceInfo"]
    assert (stopped.reason, named.resource_name) == ("IDENTIFIER_TAKEN", "two")
    assert named.resource_type == f"caseload.v1.{people.kind}"


@pytest.mark.parametrize(
    "same",
    ["GC-1\u200b", "\ufeffGC-1", "G\u200cC-1", "GC\u00ad-1", "GC-\uff11", "\uff27\uff23\uff0d\uff11", " GC-1\u3000"],
    ids=ascii,
)
def test_an_identifier_that_looks_the_same_is_the_same(people: People, same: str) -> None:
    card, looks_same = ({"system": "urn:example:card", "value": value} for value in ("GC-1", same))
    created = people.create("one", identifiers=[looks_same])
    assert created.identifiers[0].value == same.strip()
    for value in (card, looks_same):
        stopped = refused(people.create, "two", identifiers=[value])
        assert (stopped.reason, stopped.details["ResourceInfo"].resource_name) == ("IDENTIFIER_TAKEN", "one")
        assert people.ids(people.call("List", filter={"identifier": value})) == ["one"]
    stopped = refused(people.create, "two", identifiers=[{**card, "value": "gc-1"}, looks_same, card])
    field = f"{people.kind.lower()}.identifiers[2]"
    assert (stopped.reason, stopped.fields) == ("INVALID_FIELD", [field])
    people.create("two", identifiers=[{**card, "value": "gc-1"}, {**looks_same, "system": "urn:example:other"}])
    people.delete("one")
    people.create("three", identifiers=[card])
    assert refused(people.call, "Undelete", id="one").details["ResourceInfo"].resource_name == "three"


@covers("Undelete{A}Request.release_identifiers")
def test_an_undelete_can_drop_the_identifiers_that_others_have(people: People) -> None:
    mine, theirs = ({"system": "urn:example:mrn", "value": value} for value in ("1", "2"))
    people.create("one", identifiers=[theirs, mine])
    people.delete("one")
    people.create("two", identifiers=[theirs])
    asked = {"id": "one", "release_identifiers": True, "request_id": ONE}
    seen = people.record(people.call("Undelete", **asked, validate_only=True))
    assert [one.value for one in seen.identifiers] == ["1"]
    assert people.get("one").HasField("delete_time")
    first = people.call("Undelete", **asked)
    assert people.record(first) == people.get("one")
    assert [one.value for one in people.get("one").identifiers] == ["1"]
    assert people.call("Undelete", **asked) == first
    assert people.ids(people.call("List", filter={"identifier": theirs})) == ["two"]
    assert refused(people.call, "Undelete", id="one", request_id=ONE).reason == "REQUEST_ID_REUSED"


@covers("{A}.aliases")
def test_other_names_are_stored_and_found_as_the_name_is(people: People) -> None:
    record = people.create("one", aliases=["  Zoë Mu\u0308ller-Lee ", "李 小龍"])
    assert list(record.aliases) == ["Zoë Müller-Lee", "李 小龍"]
    assert people.get("one") == record
    for prefix in ("ann", "ZOE", "muller", "lee", "小龍"):
        assert people.ids(people.call("List", filter={"name_prefix": prefix})) == ["one"], prefix
    people.update("one", "aliases", aliases=["Bo"])
    assert people.ids(people.call("List", filter={"name_prefix": "muller"})) == []
    assert people.ids(people.call("List", filter={"name_prefix": "bo"})) == ["one"]
    assert list(people.update("one", "aliases").aliases) == []
    assert people.ids(people.call("List", filter={"name_prefix": "bo"})) == []
    assert people.ids(people.call("List", filter={"name_prefix": "lee"})) == ["one"]


@pytest.mark.parametrize(
    ("aliases", "fields"),
    [
        (["Ann", ""], ["aliases[1]"]),
        ([" \u3164 "], ["aliases[0]"]),
        (["Zoë", "Bo", "Zoe\u0308"], ["aliases[2]"]),
        (["x" * 201, "Ann", "a\nb"], ["aliases[0]", "aliases[2]"]),
        ([f"Ann {number}" for number in range(11)], ["aliases"]),
    ],
    ids=["empty", "invisible", "twice", "too long", "too many"],
)
def test_invalid_other_names_are_rejected_with_their_index(
    shared_people: People, aliases: list[str], fields: list[str]
) -> None:
    people = shared_people
    expected = [f"{people.name}.{field}" for field in fields]
    assert refused(people.create, aliases=aliases).fields == expected
    one = people.id_of(people.create())
    assert refused(people.update, one, "aliases", aliases=aliases).fields == expected
    most = ["x" * 200, *(f"Ann {number}" for number in range(9))]
    assert list(people.create(aliases=most).aliases) == most


def test_other_names_count_towards_the_size_of_a_record(people: People) -> None:
    notes = {f"note-{number}": "n" * 1000 for number in range(31)}
    record = people.create("one", annotations=notes)
    long = ["ä" * 190 + str(number) for number in range(10)]
    for call in (
        lambda: people.create("two", annotations=notes, aliases=long),
        lambda: people.update("one", aliases=long),
    ):
        stopped = refused(call)
        assert (stopped.reason, stopped.fields) == ("INVALID_FIELD", [people.name])
    assert people.get("one") == record
