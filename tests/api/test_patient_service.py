"""Fields and behaviour that only patients have."""

from google.protobuf.json_format import MessageToDict

from tests.api.client_calls import People, Side, covers


@covers("Patient.birth_date", "Patient.phone_number")
def test_birth_date_and_phone_number_are_stored(patients: People) -> None:
    record = patients.create("p1", birth_date={"year": 1980, "month": 2, "day": 29}, phone_number="+4930123456")
    assert (record.birth_date.year, record.birth_date.month, record.birth_date.day) == (1980, 2, 29)
    assert record.phone_number == "+4930123456"
    assert patients.get("p1") == record


def test_a_birth_date_may_be_a_year_or_a_year_and_a_month(patients: People) -> None:
    for date in ({"year": 1980}, {"year": 1980, "month": 2}, {"year": 1850, "month": 1, "day": 1}):
        record = patients.create(birth_date=date)
        assert MessageToDict(record.birth_date) == date
        assert patients.get(record.patient_id) == record
    patients.update(record.patient_id, birth_date={"year": 1980, "month": 0})
    assert MessageToDict(patients.get(record.patient_id).birth_date) == {"year": 1980}


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
