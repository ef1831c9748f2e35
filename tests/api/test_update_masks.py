"""Update sets exactly the fields that the mask names."""

from typing import Any

import grpc
import pytest
from google.api import field_behavior_pb2
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.api.client_calls import People, covers, refused
from tests.api.sample_values import SAMPLES, behaves

ONE = "0190a3c4-0000-7000-8000-000000000001"
BEFORE = SAMPLES | {"status": 1}
AFTER: dict[str, Any] = {
    "display_name": "Bea Ross",
    "aliases": ["Beatrice Ross", "Bea Stone"],
    "email": "bea@example.org",
    "status": 2,
    "identifiers": [{"system": "urn:example:two", "value": "2"}],
    "specialties": ["hip", "knee"],
    "max_active_patients": 0,
    "annotations": {"room": "2"},
    "birth_date": {"year": 1990, "month": 1, "day": 1},
    "phone_number": "+4940",
}
"""A different value for every field that a caller can set."""


def settable(people: People) -> list[str]:
    """The fields that a mask may name, without the id."""
    return [
        field.name
        for field in people.message.DESCRIPTOR.fields
        if not behaves(field, field_behavior_pb2.OUTPUT_ONLY) and field.name not in {"etag", f"{people.name}_id"}
    ]


def values(people: People, source: dict[str, Any]) -> dict[str, Any]:
    known = {**source, "identifiers": source.get("identifiers", [{"system": "urn:example:one", "value": "1"}])}
    return {name: known[name] for name in settable(people)}


def same(one: Any, other: Any) -> bool:
    """Whether two records are equal, except for etag and update_time."""
    pair = [type(record).FromString(record.SerializeToString()) for record in (one, other)]
    for record in pair:
        record.ClearField("etag")
        record.ClearField("update_time")
    return bool(pair[0] == pair[1])


STRANGE = (
    "*",
    "",
    "etag",
    "create_time",
    "active_patient_count",
    "nothing",
    "displayName",
    "email.x",
    "identifiers.value",
)


def masks(people: People) -> st.SearchStrategy[list[str]]:
    good = [*settable(people), f"{people.name}_id"]
    named = st.lists(st.sampled_from(good), max_size=5)
    return st.just([]) | st.just(["*"]) | named | st.lists(st.sampled_from([*good, *STRANGE]), min_size=2, max_size=5)


def touched_by(people: People, mask: list[str], sent: list[str]) -> set[str]:
    """The fields that an update sets according to the contract."""
    return set(settable(people)) if mask == ["*"] else set(mask or sent) & set(settable(people))


def what_is_wrong(people: People, mask: list[str], sent: list[str]) -> list[str]:
    """The expected violations of an update: its values are valid, but required ones may be missing."""
    good = {*settable(people), f"{people.name}_id", *(["*"] if mask == ["*"] else [])}
    unsent = touched_by(people, mask, sent) - set(sent)
    return [f"update_mask.paths[{n}]" for n, path in enumerate(mask) if path not in good] + [
        f"{people.name}.{name}" for name in ("display_name", "status") if name in unsent
    ]


@covers("Update{A}Request.{a}", "Update{A}Request.update_mask")
@covers("{A}.display_name", "{A}.aliases", "{A}.email", "{A}.status", "{A}.identifiers", "{A}.annotations")
@settings(max_examples=30)
@given(data=st.data())
def test_an_update_sets_only_the_fields_of_the_mask(people: People, data: st.DataObject) -> None:
    mask = data.draw(masks(people), label="mask")
    sent = data.draw(st.lists(st.sampled_from(settable(people)), unique=True), label="sent")
    body = {name: value for name, value in values(people, AFTER).items() if name in sent}
    before = people.create(**values(people, BEFORE))
    record_id = people.id_of(before)
    try:
        if wrong := what_is_wrong(people, mask, sent):
            assert sorted(refused(people.update, record_id, *mask, **body).fields) == sorted(wrong)
            assert people.get(record_id) == before
            return
        expected = type(before).FromString(before.SerializeToString())
        for name in touched_by(people, mask, sent):
            expected.ClearField(name)
            expected.MergeFrom(people.message(**{name: body[name]} if name in body else {}))
        after = people.update(record_id, *mask, **body)
        assert same(after, expected)
        assert (after.etag == before.etag) == (after.update_time == before.update_time) == same(before, expected)
        assert people.get(record_id) == after
    finally:
        people.delete(record_id)  # frees the identifiers for the next example


def test_the_changed_values_cover_every_field(people: People) -> None:
    assert set(settable(people)) <= AFTER.keys()
    before, after = people.message(**values(people, BEFORE)), people.message(**values(people, AFTER))
    assert [name for name in settable(people) if getattr(before, name) == getattr(after, name)] == []


@pytest.mark.parametrize("mask", [[], ["*"]])
def test_read_modify_write_of_a_record_works(people: People, mask: list[str]) -> None:
    people.create("one", **values(people, BEFORE))
    record = people.get("one")
    record.display_name = "Bea Ross"
    put = people.record(people.call("Update", record=record, update_mask={"paths": mask}))
    assert put.display_name == "Bea Ross"
    assert same(put, record)


@pytest.mark.parametrize("mask", [[], ["*"]])
def test_update_ignores_server_set_fields_in_the_body(people: People, mask: list[str]) -> None:
    before = people.create("one", **values(people, BEFORE))
    record = people.get("one")
    for field in people.message.DESCRIPTOR.fields:
        if behaves(field, field_behavior_pb2.OUTPUT_ONLY):
            record.ClearField(field.name)
            record.MergeFrom(people.message(**{field.name: SAMPLES[field.name]}))
    assert people.record(people.call("Update", record=record, update_mask={"paths": mask})) == before


def test_naming_an_absent_field_in_the_mask_clears_it(people: People) -> None:
    people.create("one", **values(people, BEFORE))
    optional = [name for name in settable(people) if name not in {"display_name", "status"}]
    cleared = people.update("one", *optional)
    assert [name for name in optional if name in {field.name for field, _ in cleared.ListFields()}] == []
    assert people.get("one") == cleared


def test_a_no_op_update_writes_nothing_and_keeps_etag_and_update_time(people: People) -> None:
    before = people.create("one", **values(people, BEFORE))
    head = people.head()
    for mask in ([], ["*"], settable(people), [f"{people.name}_id"]):
        answer = people.call("Update", record=before, update_mask={"paths": mask})
        assert (people.record(answer), answer.revision) == (before, head)


@covers("{A}.etag", "{A}.{a}_id")
def test_update_rejects_a_stale_etag_even_when_nothing_would_change(people: People) -> None:
    stale = people.create("one")
    fresh = people.update("one", display_name="Bea")
    for name in ("Bea", "Cid"):
        found = refused(people.update, "one", display_name=name, etag=stale.etag)
        assert (found.code, found.reason) == (grpc.StatusCode.ABORTED, "ETAG_MISMATCH")
    assert people.get("one") == fresh
    assert people.update("one", display_name="Cid", etag=fresh.etag).etag != fresh.etag


def test_update_rejects_unknown_and_deleted_records(people: People) -> None:
    assert refused(people.update, "unknown", display_name="Bea").reason == f"{people.kind.upper()}_NOT_FOUND"
    people.create("one")
    people.delete("one")
    assert refused(people.update, "one", display_name="Bea").reason == f"{people.kind.upper()}_DELETED"


@covers("Update{A}Request.request_id")
def test_update_with_a_used_request_id_returns_the_current_record(people: People) -> None:
    etag = people.create("one").etag
    order = {"record": people.body("one", display_name="Bea", etag=etag), "request_id": ONE}
    first = people.call("Update", **order)
    renamed = people.update("one", display_name="Cid")
    again = people.call("Update", **order)
    assert (people.record(again), again.revision) == (renamed, first.revision)
    assert people.get("one") == renamed


@covers("Update{A}Request.validate_only")
def test_update_with_validate_only_writes_nothing(people: People) -> None:
    before = people.create("one")
    answer = people.call("Update", record=people.body("one", display_name=" Bea "), validate_only=True)
    assert (people.record(answer).display_name, answer.revision) == ("Bea", "")
    assert people.get("one") == before
    stale = people.body("one", display_name="Bea", etag="stale")
    assert refused(people.call, "Update", record=stale, validate_only=True).reason == "ETAG_MISMATCH"


def test_an_update_rejects_a_taken_identifier_and_frees_its_own(people: People) -> None:
    one, two = ({"system": "urn:example:mrn", "value": value} for value in "12")
    people.create("one", identifiers=[one])
    people.create("two", identifiers=[two])
    assert refused(people.update, "two", identifiers=[one]).reason == "IDENTIFIER_TAKEN"
    people.update("one", "identifiers")
    assert people.update("two", identifiers=[one, two]).identifiers[0].value == "1"
