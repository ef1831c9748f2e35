from typing import Any

from caseload_server.domain.enums import ROLE_PRIMARY
from caseload_server.domain.requests import Assign, Update
from caseload_server.store import PATIENT, THERAPIST, RelationshipStore

from tests.store import older_instance
from tests.store.conftest import Clock
from tests.store.merge_setup import merge, unmerge, with_identifiers
from tests.store.store_builders import transfer
from tests.store.store_calls import CALL, VALIDATE, assign, broken, delete, head, make, make_pair, run, unassign, update
from tests.store.version_replay import State, current_state, kept_hashes, logged_hashes, replayed_state
from tests.store.write_cases import Mutation, each_write

SECOND_US = 1_000_000


def versions_of(store: RelationshipStore, table: str, record_id: str) -> list[int]:
    """The revisions of the changes that replaced the versions of a record."""
    sql = f"SELECT to_revision FROM {table}_version WHERE {table}_id = :id ORDER BY to_revision"
    return [row[0] for row in run(store, sql, {"id": record_id})]


def assert_replays(store: RelationshipStore, states: dict[int, State]) -> None:
    """Asserts that the versions give back every state that the store had, and that the log has their hashes."""
    for revision, state in states.items():
        replayed = replayed_state(store, revision)
        assert {key: replayed[key] for key in state} == state, revision
    assert kept_hashes(store) == logged_hashes(store)


@each_write
def test_every_write_keeps_what_its_records_were(store: RelationshipStore, mutation: Mutation) -> None:
    mutation.prepare(store)
    before = {head(store): current_state(store)}
    mutation.do(store, CALL)
    assert_replays(store, before)
    changed = sum(change[0] != 1 for change in mutation.changes)
    sql = "SELECT COUNT(*) FROM change WHERE revision = :head AND version_hash IS NOT NULL"
    assert run(store, sql, {"head": head(store)}) == [(changed,)]


def test_every_state_of_a_history_can_be_replayed(store: RelationshipStore, clock: Clock) -> None:
    for name in "tuv":
        make(store, THERAPIST, name)
    make(store, PATIENT, "s", identifiers=with_identifiers("1"))
    make(store, PATIENT, "p", identifiers=with_identifiers("2"))
    soon = clock() + 10 * SECOND_US
    steps: list[Any] = [
        lambda: assign(store, "t", "p", role=ROLE_PRIMARY),
        lambda: assign(store, "u", "p", expire_us=soon),
        lambda: assign(store, "u", "s", expire_us=soon),
        lambda: store.assign(Assign("v", "p", role=ROLE_PRIMARY, demote_primary=True), CALL),
        lambda: transfer(store, "t", "v"),
        lambda: clock.advance(60) and unassign(store, "v", "p", end_reason=1),
        store.end_expired,
        lambda: update(store, PATIENT, "p", email="a@example.org", annotations='{"k":"Ü\\u0001"}'),
        lambda: assign(store, "t", "s", role=ROLE_PRIMARY),
        lambda: merge(store),
        lambda: unmerge(store),
        lambda: delete(store, THERAPIST, "t", force=True),
        lambda: store.undelete(THERAPIST, "t", CALL),
    ]
    states = {head(store): current_state(store)}
    for step in steps:
        step()
        states[head(store)] = current_state(store)
    assert len(states) > len(steps)  # each step wrote
    assert_replays(store, states)


def test_a_correction_keeps_what_the_period_was(pair: RelationshipStore) -> None:
    period = assign(pair)
    before = {head(pair): current_state(pair)}
    pair.correct(period.assignment_id, "", {"focus": "grief", "start_us": period.start_us - SECOND_US}, CALL)
    assert_replays(pair, before)
    assert versions_of(pair, "assignment", period.assignment_id) == [head(pair)]


def test_a_record_that_changes_twice_in_one_change_set_keeps_its_first_version(people: RelationshipStore) -> None:
    assign(people, "t", "p")
    before = {head(people): current_state(people)}
    batch = [Assign("t", "p", focus="grief", replace=True), Assign("t", "p", focus="anxiety", replace=True)]
    people.batch_assign(batch, CALL)
    assert_replays(people, before)
    assert len(run(people, "SELECT 1 FROM assignment_version")) == 1  # none of the period that began and ended


def test_an_expiry_and_the_write_that_it_obstructs_keep_a_version_each(pair: RelationshipStore, clock: Clock) -> None:
    period = assign(pair, expire_us=clock() + SECOND_US)
    states = {head(pair): current_state(pair)}
    clock.advance(2)
    pair.correct(period.assignment_id, "", {"focus": "grief"}, CALL)
    assert_replays(pair, states)
    assert versions_of(pair, "assignment", period.assignment_id) == [head(pair) - 1, head(pair)]


def test_a_change_set_of_an_older_server_moves_the_start_of_complete_versions(
    pair: RelationshipStore, clock: Clock
) -> None:
    update(pair, PATIENT, "p", email="1@example.org")
    older_instance.update_email(pair, "p", "older@example.org", clock.advance(1))
    assert run(pair, "SELECT versions_revision, versions_us FROM store") == [(head(pair), clock())]
    update(pair, PATIENT, "p", email="2@example.org")
    assert versions_of(pair, "patient", "p") == [head(pair) - 2, head(pair)]
    assert list(pair.key_catch_up.run()) == [1]
    assert broken(pair) == []


def test_instances_that_write_in_turn_keep_each_version_once(instances: list[RelationshipStore]) -> None:
    """The log may have grown by the writes of the other instance since this one wrote."""
    first, other, *_ = instances
    make_pair(first)
    for number in range(4):
        for store, kind, record_id in ((first, PATIENT, "p"), (first, PATIENT, "p"), (other, THERAPIST, "t")):
            update(store, kind, record_id, email=f"{number}@example.org", annotations="{}")
            update(store, kind, record_id, annotations='{"k":"v"}')
    assert kept_hashes(first) == logged_hashes(first)
    assert len(kept_hashes(first)) == head(first) - 2


def test_versions_have_the_time_of_their_change(pair: RelationshipStore, clock: Clock) -> None:
    clock.advance(5)
    update(pair, PATIENT, "p", email="a@example.org")
    assert run(pair, "SELECT to_revision, to_us FROM patient_version") == [(head(pair), clock())]


def test_counts_and_the_primary_therapist_make_no_version(pair: RelationshipStore) -> None:
    assign(pair, role=ROLE_PRIMARY)
    assert versions_of(pair, "therapist", "t") == versions_of(pair, "patient", "p") == []


def test_a_call_that_only_validates_keeps_no_version(pair: RelationshipStore) -> None:
    pair.update(PATIENT, Update("p", {"email": "a@example.org"}), VALIDATE)
    assert versions_of(pair, "patient", "p") == []
