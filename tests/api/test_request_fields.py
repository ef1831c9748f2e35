"""Field rules over the wire: errors name the invalid field, and accepted values are stored normalized."""

from typing import Any

import pytest
from caseload_server.validation.rules import NPI_SYSTEM

from tests.api.client_calls import People, Side, refused
from tests.support.servers import Client

REFUSED: list[tuple[str, dict[str, Any], str]] = [
    ("Therapist", {"display_name": " \u200b "}, "display_name"),
    ("Therapist", {"display_name": "x" * 201}, "display_name"),
    ("Therapist", {"display_name": "Ann\x85Lee"}, "display_name"),
    ("Therapist", {"email": "ann"}, "email"),
    ("Therapist", {"status": 4}, "status"),
    ("Therapist", {"status": -1}, "status"),
    ("Therapist", {"identifiers": [{"system": "mrn", "value": "1"}]}, "identifiers[0].system"),
    ("Therapist", {"identifiers": [{"system": NPI_SYSTEM, "value": "1234567890"}]}, "identifiers[0].value"),
    ("Therapist", {"identifiers": [{"system": "urn:x", "value": "1"}] * 2}, "identifiers[1]"),
    ("Therapist", {"identifiers": [{"system": "urn:x", "value": str(n)} for n in range(21)]}, "identifiers"),
    ("Therapist", {"specialties": ["hip", "Knee"]}, "specialties[1]"),
    ("Therapist", {"specialties": ["  "]}, "specialties[0]"),
    ("Therapist", {"specialties": [f"a{n}" for n in range(21)]}, "specialties"),
    ("Therapist", {"max_active_patients": -1}, "max_active_patients"),
    ("Therapist", {"annotations": {"b": "", "c": "\x7f"}}, "annotations[1].value"),
    ("Patient", {"birth_date": {"year": 2023, "month": 2, "day": 29}}, "birth_date"),
    ("Patient", {"birth_date": {"year": 1980, "day": 1}}, "birth_date"),
    ("Patient", {"birth_date": {"month": 2, "day": 1}}, "birth_date"),
    ("Patient", {"birth_date": {}}, "birth_date"),
    ("Patient", {"birth_date": {"year": 85, "month": 2, "day": 1}}, "birth_date"),
    ("Patient", {"birth_date": {"year": 1849, "month": 12, "day": 31}}, "birth_date"),
    ("Patient", {"birth_date": {"year": 9999}}, "birth_date"),
    ("Patient", {"phone_number": "0301234"}, "phone_number"),
    ("Patient", {"email": "a@b@c"}, "email"),
    ("Patient", {"status": 3}, "status"),
    ("Patient", {"identifiers": [{"system": " ", "value": "1"}]}, "identifiers[0].system"),
]


@pytest.mark.parametrize(("kind", "sent", "path"), REFUSED, ids=lambda value: value if isinstance(value, str) else "")
def test_create_and_update_name_an_invalid_field(
    shared_client: Client, kind: str, sent: dict[str, Any], path: str
) -> None:
    people = People(shared_client, kind)
    before = people.create()
    assert refused(people.create, **sent).fields == [f"{people.name}.{path}"]
    assert refused(people.update, people.id_of(before), *sent, **sent).fields == [f"{people.name}.{path}"]
    assert people.get(people.id_of(before)) == before


def test_text_is_stored_trimmed_and_normalized(client: Client) -> None:
    people = People(client, "Patient")
    record = people.create(
        display_name="  Zoe\u0308\u2003",
        email=" zoe@example.org ",
        phone_number=" +4930123 ",
        identifiers=[{"system": " urn:x ", "value": " e\u0301 "}],
        annotations={" e\u0301 ": "\u00a0e\u0301"},
    )
    assert (record.display_name, record.email, record.phone_number) == ("Zo\u00eb", "zoe@example.org", "+4930123")
    assert (record.identifiers[0].system, record.identifiers[0].value) == ("urn:x", "\u00e9")
    assert dict(record.annotations) == {"\u00e9": "\u00e9"}
    assert people.get(record.patient_id) == record


@pytest.mark.parametrize("character", ["a", "é", '"', "\\"], ids=["ascii", "two bytes", "quote", "backslash"])
def test_a_record_has_at_most_32_kib_in_total(client: Client, character: str) -> None:
    people = People(client, "Therapist")
    width = len(character.encode())
    fits = {f"{n:02}": character * (1000 // width) for n in range(31)}
    record = people.create("one", annotations=fits)
    assert 30 * 1024 < record.ByteSize() < 32 * 1024
    more = [{"system": "urn:example:" + "x" * 180, "value": f"{n:02}" + "y" * 190} for n in range(4)]
    assert refused(people.create, "two", annotations=fits, identifiers=more).fields == ["therapist"]
    assert refused(people.update, "one", identifiers=more).fields == ["therapist"]
    assert people.get("one") == record


def test_a_time_out_of_range_is_named(client: Client) -> None:
    side = Side(client, "Patient")
    for seconds, nanos in ((-(2**62), 0), (2**62, 0), (0, -1), (0, 1_000_000_000)):
        assert refused(side.assign, start_time={"seconds": seconds, "nanos": nanos}).fields == ["start_time"]
        assert refused(side.unassign, end_time={"seconds": seconds, "nanos": nanos}).fields == ["end_time"]


def test_up_to_20_invalid_fields_are_all_named(client: Client) -> None:
    people = People(client, "Patient")
    found = refused(people.create, "One", display_name="", email="x", annotations={str(n): "\x00" for n in range(32)})
    assert found.fields[:3] == ["patient_id", "patient.display_name", "patient.email"]
    assert len(found.fields) == 20
    assert found.message.endswith("(and 34 more)")
