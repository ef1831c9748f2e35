"""MergePatients joins two records of one person, and UnmergePatients separates them."""

import json
from typing import Any

import pytest
from caseload_server.domain import enums, errors
from caseload_server.domain.enums import ROLE_PRIMARY, ROLE_TREATING
from caseload_server.domain.requests import (
    Assign,
    AssignmentQuery,
    CallContext,
    CaseloadQuery,
    ChangeQuery,
    Correction,
    Delete,
    Merge,
    RecordQuery,
    Transfer,
)
from caseload_server.domain.results import MergeResult, UnmergeResult
from caseload_server.store import PATIENT, THERAPIST, RelationshipStore

from tests.store.conftest import Clock
from tests.store.store_builders import SECOND, assert_consistent, therapists
from tests.store.store_calls import (
    ALL,
    CALL,
    VALIDATE,
    assign,
    broken,
    count,
    delete,
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

REQUEST_ID = "3b241101-e2bb-4255-8caf-4136c566a962"
SUPERVISING, COVERING = 3, 4
ON_LEAVE = 2


def merge(
    store: RelationshipStore, source: str = "s", target: str = "p", call: CallContext = CALL, **flags: bool
) -> MergeResult:
    return store.merge(Merge(source, target, **flags), call)


def unmerge(store: RelationshipStore, source: str = "s", call: CallContext = CALL) -> UnmergeResult:
    return store.unmerge(source, call)


def checked(store: RelationshipStore, at_us: int, *pairs: tuple[str, str]) -> list[str | None]:
    """The assignment in force for each pair."""
    return [one.assignment_id for one in store.check_assignments(list(pairs), at_us)[0]]


def identifiers(patient: Any) -> list[str]:
    return [value for _, value in json.loads(patient.identifiers)]


def with_identifiers(*values: str) -> str:
    return json.dumps([["mrn", value] for value in values], separators=(",", ":"))


@pytest.fixture
def people(store: RelationshipStore) -> RelationshipStore:
    """Therapists t, u and v, and patients s and p: the source and the target of a merge."""
    therapists(store, "t", "u", "v")
    make(store, PATIENT, "s", display_name="Bob Gray", identifiers=with_identifiers("1", "2"))
    make(store, PATIENT, "p", display_name="Bob Ray", identifiers=with_identifiers("3"))
    return store


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
    clock.advance(90)
    people.end_expired()
    assert count(people, PATIENT, "p") == 0


def test_a_check_of_either_id_covers_both_records(people: RelationshipStore, clock: Clock) -> None:
    past = clock.now_us
    old = assign(people, "u", "s")
    unassign(people, "u", "s", end_us=clock.advance(10))
    assign(people, "t", "s")
    own = assign(people, "v", "p")
    now = clock.advance(10)
    [active] = merge(people).active
    pairs = [(therapist, patient) for patient in ("s", "p", "x") for therapist in ("t", "u", "v")]
    assert checked(people, now, *pairs) == [active.assignment_id, None, own.assignment_id] * 2 + [None] * 3
    assert checked(people, past, *pairs) == [None, old.assignment_id, None] * 2 + [None] * 3


def test_the_given_record_comes_first_in_a_check(people: RelationshipStore, clock: Clock) -> None:
    own = assign(people, "t", "p", role=COVERING)
    other = assign(people, "t", "s", role=SUPERVISING)
    past = clock.now_us
    clock.advance(10)
    merge(people)
    assert checked(people, past, ("t", "s"), ("t", "p")) == [other.assignment_id, own.assignment_id]
    make(people, PATIENT, "q")
    merge(people, "p", "q")
    assert checked(people, past, ("t", "q")) == [other.assignment_id]  # the lowest role


def test_lists_as_of_a_time_cover_both_records_and_other_lists_one(people: RelationshipStore, clock: Clock) -> None:
    assign(people, "t", "s")
    assign(people, "u", "p")
    past = clock.now_us
    now = clock.advance(10)
    [active] = merge(people).active
    for patient_id in ("s", "p"):
        for at_us, found in ((past, {"t": "s", "u": "p"}), (now, {"t": "p", "u": "p"})):
            query = AssignmentQuery(patient_id=patient_id, as_of_us=at_us)
            rows = people.list_assignments(query, ALL).records
            assert {one.therapist_id: one.patient_id for one in rows} == found
            assert in_force(people, at_us, record_id=patient_id) == [one.assignment_id for one in rows]
            both = query._replace(therapist_id="t")
            assert [one.patient_id for one in people.list_assignments(both, ALL).records] == [found["t"]]
    assert [one.patient_id for one in people.list_assignments(AssignmentQuery(patient_id="s"), ALL).records] == []
    assert people.list_patient_therapists(CaseloadQuery("s"), ALL).records == []
    assert active.assignment_id in [one.assignment_id for one in history(people, "p")]


def test_checks_and_lists_follow_a_chain_of_merges(people: RelationshipStore, clock: Clock) -> None:
    make(people, PATIENT, "q")
    make(people, PATIENT, "r")
    old = assign(people, "t", "s")
    past = clock.now_us
    clock.advance(10)
    merge(people)
    merge(people, "r", "p")
    merge(people, "p", "q")
    for patient_id in "spqr":
        assert checked(people, past, ("t", patient_id)) == [old.assignment_id]
        assert in_force(people, past, record_id=patient_id) == [old.assignment_id]
        assert len(checked(people, clock.now_us, ("t", patient_id))) == 1
        assert None not in checked(people, clock.now_us, ("t", patient_id))
    unmerge(people, "p")
    assert [checked(people, past, ("t", one))[0] for one in "sprq"] == [old.assignment_id] * 3 + [None]
    assert checked(people, clock.now_us, ("t", "q")) != [None]
    unmerge(people)
    unmerge(people, "r")
    assert [checked(people, past, ("t", one))[0] for one in "sprq"] == [old.assignment_id, None, None, None]
    assert run(people, "SELECT * FROM same_person") == []


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


def test_an_unmerge_returns_the_identifiers_and_leaves_the_assignments(people: RelationshipStore) -> None:
    assign(people, "t", "s")
    [active] = merge(people).active
    update(people, PATIENT, "p", identifiers=with_identifiers("2", "9", "3"))
    before = people.get(PATIENT, "p")
    result = unmerge(people)
    assert (result.source.deleted_us, result.source.merged_into_patient_id) == (None, "")
    assert identifiers(result.source) == ["1", "2"]
    assert result.target is not None
    assert identifiers(result.target) == ["9", "3"]
    assert result.target.aliases == before.aliases == '["Bob Gray"]'
    assert history(people, "p") == [active]
    assert [ids(people, PATIENT, identifier=("mrn", one)) for one in "1239"] == [["s"], ["s"], ["p"], ["p"]]
    assert run(people, "SELECT * FROM same_person") == []
    assert_consistent(people)


def test_an_unmerge_from_a_deleted_target_takes_the_identifiers_back(people: RelationshipStore) -> None:
    merge(people)
    delete(people, PATIENT, "p")
    result = unmerge(people)
    assert result.target is not None
    assert (identifiers(result.source), identifiers(result.target)) == (["1", "2"], ["3"])
    people.undelete(PATIENT, "p", CALL)


def test_an_unmerge_fails_while_another_patient_has_an_identifier(people: RelationshipStore) -> None:
    merge(people)
    update(people, PATIENT, "p", identifiers="[]")
    make(people, PATIENT, "q", identifiers=with_identifiers("2"))
    before = dump(people)
    with pytest.raises(errors.IdentifierTaken):
        unmerge(people)
    assert dump(people) == before


def test_an_unmerge_of_a_record_that_is_not_merged_changes_nothing(people: RelationshipStore) -> None:
    before = dump(people)
    assert unmerge(people)[:2] == (people.get(PATIENT, "s"), None)
    assert dump(people) == before
    with pytest.raises(errors.PatientNotFound):
        unmerge(people, "missing")


def test_a_record_can_be_merged_again_after_an_unmerge(people: RelationshipStore) -> None:
    first = merge(people)
    unmerge(people)
    second = merge(people)
    assert second.target == first.target._replace(updated_us=second.target.updated_us, etag=second.target.etag)
    unmerge(people)
    merge(people, "p", "s")
    assert identifiers(people.get(PATIENT, "s")) == ["1", "2", "3"]


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


def test_a_replayed_unmerge_returns_the_current_records(people: RelationshipStore) -> None:
    merge(people)
    first = unmerge(people, call=request(REQUEST_ID))
    merge(people)
    again = unmerge(people, call=request(REQUEST_ID))
    assert again == UnmergeResult(people.get(PATIENT, "s"), people.get(PATIENT, "p"), first.revision)
    assert again.source.merged_into_patient_id == "p"


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


def test_the_changes_of_a_merge_are_listed_under_both_ids(people: RelationshipStore) -> None:
    revision = merge(people).revision
    for patient_id in ("s", "p"):
        page = people.list_changes(ChangeQuery(patient_id=patient_id), "", 100)
        assert page.change_sets[-1].revision == revision


def test_a_search_by_name_finds_the_source_only_among_deleted_records(people: RelationshipStore) -> None:
    merge(people)
    query = RecordQuery(identifier=("mrn", "1"), show_deleted=True)
    assert [one.patient_id for one in people.list_records(PATIENT, query, ALL).records] == ["p", "s"]
