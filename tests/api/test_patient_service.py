"""Fields and behaviour that only patients have."""

from tests.api.client_calls import People, Side, covers


@covers("Patient.birth_date", "Patient.phone_number")
def test_birth_date_and_phone_number_are_stored(patients: People) -> None:
    record = patients.create("p1", birth_date={"year": 1980, "month": 2, "day": 29}, phone_number="+4930123456")
    assert (record.birth_date.year, record.birth_date.month, record.birth_date.day) == (1980, 2, 29)
    assert record.phone_number == "+4930123456"
    assert patients.get("p1") == record


def test_unset_fields_are_absent(patients: People) -> None:
    record = patients.create("p1")
    assert not record.HasField("birth_date")
    assert (record.email, record.phone_number, record.primary_therapist_id) == ("", "", "")


def test_primary_therapist_id_follows_the_assignments(side: Side) -> None:
    side.therapists.create("t2")
    side.assign("t1", role=1)
    assert side.patients.get("p1").primary_therapist_id == "t1"
    side.assign("t2", role=1, replace_primary=True)
    assert side.patients.get("p1").primary_therapist_id == "t2"
    side.unassign("t2")
    assert side.patients.get("p1").primary_therapist_id == ""
