"""Fields and behaviour that only therapists have."""

from tests.api.client_calls import People, Side, covers, refused


@covers("Therapist.specialties")
def test_specialties_are_stored_in_order(therapists: People) -> None:
    record = therapists.create("t1", specialties=["knee", "hand-therapy"])
    assert list(record.specialties) == ["knee", "hand-therapy"]
    assert therapists.get("t1") == record


@covers("Therapist.max_active_patients")
def test_an_absent_capacity_differs_from_a_capacity_of_zero(therapists: People) -> None:
    assert not therapists.create("t1").HasField("max_active_patients")
    none = therapists.create("t2", max_active_patients=0)
    assert none.HasField("max_active_patients")
    assert therapists.get("t2") == none


@covers("Assign{A}Request.ignore_capacity")
def test_assign_above_capacity_requires_ignore_capacity(side: Side) -> None:
    side.patients.create("p2")
    side.therapists.update("t1", max_active_patients=1)
    side.assign()
    stopped = refused(side.assign, "t1", "p2")
    assert (stopped.reason, stopped.metadata) == ("THERAPIST_AT_CAPACITY", {"limit": "1", "current": "1"})
    assert side.assign("t1", "p2", ignore_capacity=True).created
    assert side.therapists.get("t1").active_patient_count == 2


def test_capacity_can_be_lowered_below_the_active_count(side: Side) -> None:
    side.assign()
    lowered = side.therapists.update("t1", "max_active_patients", max_active_patients=0)
    assert (lowered.max_active_patients, lowered.active_patient_count) == (0, 1)
    assert not side.assign().created


def test_a_mask_clears_an_absent_capacity(therapists: People) -> None:
    therapists.create("t1", max_active_patients=3)
    assert not therapists.update("t1", "max_active_patients").HasField("max_active_patients")


@covers("TherapistFilter.specialties")
def test_a_specialties_filter_matches_any_of_them(therapists: People) -> None:
    therapists.create("a", specialties=["knee"])
    therapists.create("b", specialties=["hand", "hip"])
    therapists.create("c")
    assert therapists.ids(therapists.call("List", filter={"specialties": ["knee", "hip"]})) == ["a", "b"]
    assert therapists.ids(therapists.call("List", filter={"specialties": ["kne"]})) == []


@covers("TherapistFilter.accepting_patients")
def test_accepting_patients_matches_therapists_with_free_capacity(therapists: People, patients: People) -> None:
    therapists.create("bounded", max_active_patients=1)
    therapists.create("closed", max_active_patients=0)
    therapists.create("gone")
    therapists.create("leave", status=2)
    therapists.create("open")
    therapists.delete("gone")
    accepting = {"filter": {"accepting_patients": True}, "show_deleted": True}
    assert therapists.ids(therapists.call("List", **accepting)) == ["bounded", "open"]
    patients.create("p1")
    Side(therapists.client, "Therapist").assign("bounded", "p1")
    assert therapists.ids(therapists.call("List", **accepting)) == ["open"]
