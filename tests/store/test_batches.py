"""BatchAssign: many assignments in one transaction, in order, all or nothing."""

from typing import Any

import pytest
from caseload_server.domain import enums, errors
from caseload_server.domain.enums import ROLE_PRIMARY, ROLE_TREATING
from caseload_server.domain.requests import Assign, CallContext
from caseload_server.store import PATIENT, THERAPIST, RelationshipStore

from tests.store.conftest import Clock
from tests.store.store_calls import (
    CALL,
    VALIDATE,
    assign,
    broken,
    count,
    delete,
    dump,
    head,
    history,
    make,
    race,
    request,
    run,
    unassign,
    update,
)

ID = "3b241101-e2bb-4255-8caf-4136c566a962"
DAY = 24 * 3600
SPAN = 10
HISTORY = [Assign("t", "p", start_us=n * SPAN, end_us=(n + 1) * SPAN) for n in range(100)]
"""A history of 100 periods, one after another."""


def test_a_history_of_100_periods_is_recorded_in_one_change_set(pair: RelationshipStore) -> None:
    before = head(pair)
    result = pair.batch_assign(HISTORY[::-1], CALL)
    assert result.created == [True] * 100
    assert result.records == history(pair)[::-1]
    assert head(pair) == before + 1
    lines = run(
        pair, "SELECT kind, assignment_id FROM change WHERE revision = :head ORDER BY position", {"head": head(pair)}
    )
    assert lines == [(enums.CHANGE_CREATED, record.assignment_id) for record in result.records]
    assert broken(pair) == []


def test_entries_take_effect_in_order_and_are_returned_as_they_are_after_the_last(pair: RelationshipStore) -> None:
    first, second, again, finished = pair.batch_assign(
        [
            Assign("t", "p", ROLE_PRIMARY, start_us=100),
            Assign("u", "p", ROLE_PRIMARY, start_us=200, replace_primary=True),
            Assign("u", "p", ROLE_PRIMARY),
            Assign("t", "p", start_us=50, end_us=100),
        ],
        CALL,
    ).records
    assert (first.end_us, first.end_reason, second.end_us, again) == (200, enums.END_REPLACED, None, second)
    assert history(pair) == [finished, first, second]
    assert [count(pair, THERAPIST, one) for one in "tu"] == [0, 1]
    assert pair.get(PATIENT, "p").primary_therapist_id == "u"
    assert broken(pair) == []


def refused(store: RelationshipStore, batch: list[Assign], call: CallContext = CALL) -> errors.DomainError:
    """The error of a batch that must write nothing."""
    before = dump(store)
    with pytest.raises(errors.DomainError) as refusal:
        store.batch_assign(batch, call)
    assert dump(store) == before
    return refusal.value


@pytest.mark.parametrize("index", [0, 7, 99])
def test_a_rejected_entry_rejects_the_batch_and_is_named_by_its_index(pair: RelationshipStore, index: int) -> None:
    batch = list(HISTORY)
    batch[index] = Assign("missing", "p")
    found = refused(pair, batch)
    assert isinstance(found, errors.TherapistNotFound)
    assert found.metadata == {"missing": "1", "index": str(index)}


def test_an_entry_that_overlaps_an_earlier_one_of_the_batch_is_rejected(pair: RelationshipStore) -> None:
    existing = assign(pair, "u", start_us=0, end_us=5)
    found = refused(pair, [*HISTORY[:3], Assign("t", "p", start_us=25, end_us=26)])
    assert isinstance(found, errors.PeriodOverlaps)
    assert found.metadata == {"index": "3", "other_index": "2"}  # nothing is written, so its id means nothing
    found = refused(pair, [*HISTORY[:3], Assign("u", "p", start_us=4, end_us=6)], VALIDATE)
    assert found.metadata == {"assignment_id": existing.assignment_id, "index": "3"}


def test_an_entry_that_differs_from_an_earlier_one_of_the_batch_names_it(pair: RelationshipStore) -> None:
    primary = Assign("t", "p", ROLE_PRIMARY)
    found = refused(pair, [HISTORY[0], primary, Assign("t", "p")])
    assert isinstance(found, errors.AssignmentDiffers)
    assert found.metadata == {"index": "2", "other_index": "1"}
    found = refused(pair, [primary, Assign("u", "p", ROLE_PRIMARY, demote_primary=True), Assign("t", "p", focus="x")])
    assert found.metadata == {"index": "2", "other_index": "1"}  # of the entry that demoted the therapist
    existing = assign(pair, "t")
    found = refused(pair, [Assign("t", "p"), primary])
    assert found.metadata == {"index": "1", "assignment_id": existing.assignment_id}


def test_capacity_counts_the_earlier_entries(pair: RelationshipStore) -> None:
    update(pair, THERAPIST, "t", max_active_patients=1)
    make(pair, PATIENT, "q")
    found = refused(pair, [Assign("t", "p"), Assign("t", "q")])
    assert isinstance(found, errors.TherapistAtCapacity)
    assert found.metadata == {"limit": "1", "current": "1", "index": "1"}


def test_entries_that_are_recorded_already_are_not_created_again(pair: RelationshipStore) -> None:
    some = pair.batch_assign(HISTORY[::3], CALL)
    result = pair.batch_assign(HISTORY, CALL)
    assert result.created == [n % 3 != 0 for n in range(100)]
    assert result.records[::3] == some.records
    before = dump(pair)
    assert pair.batch_assign(HISTORY, CALL) == result._replace(created=[False] * 100)
    assert dump(pair) == before


@pytest.mark.parametrize(
    "recorded", [slice(0, 0), slice(0, 100), slice(0, 61), slice(62, 100), slice(0, 99), slice(1, 100, 2)], ids=str
)
def test_a_replay_returns_the_created_flag_of_each_entry(
    pair: RelationshipStore, clock: Clock, recorded: slice
) -> None:
    for order in HISTORY[recorded]:
        pair.assign(order, CALL)
    first = pair.batch_assign(HISTORY, request(ID))
    kept = range(*recorded.indices(100))
    assert first.created == [n not in kept for n in range(100)]
    before = dump(pair)
    clock.advance(DAY - 1)
    assert pair.batch_assign(HISTORY, request(ID)) == first
    replayed = pair.batch_assign(HISTORY, request(ID)._replace(validate_only=True))
    assert replayed == first._replace(revision="")
    assert dump(pair) == before
    clock.advance(2)
    assert pair.batch_assign(HISTORY, request(ID)).created == [False] * 100


def test_a_replay_returns_the_assignments_as_they_are_now(pair: RelationshipStore) -> None:
    first = pair.batch_assign([Assign("t", "p"), Assign("t", "p")], request(ID))
    assert first.created == [True, False]
    ended = unassign(pair)
    assert pair.batch_assign([], request(ID)) == first._replace(records=[ended, ended])
    with pytest.raises(errors.RequestIdReused):
        pair.batch_assign(HISTORY, request(ID, b"another"))


def test_validating_returns_what_the_batch_would_do_without_generated_values(pair: RelationshipStore) -> None:
    pair.batch_assign(HISTORY[:1], CALL)
    before = dump(pair)
    would_be = pair.batch_assign(HISTORY[:2], VALIDATE)
    assert dump(pair) == before
    done = pair.batch_assign(HISTORY[:2], CALL)
    assert (would_be.created, would_be.revision) == (done.created, "") == ([False, True], "")
    assert would_be.records == [done.records[0], done.records[1]._replace(assignment_id="", etag="")]


def test_a_batch_without_effect_writes_nothing(pair: RelationshipStore) -> None:
    pair.batch_assign(HISTORY, CALL)
    before = dump(pair)
    assert pair.batch_assign(HISTORY[5:9], CALL).created == [False] * 4
    assert dump(pair) == before


def test_a_deleted_record_rejects_the_batch(pair: RelationshipStore) -> None:
    delete(pair, THERAPIST, "u")
    found = refused(pair, [*HISTORY[:2], Assign("u", "p", start_us=0, end_us=1)])
    assert (type(found), found.metadata) == (errors.TherapistDeleted, {"index": "2"})


@pytest.mark.slow
def test_racing_batches_in_opposite_orders_leave_no_overlap(
    store: RelationshipStore, instances: list[RelationshipStore]
) -> None:
    for number in range(6):
        make(store, PATIENT, f"p{number}")
        make(store, THERAPIST, f"t{number}")

    def batch(number: int) -> list[Assign]:
        pairs = [(f"t{(number + n) % 6}", f"p{n * (5 if number % 2 else 1) % 6}") for n in range(6)]
        roles: dict[str, Any] = {"role": ROLE_PRIMARY, "replace": True, "replace_primary": True}
        active = [Assign(*one, **roles) for one in pairs]
        start = number * 3 % 20
        past = [Assign(*one, ROLE_TREATING, start_us=start, end_us=start + 4) for one in pairs]
        return active if number % 3 == 0 else past

    def one(number: int) -> bool:
        return any(instances[number % 3].batch_assign(batch(number), CALL).created)

    done, refusals = race(one)
    assert {type(refusal) for refusal in refusals} <= {errors.PeriodOverlaps}
    assert any(done)
    assert broken(store) == []
