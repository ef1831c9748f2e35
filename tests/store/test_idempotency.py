from contextlib import closing
from typing import Any

import pytest
from caseload_server.config import Config
from caseload_server.domain import enums, errors, requests
from caseload_server.domain.requests import Unassign, Update
from caseload_server.store import PATIENT, THERAPIST, RelationshipStore
from caseload_server.store.backends.factory import open_store

from tests.store.conftest import Clock
from tests.store.store_calls import (
    CALL,
    AnyKind,
    assign,
    both_kinds,
    delete,
    dump,
    history,
    make,
    make_pair,
    request,
    run,
    unassign,
    update,
)
from tests.store.write_cases import WRITES, Mutation, each_mutation

ID = "3b241101-e2bb-4255-8caf-4136c566a962"
DAY = 24 * 3600


def remembered(store: RelationshipStore) -> list[str]:
    return [row[1] for row in dump(store)["request"]]


@each_mutation
def test_a_replay_returns_the_same_result_and_writes_nothing(
    store: RelationshipStore, clock: Clock, mutation: Mutation
) -> None:
    mutation.prepare(store)
    first = mutation.do(store, request(ID))
    before = dump(store)
    clock.advance(DAY - 1)
    assert mutation.do(store, request(ID)) == first
    assert dump(store) == before


@both_kinds
def test_a_replay_returns_the_current_record_with_the_first_revision(store: RelationshipStore, kind: AnyKind) -> None:
    first = store.create(kind, "", {"display_name": "Ada"}, request(ID))
    renamed = update(store, kind, first.record[0], display_name="Ada King")
    assert store.create(kind, "", {"display_name": "Ada"}, request(ID)) == first._replace(record=renamed)
    deleted = delete(store, kind, first.record[0]).record
    assert store.create(kind, "", {"display_name": "Ada"}, request(ID)) == first._replace(record=deleted)


def test_a_replayed_update_succeeds_with_its_old_etag(store: RelationshipStore) -> None:
    etag = make(store, PATIENT, "p").etag
    first = store.update(PATIENT, Update("p", {"email": "a@b"}, etag=etag), request(ID))
    assert store.update(PATIENT, Update("p", {"email": "a@b"}, etag=etag), request(ID)) == first


@both_kinds
def test_a_replayed_delete_returns_its_first_count_after_an_undelete(store: RelationshipStore, kind: AnyKind) -> None:
    make_pair(store)
    assign(store)
    order = requests.Delete(kind.name[0], force=True)
    first = store.delete(kind, order, request(ID))
    assert first.ended_count == 1
    live = store.undelete(kind, kind.name[0], CALL).record
    assert store.delete(kind, order, request(ID)) == first._replace(record=live)


@both_kinds
def test_a_replayed_delete_of_a_missing_record_ignores_one_created_since(
    store: RelationshipStore, kind: AnyKind
) -> None:
    order = requests.Delete("a", allow_missing=True)
    first = store.delete(kind, order, request(ID))
    made = make(store, kind, "a")
    assert store.delete(kind, order, request(ID)) == first
    assert store.get(kind, "a") == made


def test_a_replayed_assign_returns_its_period_even_when_ended_since(store: RelationshipStore, clock: Clock) -> None:
    make_pair(store)
    first = store.assign(requests.Assign("t", "p"), request(ID))
    clock.advance(1)
    ended = unassign(store)
    clock.advance(1)
    assign(store)
    assert store.assign(requests.Assign("t", "p"), request(ID)) == first._replace(record=ended)
    assert len(history(store)) == 2


def test_a_replayed_unassign_does_not_end_a_later_period(store: RelationshipStore, clock: Clock) -> None:
    make_pair(store)
    assign(store)
    first = store.unassign(requests.Unassign("t", "p"), request(ID))
    clock.advance(1)
    current = assign(store)
    assert store.unassign(requests.Unassign("t", "p"), request(ID)) == first
    assert history(store)[-1] == current


def test_a_replay_skips_checks_that_would_reject_the_call_now(store: RelationshipStore) -> None:
    make_pair(store)
    first = store.assign(requests.Assign("t", "p"), request(ID))
    delete(store, THERAPIST, "t", force=True)
    delete(store, PATIENT, "p")
    replayed = store.assign(requests.Assign("t", "p"), request(ID))
    assert (replayed.created, replayed.revision) == (True, first.revision)
    assert replayed.record.end_reason == enums.END_RECORD_DELETED


@pytest.mark.parametrize(
    "call",
    [request(ID, b"another request"), request(ID)._replace(method="/caseload.v1.TherapistService/Another")],
    ids=["request", "method"],
)
def test_another_request_or_method_with_the_same_id_is_rejected(
    store: RelationshipStore, call: requests.CallContext
) -> None:
    make(store, THERAPIST, "t")
    store.update(THERAPIST, Update("t", {"email": "a@b"}), request(ID))
    before = dump(store)
    for refused in (call, call._replace(validate_only=True)):
        with pytest.raises(errors.RequestIdReused):
            store.update(THERAPIST, Update("t", {"email": "c@d"}), refused)
    assert dump(store) == before


def test_callers_do_not_share_request_ids(store: RelationshipStore) -> None:
    first = store.create(THERAPIST, "", {"display_name": "Ada"}, request(ID))
    second = store.create(THERAPIST, "", {"display_name": "Bob"}, request(ID, b"another")._replace(actor="front-desk"))
    assert first.record.therapist_id != second.record.therapist_id


def test_a_request_id_is_forgotten_after_24_hours_and_not_earlier(store: RelationshipStore, clock: Clock) -> None:
    first = store.create(THERAPIST, "", {"display_name": "Ada"}, request(ID))
    clock.advance(DAY - 1)
    assert store.create(THERAPIST, "", {"display_name": "Ada"}, request(ID)) == first
    clock.advance(1)
    second = store.create(THERAPIST, "", {"display_name": "Ada"}, request(ID, b"another"))
    assert second.record.therapist_id != first.record.therapist_id
    assert store.create(THERAPIST, "", {"display_name": "Ada"}, request(ID, b"another")) == second


def test_a_replay_does_not_extend_the_expiry_of_its_request(store: RelationshipStore, clock: Clock) -> None:
    first = store.create(THERAPIST, "", {"display_name": "Ada"}, request(ID))
    clock.advance(DAY - 1)
    store.create(THERAPIST, "", {"display_name": "Ada"}, request(ID))
    clock.advance(1)
    assert store.create(THERAPIST, "", {"display_name": "Ada"}, request(ID)).record != first.record


def test_a_clock_set_back_forgets_no_request(store: RelationshipStore, clock: Clock) -> None:
    first = store.create(THERAPIST, "", {"display_name": "Ada"}, request(ID))
    clock.advance(-DAY * 2)
    assert store.create(THERAPIST, "", {"display_name": "Ada"}, request(ID)) == first


def again(store: RelationshipStore, request_id: str = ID) -> Any:
    return store.create(THERAPIST, "", {"display_name": "Ada"}, request(request_id))


@pytest.mark.parametrize("days", [-2, 2, -20_000, 20_000])
def test_a_clock_that_was_wrong_and_is_corrected_repeats_no_write(
    store: RelationshipStore, clock: Clock, days: int
) -> None:
    before = again(store, "before")
    clock.step(days * DAY)
    first = again(store)
    assert [again(store, number) for number in ("before", ID)] == [before, first]
    for number in range(5):
        again(store, f"other-{number}")
    clock.step(-days * DAY)
    assert [again(store, number) for number in ("before", ID)] == [before, first]
    assert len(remembered(store)) == 7


@pytest.mark.parametrize("days", [-2, 2])
def test_a_restart_after_a_corrected_clock_repeats_no_write(database_url: str, clock: Clock, days: int) -> None:
    clock.step(days * DAY)
    with closing(open_store(Config(database=database_url), clock, monotonic=clock.monotonic)) as store:
        first = again(store)
    clock.step(-days * DAY)
    with closing(open_store(Config(database=database_url), clock, monotonic=clock.monotonic)) as store:
        assert again(store) == first


def test_an_instance_whose_clock_is_behind_makes_no_other_instance_repeat_a_write(
    store: RelationshipStore, database_url: str, clock: Clock
) -> None:
    behind = open_store(Config(database=database_url), lambda: clock() - 2 * DAY * 1_000_000)
    with closing(behind):
        first = again(behind)
    assert again(store) == first
    again(store, "another")
    assert again(store) == first


@pytest.mark.parametrize("days", [-2, 2])
def test_outcomes_of_a_wrong_clock_expire_a_day_later(store: RelationshipStore, clock: Clock, days: int) -> None:
    clock.step(days * DAY)
    first = again(store)
    clock.step(-days * DAY)
    again(store, "later")
    clock.advance(DAY)
    assert again(store).record != first.record


@pytest.mark.parametrize("other", [False, True], ids=["one process", "two processes"])
def test_a_write_that_changed_nothing_is_remembered_after_a_day_without_changes(
    store: RelationshipStore, database_url: str, clock: Clock, *, other: bool
) -> None:
    """Its outcome has the revision of the newest change, which is more than a day old."""
    make(store, THERAPIST, "t"), make(store, PATIENT, "p")
    order = Unassign("t", "p", allow_missing=True)
    with closing(open_store(Config(database=database_url), clock, monotonic=clock.monotonic)) as second:
        clock.advance(DAY + 60)
        first = (second if other else store).unassign(order, request(ID))
        assign(store, "t", "p")
        clock.advance(DAY - 1)
        assert store.unassign(order, request(ID)) == first


def test_outcomes_expire_by_the_hour_while_the_store_is_in_use(store: RelationshipStore, clock: Clock) -> None:
    for hour in range(60):
        again(store, f"{hour:02}")
        clock.advance(3600)
    assert remembered(store) == [f"{hour:02}" for hour in range(60 - 24, 60)]


def test_outcomes_of_an_earlier_process_expire(database_url: str, clock: Clock) -> None:
    for day in range(4):
        with closing(open_store(Config(database=database_url), clock, monotonic=clock.monotonic)) as store:
            for hour in range(12):
                again(store, f"{day}-{hour:02}")
                clock.advance(3600)
            found = remembered(store)
        clock.advance(12 * 3600)
    assert len(found) <= 36
    assert "0-00" not in found


def test_rejected_calls_are_not_remembered(store: RelationshipStore) -> None:
    make_pair(store)
    update(store, THERAPIST, "t", max_active_patients=0)
    with pytest.raises(errors.TherapistAtCapacity):
        store.assign(requests.Assign("t", "p"), request(ID))
    assert remembered(store) == []
    update(store, THERAPIST, "t", max_active_patients=1)
    assert store.assign(requests.Assign("t", "p"), request(ID)).created


@pytest.mark.parametrize("mutation", WRITES, ids=[mutation.name for mutation in WRITES])
def test_validations_are_not_remembered_and_can_be_answered_by_a_replay(
    store: RelationshipStore, mutation: Mutation
) -> None:
    mutation.prepare(store)
    validate = request(ID)._replace(validate_only=True)
    mutation.do(store, validate)
    first = mutation.do(store, request(ID))
    assert mutation.do(store, validate) == first._replace(revision="")


def test_a_call_without_effect_is_remembered(store: RelationshipStore) -> None:
    make_pair(store)
    update(store, PATIENT, "p", email="a@b")
    order: Any = {"email": "a@b"}
    first = store.update(PATIENT, Update("p", order), request(ID))
    assert first.revision == store.keys.revision(store.head_revision())
    changed = update(store, PATIENT, "p", email="c@d")
    assert store.update(PATIENT, Update("p", order), request(ID)) == first._replace(record=changed)
    assert store.get(PATIENT, "p").email == "c@d"


def test_expired_requests_are_swept_and_others_stay(store: RelationshipStore, clock: Clock) -> None:
    make(store, THERAPIST, "t")

    def touch(number: int) -> None:
        store.update(THERAPIST, Update("t", {"email": f"{number}@b"}), request(f"{number:03}"))

    for number in range(10):
        touch(number)
    clock.advance(DAY)
    for number in range(100, 107):
        touch(number)
    assert remembered(store) == [f"{number:03}" for number in range(100, 107)]


def test_an_expired_id_can_be_used_again_before_it_is_swept(store: RelationshipStore, clock: Clock) -> None:
    make(store, THERAPIST, "t")
    for number in range(10):
        store.update(THERAPIST, Update("t", {"email": f"{number}@b"}), request(f"{number:03}"))
    clock.advance(DAY)
    again = store.update(THERAPIST, Update("t", {"email": "x@b"}), request("009", b"another"))
    assert again.record.email == "x@b"
    assert "009" in remembered(store)


def test_a_replay_about_a_purged_record_is_not_found(store: RelationshipStore) -> None:
    store.create(THERAPIST, "t", {"display_name": "Ada"}, request(ID))
    run(store, "DELETE FROM therapist WHERE therapist_id = 't'")
    with pytest.raises(errors.TherapistNotFound):
        store.create(THERAPIST, "t", {"display_name": "Ada"}, request(ID))
