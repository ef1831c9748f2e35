"""MergePatients joins two records of one person."""

from typing import Any

import pytest
from caseload_server.domain import enums, errors
from caseload_server.domain.enums import ROLE_PRIMARY, ROLE_TREATING
from caseload_server.domain.requests import Assign, Correction, Delete, Transfer
from caseload_server.domain.results import MergeResult
from caseload_server.store import PATIENT, THERAPIST, RelationshipStore

from tests.store.conftest import Clock
from tests.store.merge_setup import REQUEST_ID, checked, merge, unmerge, with_identifiers
from tests.store.store_builders import SECOND, assert_consistent
from tests.store.store_calls import (
    CALL,
    VALIDATE,
    assign,
    broken,
    count,
    dump,
    history,
    ids,
    in_force,
    make,
    request,
    run,
    unassign,
    update,
)
from tests.store.transfer_setup import COVERING, SUPERVISING

ON_LEAVE = 2


def test_a_merge_moves_each_active_period_and_rewrites_no_other(people: RelationshipStore, clock: Clock) -> None:
    start_us = clock.now_us
    assign(people, "u", "s", focus="grief")
    over = unassign(people, "u", "s", end_us=clock.advance(10))
    first = assign(people, "t", "s", role=ROLE_PRIMARY, focus="anxiety")
    second = assign(people, "u", "s", role=SUPERVISING)
    now = clock.advance(60)
    result = merge(people, call=CALL._replace(actor="lead"))
    assert [one.assignment_id for one in result.ended] == [first.assignment_id, second.assignment_id]
    for before, after in zip(result.ended, result.active, strict=True):
        assert (before.end_us, before.end_reason, before.ended_by) == (now, enums.END_MERGED, "lead")
        assert (after.start_us, after.end_us, after.created_by) == (now, None, "lead")
        assert (after.therapist_id, after.role, after.focus) == (before.therapist_id, before.role, before.focus)
        assert (before.patient_id, after.patient_id) == ("s", "p")
    assert result.primary_demoted is False
    assert history(people, "s") == [over, *result.ended]
    assert history(people, "p") == result.active
    assert (count(people, PATIENT, "s"), count(people, PATIENT, "p")) == (0, 2)
    assert (people.get(PATIENT, "s").primary_therapist_id, people.get(PATIENT, "p").primary_therapist_id) == ("", "t")
    assert in_force(people, start_us, record_id="p") == [over.assignment_id]
    assert_consistent(people)


def test_the_source_is_deleted_and_linked_and_the_target_gains_what_it_lacks(people: RelationshipStore) -> None:
    update(people, PATIENT, "s", email="s@x.org", phone_number="+49301", birth_date="1990-01-02", aliases='["Bobby"]')
    update(people, PATIENT, "p", email="p@x.org")
    before = people.get(PATIENT, "p")
    result = merge(people)
    assert (result.source.merged_into_patient_id, result.source.deleted_us) == ("p", result.source.updated_us)
    assert result.target == before._replace(
        identifiers=with_identifiers("3", "1", "2"),
        aliases='["Bob Gray","Bobby"]',
        phone_number="+49301",
        birth_date="1990-01-02",
        updated_us=result.target.updated_us,
        etag=result.target.etag,
    )
    assert result.target.etag != before.etag
    assert (people.get(PATIENT, "s"), people.get(PATIENT, "p")) == (result.source, result.target)
    assert ids(people, PATIENT, identifier=("mrn", "1")) == ids(people, PATIENT, name_prefix="gray") == ["p"]
    assert ids(people, PATIENT, name_prefix="gray", show_deleted=True) == ["p", "s"]


@pytest.mark.parametrize(
    ("source", "target", "kept"),
    [
        ("1990", "1990-05-01", "1990-05-01"),
        ("1990-05-01", "1990", "1990-05-01"),
        ("1990-05", "1990", "1990-05"),
        ("1990", "1990", "1990"),
        ("", "1990", "1990"),
        ("1990-05", "", "1990-05"),
    ],
)
def test_the_target_gets_the_fuller_birth_date(people: RelationshipStore, source: str, target: str, kept: str) -> None:
    update(people, PATIENT, "s", birth_date=source)
    update(people, PATIENT, "p", birth_date=target)
    assert merge(people).target.birth_date == kept
    assert people.get(PATIENT, "s").birth_date == source


def test_a_name_that_the_target_has_is_not_added(people: RelationshipStore) -> None:
    update(people, PATIENT, "s", display_name="Bob Ray", aliases='["Bo","Robert"]')
    update(people, PATIENT, "p", aliases='["Robert"]')
    assert merge(people).target.aliases == '["Robert","Bo"]'


def test_a_therapist_whom_the_target_has_keeps_its_period(people: RelationshipStore) -> None:
    own = assign(people, "t", "p", role=COVERING, focus="sleep")
    moved = assign(people, "t", "s", focus="grief")
    result = merge(people)
    assert [one.assignment_id for one in result.ended] == [moved.assignment_id]
    assert result.active == [own]
    assert count(people, THERAPIST, "t") == 1
    assert_consistent(people)


@pytest.mark.parametrize("own_role", [ROLE_TREATING, None])
def test_the_primary_therapist_of_the_target_wins(people: RelationshipStore, own_role: int | None) -> None:
    assign(people, "t", "s", role=ROLE_PRIMARY)
    assign(people, "u", "p", role=ROLE_PRIMARY)
    if own_role:
        assign(people, "t", "p", role=own_role)
    result = merge(people)
    assert ([one.role for one in result.active], result.primary_demoted) == ([ROLE_TREATING], True)
    assert people.get(PATIENT, "p").primary_therapist_id == "u"
    assert_consistent(people)


def test_a_primary_therapist_of_both_is_not_demoted(people: RelationshipStore) -> None:
    assign(people, "t", "s", role=ROLE_PRIMARY)
    own = assign(people, "t", "p", role=ROLE_PRIMARY)
    result = merge(people)
    assert (result.active, result.primary_demoted) == ([own], False)


def test_status_and_capacity_of_the_therapists_do_not_matter(people: RelationshipStore) -> None:
    assign(people, "t", "s")
    update(people, THERAPIST, "t", status=ON_LEAVE, max_active_patients=0)
    assert [one.therapist_id for one in merge(people).active] == ["t"]
    assert count(people, THERAPIST, "t") == 1


def test_a_merge_with_skewed_clocks_leaves_no_gap(people: RelationshipStore, clock: Clock) -> None:
    soon = clock.now_us + 30 * SECOND
    assign(people, "t", "s", start_us=soon)
    assign(people, "u", "s")
    assign(people, "u", "p")
    unassign(people, "u", "p", end_us=soon)
    result = merge(people)
    assert [one.end_us for one in result.ended] == [one.start_us for one in result.active] == [soon, soon]
    assert_consistent(people)


def test_a_moved_period_keeps_its_planned_end(people: RelationshipStore, clock: Clock) -> None:
    expire_us = clock.now_us + 60 * SECOND
    assign(people, "t", "s", expire_us=expire_us)
    clock.advance(10)
    [active] = merge(people).active
    assert active.expire_us == expire_us
    for at_us, found in ((expire_us - 1, active.assignment_id), (expire_us, None)):
        assert checked(people, at_us, ("t", "s"), ("t", "p")) == [found, found]


def test_a_merge_ends_expired_periods_of_both_before_it_moves_the_others(
    people: RelationshipStore, clock: Clock
) -> None:
    expire_us = clock.now_us + 60 * SECOND
    old = assign(people, "t", "s", expire_us=expire_us)
    cover = assign(people, "u", "p", role=ROLE_PRIMARY, expire_us=expire_us)
    moved = assign(people, "u", "s", role=ROLE_PRIMARY)
    clock.advance(120)
    result = merge(people)
    assert [(one.assignment_id, one.end_reason) for one in result.ended] == [(moved.assignment_id, enums.END_MERGED)]
    assert ([one.role for one in result.active], result.primary_demoted) == ([ROLE_PRIMARY], False)
    for expired in (old, cover):
        [found] = [one for one in history(people, expired.patient_id) if one.assignment_id == expired.assignment_id]
        assert (found.end_us, found.end_reason, found.ended_by) == (expire_us, enums.END_EXPIRED, "system:expiry")
    assert (count(people, THERAPIST, "t"), count(people, THERAPIST, "u")) == (0, 1)
    assert_consistent(people)


def test_a_period_whose_planned_end_comes_before_it_can_begin_is_never_in_force(
    people: RelationshipStore, clock: Clock
) -> None:
    """The target's own period with the therapist ends a moment ahead, as clocks differ."""
    now = clock.now_us
    assign(people, "t", "p")
    unassign(people, "t", "p", end_us=now + 50 * SECOND)
    clock.advance(1)
    assign(people, "t", "s", expire_us=now + 10 * SECOND)
    result = merge(people)
    assert [one.end_us for one in result.ended] == [now + 10 * SECOND]
    assert [(one.start_us, one.expire_us) for one in result.active] == [(now + 50 * SECOND, now + 50 * SECOND)]
    assert broken(people) == []
    assert checked(people, now + 60 * SECOND, ("t", "p")) == [None]
    assert broken(people) == []
    clock.advance(90)
    people.end_expired()
    assert count(people, PATIENT, "p") == 0


def test_every_write_to_a_merged_patient_is_rejected(people: RelationshipStore) -> None:
    old = assign(people, "t", "s")
    merge(people)
    make(people, PATIENT, "q")
    merge(people, "p", "q")
    before = dump(people)
    for write in (
        lambda: update(people, PATIENT, "s", display_name="Bo"),
        lambda: people.undelete(PATIENT, "s", CALL),
        lambda: assign(people, "t", "s"),
        lambda: assign(people, "t", "s", start_us=1, end_us=2),
        lambda: people.batch_assign([Assign("t", "q"), Assign("t", "s")], CALL),
        lambda: unassign(people, "t", "s"),
        lambda: unassign(people, "v", "s", allow_missing=True),
        lambda: people.transfer(Transfer("t", "u", ("q", "s")), CALL),
        lambda: merge(people, "s", "q"),
        lambda: merge(people, "q", "s"),
        lambda: unmerge(people, "s"),
    ):
        with pytest.raises(errors.PatientMerged) as refusal:
            write()
        assert refusal.value.metadata["patient_id"] == "q"
    assert people.delete(PATIENT, Delete("s", etag="old", force=True), CALL).record == people.get(PATIENT, "s")
    assert dump(people) == before
    correction: Correction = {"focus": "grief"}
    assert people.correct(old.assignment_id, "", correction, CALL).record.focus == "grief"


def test_a_replayed_merge_returns_the_current_records(people: RelationshipStore) -> None:
    assign(people, "t", "s", role=ROLE_PRIMARY)
    assign(people, "u", "p", role=ROLE_PRIMARY)
    first = merge(people, call=request(REQUEST_ID))
    assert merge(people, call=request(REQUEST_ID)) == first
    over = unassign(people, "t", "p")
    again = merge(people, call=request(REQUEST_ID))
    expected = first._replace(active=[over], target=people.get(PATIENT, "p"))
    assert again == expected
    assert again.primary_demoted
    unmerge(people)
    assert merge(people, call=request(REQUEST_ID)).source.merged_into_patient_id == ""


def test_a_replay_tells_a_patient_from_an_assignment_with_its_id(people: RelationshipStore) -> None:
    own = assign(people, "t", "p")
    make(people, PATIENT, own.assignment_id)
    assign(people, "t", own.assignment_id)
    first = merge(people, own.assignment_id, call=request(REQUEST_ID))
    assert merge(people, own.assignment_id, call=request(REQUEST_ID)) == first


def test_a_validated_merge_shows_everything_and_changes_nothing(people: RelationshipStore) -> None:
    assign(people, "t", "s", role=ROLE_PRIMARY)
    own = assign(people, "u", "p")
    assign(people, "u", "s")
    before = dump(people)
    would = merge(people, call=VALIDATE)
    assert dump(people) == before
    did = merge(people)
    assert would == MergeResult(
        did.source._replace(etag=""),
        did.target._replace(etag=""),
        [one._replace(etag="") for one in did.ended],
        [one if one == own else one._replace(assignment_id="", etag="") for one in did.active],
        did.primary_demoted,
        "",
    )
    before = dump(people)
    would_not = unmerge(people, call=VALIDATE)
    assert dump(people) == before
    undone = unmerge(people)
    assert undone.target is not None
    assert would_not[:2] == (undone.source._replace(etag=""), undone.target._replace(etag=""))


def changes(store: RelationshipStore) -> list[tuple[Any, ...]]:
    """The last change set."""
    sql = (
        "SELECT kind, changed_fields, therapist_id, patient_id, assignment_id FROM change"
        " WHERE revision = (SELECT head_revision FROM store) ORDER BY position"
    )
    return run(store, sql)


def test_each_call_writes_one_change_set_with_both_patients(people: RelationshipStore) -> None:
    assign(people, "t", "s")
    before = people.head_revision()
    result = merge(people)
    [ended], [active] = result.ended, result.active
    assert changes(people) == [
        (enums.CHANGE_UPDATED, "state,end_time,end_reason,ended_by", "t", "s", ended.assignment_id),
        (enums.CHANGE_CREATED, "", "t", "p", active.assignment_id),
        (enums.CHANGE_DELETED, "delete_time,merged_into_patient_id", None, "s", None),
        (enums.CHANGE_UPDATED, "aliases,identifiers", None, "p", None),
    ]
    unmerge(people)
    assert changes(people) == [
        (enums.CHANGE_UPDATED, "identifiers", None, "p", None),
        (enums.CHANGE_UNDELETED, "delete_time,merged_into_patient_id", None, "s", None),
    ]
    assert people.head_revision() == before + 2


def test_the_change_set_names_a_target_that_gains_nothing(people: RelationshipStore) -> None:
    update(people, PATIENT, "s", display_name="Bob Ray", identifiers="[]")
    merge(people)
    assert changes(people)[1] == (enums.CHANGE_UPDATED, "", None, "p", None)
