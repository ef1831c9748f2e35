"""Merges that are rejected as a whole: limits, birth dates, statuses, missing and deleted patients."""

import json
from bisect import bisect_left

import pytest
from caseload_server.domain import enums, errors
from caseload_server.domain.requests import Merge
from caseload_server.store import PATIENT, RelationshipStore

from tests.store.merge_setup import merge, with_identifiers
from tests.store.store_calls import VALIDATE, assign, delete, dump, make, unassign, update


@pytest.mark.parametrize(
    ("field", "limit", "source", "target"),
    [
        ("identifiers", 20, with_identifiers(*map(str, range(100, 111))), with_identifiers(*map(str, range(50, 59)))),
        ("aliases", 10, json.dumps([str(n) for n in range(5)]), json.dumps([str(n) for n in range(5, 9)])),
    ],
)
def test_what_would_exceed_a_limit_is_rejected_as_a_whole(
    people: RelationshipStore, field: str, limit: int, source: str, target: str
) -> None:
    """At first the target would have exactly the limit."""
    update(people, PATIENT, "s", **{field: source})
    update(people, PATIENT, "p", **{field: target})
    merge(people, call=VALIDATE)
    update(people, PATIENT, "p", **{field: target[:-1] + (',"x"]' if field == "aliases" else ',["mrn","x"]]')})
    before = dump(people)
    with pytest.raises(errors.MergeTooLarge) as refusal:
        merge(people)
    assert refusal.value.metadata == {"field": field, "limit": str(limit)}
    assert dump(people) == before


def test_a_target_that_would_exceed_32_kib_is_rejected(people: RelationshipStore) -> None:
    update(people, PATIENT, "p", annotations=json.dumps({f"k{n}": "x" * 1000 for n in range(32)}))
    update(people, PATIENT, "s", display_name="y" * 200)
    update(people, PATIENT, "s", aliases=json.dumps([str(n) * 200 for n in range(9)]))
    with pytest.raises(errors.MergeTooLarge) as refusal:
        merge(people)
    assert refusal.value.metadata == {"field": "patient", "limit": "32768"}


def test_a_person_has_a_limited_number_of_records(people: RelationshipStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("caseload_server.domain.limits.MAX_MERGED_PATIENTS", 3)
    for one in "abc":
        make(people, PATIENT, one)
    merge(people, "a", "b")
    merge(people, "s", "b", call=VALIDATE)
    merge(people, "s", "p")
    with pytest.raises(errors.MergeTooLarge) as refusal:
        merge(people, "b", "p")
    assert refusal.value.metadata == {"field": "merged_patients", "limit": "3"}


def test_too_many_assignments_are_rejected(people: RelationshipStore, monkeypatch: pytest.MonkeyPatch) -> None:
    assign(people, "t", "s")
    assign(people, "u", "s")
    monkeypatch.setattr("caseload_server.domain.limits.MAX_ASSIGNMENTS_PER_CALL", 1)
    with pytest.raises(errors.TooManyAssignments) as refusal:
        merge(people)
    assert refusal.value.metadata == {"limit": "1", "current": "2"}
    unassign(people, "u", "s")
    merge(people)


def test_other_birth_dates_need_force_and_the_target_keeps_its_own(people: RelationshipStore) -> None:
    update(people, PATIENT, "s", birth_date="1990-01-02")
    update(people, PATIENT, "p", birth_date="1990-02-01")
    with pytest.raises(errors.BirthDatesDiffer) as refusal:
        merge(people)
    assert refusal.value.metadata == {}
    assert merge(people, force=True).target.birth_date == "1990-02-01"


@pytest.mark.parametrize(
    ("source", "target"), [("1990", "1991"), ("1990-05", "1990-06"), ("1990-05-01", "1990-06"), ("1991", "1990-01-01")]
)
def test_partial_birth_dates_differ_if_neither_lies_within_the_other(
    people: RelationshipStore, source: str, target: str
) -> None:
    update(people, PATIENT, "s", birth_date=source)
    update(people, PATIENT, "p", birth_date=target)
    with pytest.raises(errors.BirthDatesDiffer):
        merge(people)
    assert merge(people, force=True).target.birth_date == target


@pytest.mark.slow
def test_the_size_of_a_merge_does_not_show_whether_a_partial_birth_date_matches(people: RelationshipStore) -> None:
    """A caller without `read` could else guess the year: with force, only an equal year makes the date longer."""
    update(people, PATIENT, "s", birth_date="1990-05-01")

    def fits(size: int) -> bool:
        update(people, PATIENT, "p", annotations=json.dumps({"k": "x" * size}))
        try:
            people.merge(Merge("s", "p", force=True, may_compare=False), VALIDATE)
        except errors.MergeTooLarge:
            return False
        return True

    def largest(year: str) -> int:
        update(people, PATIENT, "p", birth_date=year)
        return bisect_left(range(32_600), True, lo=32_000, key=lambda size: not fits(size))

    assert 32_000 < largest("1990") == largest("1991") < 32_600


def test_a_discharged_target_takes_no_active_assignments(people: RelationshipStore) -> None:
    update(people, PATIENT, "p", status=enums.PATIENT_DISCHARGED)
    merge(people, call=VALIDATE)
    assign(people, "t", "s")
    with pytest.raises(errors.PatientNotActive):
        merge(people)


@pytest.mark.parametrize(("gone", "call"), [("s", ("s", "p")), ("p", ("s", "p"))])
def test_deleted_operands_are_rejected(people: RelationshipStore, gone: str, call: tuple[str, str]) -> None:
    delete(people, PATIENT, gone)
    with pytest.raises(errors.PatientDeleted) as refusal:
        merge(people, *call)
    assert [one.name for one in refusal.value.resources] == [gone]


def test_missing_operands_are_named(people: RelationshipStore) -> None:
    with pytest.raises(errors.PatientNotFound) as refusal:
        merge(people, "x", "p")
    assert [one.name for one in refusal.value.resources] == ["x"]
    with pytest.raises(errors.PatientNotFound) as refusal:
        merge(people, "x", "y")
    assert [one.name for one in refusal.value.resources] == ["x", "y"]
