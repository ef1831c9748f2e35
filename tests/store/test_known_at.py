"""Answers as they were known at a time. Most of them are compared with a model in tests/api/test_reference_model.py."""

from typing import Any

import pytest
from caseload_server.domain import errors
from caseload_server.domain.enums import STATE_ACTIVE, STATE_ENDED
from caseload_server.domain.records import Assignment
from caseload_server.domain.requests import AssignmentQuery, Delete, PageRequest
from caseload_server.store import PATIENT, THERAPIST, RelationshipStore

from tests.store.conftest import Clock
from tests.store.merge_setup import merge, unmerge
from tests.store.store_calls import ALL, CALL, assign, make, run, unassign, update

SECOND_US = 1_000_000
EITHER = (STATE_ACTIVE, STATE_ENDED)


def known(store: RelationshipStore, known_at_us: int, **query: Any) -> list[Assignment]:
    return store.list_assignments(AssignmentQuery(known_at_us=known_at_us, **query), ALL).records


def checked(
    store: RelationshipStore, known_at_us: int, *pairs: tuple[str, str], at_us: int | None = None
) -> list[str | None]:
    found, _ = store.check_assignments(list(pairs), known_at_us if at_us is None else at_us, known_at_us)
    return [one.assignment_id for one in found]


def test_an_assignment_is_as_the_newest_change_left_it_though_a_clock_stepped_back(
    pair: RelationshipStore, clock: Clock
) -> None:
    clock.advance(100)
    begun = assign(pair, start_us=clock.now_us - 200 * SECOND_US)
    clock.step(-50)
    corrected = pair.correct(begun.assignment_id, "", {"focus": "grief"}, CALL).record
    for seconds in (0, 20, 50, 60):
        assert known(pair, clock.now_us + seconds * SECOND_US) == [corrected]
    assert known(pair, clock.now_us - 1) == []


def test_each_state_of_a_history_was_known_from_its_change_on(pair: RelationshipStore, clock: Clock) -> None:
    states = [assign(pair)]
    for focus in ("a", "b", "c"):
        clock.advance(10)
        states.append(pair.correct(states[0].assignment_id, "", {"focus": focus}, CALL).record)
    clock.advance(10)
    states.append(unassign(pair))
    for one, after in zip(states, [*states[1:], None], strict=True):
        until_us = after.updated_us if after else clock.now_us + 1
        for known_at_us in (one.updated_us, until_us - 1):
            for query in ({}, {"therapist_id": "t"}, {"patient_id": "p"}):
                assert known(pair, known_at_us, states=EITHER, **query) == [one]
    assert known(pair, states[0].created_us - 1, states=EITHER) == []


@pytest.mark.parametrize("size", [1, 2, 3, 7])
def test_pages_of_what_was_known_have_each_assignment_once(store: RelationshipStore, clock: Clock, size: int) -> None:
    make(store, PATIENT, "p")
    therapists = [f"t{number}" for number in range(6)]
    from_then = []
    for one in therapists:
        make(store, THERAPIST, one)
        from_then.append(assign(store, one, "p"))
    known_at_us = clock.now_us
    clock.advance(10)
    for one in therapists[::2]:
        unassign(store, one, "p")
    found: list[Assignment] = []
    after = ""
    for _ in range(len(therapists)):
        page = store.list_assignments(AssignmentQuery(known_at_us=known_at_us), PageRequest(size, after))
        assert len(page.records) <= size
        found += page.records
        after = page.next_after
        if not after:
            break
        clock.advance(10)
        for one in (therapists[-1], found[-1].therapist_id):  # one that comes later, and one that was listed
            unassign(store, one, "p")
    assert found == from_then


def test_the_answer_does_not_need_the_change_log(pair: RelationshipStore, clock: Clock) -> None:
    begun = assign(pair)
    clock.advance(10)
    unassign(pair)
    pair.purger.purge_changes(clock.advance(10))
    assert known(pair, begun.updated_us) == [begun]
    assert checked(pair, begun.updated_us, ("t", "p")) == [begun.assignment_id]


def test_what_had_expired_was_not_in_force_before_the_server_ended_it(pair: RelationshipStore, clock: Clock) -> None:
    begun = assign(pair, expire_us=clock.now_us + 10 * SECOND_US)
    expired_us = clock.advance(10)
    clock.advance(10)
    pair.end_expired()
    assert checked(pair, expired_us - 1, ("t", "p")) == [begun.assignment_id]
    assert checked(pair, expired_us, ("t", "p")) == [None]
    assert known(pair, expired_us) == known(pair, expired_us, states=(STATE_ENDED,)) == []
    assert known(pair, expired_us, states=EITHER) == [begun]
    assert [one.end_us for one in known(pair, clock.now_us, states=EITHER)] == [expired_us]


def test_a_period_was_expected_to_last_until_its_planned_end(pair: RelationshipStore, clock: Clock) -> None:
    begun = assign(pair, expire_us=clock.now_us + 100 * SECOND_US)
    clock.advance(10)
    unassign(pair)
    day = clock.advance(40)
    assert checked(pair, begun.updated_us, ("t", "p"), at_us=day) == [begun.assignment_id]
    assert known(pair, begun.updated_us, as_of_us=day) == [begun]
    assert checked(pair, day, ("t", "p"), at_us=day) == [None]


def test_merges_count_while_they_were_in_effect(people: RelationshipStore, clock: Clock) -> None:
    make(people, PATIENT, "q")
    old = assign(people, "t", "s")
    unassign(people, "t", "s", end_us=clock.advance(10))
    day = old.start_us
    steps: list[Any] = [
        lambda: None,
        lambda: merge(people, "s", "p"),
        lambda: merge(people, "p", "q"),
        lambda: unmerge(people, "p"),
        lambda: unmerge(people, "s"),
    ]
    times = []
    for step in steps:
        clock.advance(10)
        step()
        times.append(clock.now_us)
    groups = [{"s"}, {"s", "p"}, {"s", "p", "q"}, {"s", "p"}, {"s"}]
    for known_at_us, group in zip(times, groups, strict=True):
        for patient_id in ("s", "p", "q"):
            is_known = patient_id in group
            listed = known(people, known_at_us, patient_id=patient_id, as_of_us=day)
            assert [one.assignment_id for one in listed] == [old.assignment_id] * is_known
            [found] = checked(people, known_at_us, ("t", patient_id), at_us=day)
            assert found == (old.assignment_id if is_known else None)


def test_a_merge_counts_while_it_was_in_effect_though_a_clock_stepped_back(
    people: RelationshipStore, clock: Clock
) -> None:
    old = assign(people, "t", "s")
    unassign(people, "t", "s", end_us=clock.advance(10))
    clock.advance(100)
    update(people, PATIENT, "s", display_name="Jane Roe")
    merged_us = clock.step(-50)
    merge(people, "s", "p")
    clock.advance(100)
    unmerge(people, "s")
    for known_at_us in (merged_us, merged_us + 49 * SECOND_US, merged_us + 99 * SECOND_US):
        found = checked(people, known_at_us, ("t", "s"), ("t", "p"), at_us=old.start_us)
        assert found == [old.assignment_id] * 2
    assert checked(people, merged_us - 1, ("t", "p"), at_us=old.start_us) == [None]
    assert checked(people, clock.now_us, ("t", "p"), at_us=old.start_us) == [None]


def test_a_purged_record_was_never_known(pair: RelationshipStore, clock: Clock) -> None:
    begun = assign(pair)
    kept = assign(pair, "u", "p")
    clock.advance(10)
    pair.delete(THERAPIST, Delete("t", force=True), CALL)
    assert known(pair, begun.updated_us) == [begun, kept]
    pair.purger.purge_record(THERAPIST, "t")
    assert known(pair, begun.updated_us) == [kept]
    assert checked(pair, begun.updated_us, ("t", "p"), ("u", "p")) == [None, kept.assignment_id]


def test_a_purged_patient_was_never_merged_with_another(people: RelationshipStore, clock: Clock) -> None:
    old = assign(people, "t", "s")
    unassign(people, "t", "s", end_us=clock.advance(10))
    merge(people, "s", "p")
    clock.advance(10)
    unmerge(people, "s")
    people.delete(PATIENT, Delete("p"), CALL)
    merged_us, day = clock.now_us - 10 * SECOND_US, old.start_us
    assert checked(people, merged_us, ("t", "s"), ("t", "p"), at_us=day) == [old.assignment_id] * 2
    people.purger.purge_record(PATIENT, "p")
    assert checked(people, merged_us, ("t", "s"), ("t", "p"), at_us=day) == [old.assignment_id, None]
    assert known(people, merged_us, patient_id="p", as_of_us=day) == []


def test_a_time_before_all_versions_were_kept_is_rejected(pair: RelationshipStore, clock: Clock) -> None:
    begun = assign(pair)
    run(pair, "UPDATE store SET versions_revision = head_revision, versions_us = :now_us", {"now_us": clock.now_us})
    assert known(pair, clock.now_us) == [begun]
    for answer in (known, checked):
        with pytest.raises(errors.VersionsNotKept) as caught:
            answer(pair, clock.now_us - 1)
        assert caught.value.metadata == {"oldest_time": "2023-11-14T22:13:20Z"}
