"""Writes that end expired assignments first, in one transaction with other writes of the same patient."""

from functools import partial

from caseload_server.domain import errors, requests
from caseload_server.domain.enums import END_EXPIRED, ROLE_PRIMARY
from caseload_server.store import PATIENT, THERAPIST, RelationshipStore

from tests.store.backends.batches import batch
from tests.store.conftest import Clock
from tests.store.store_builders import SECOND, assert_consistent, patients, therapists
from tests.store.store_calls import VALIDATE, assign, broken, history, request, run, update

ON_LEAVE = 2
EXPIRIES = "SELECT revision FROM change_set WHERE actor = 'system:expiry'"


def test_of_writes_that_share_a_transaction_the_first_that_is_accepted_ends_an_expired_assignment(
    store: RelationshipStore, clock: Clock
) -> None:
    therapists(store, "t", "u", "v")
    patients(store, "p", "q")
    expire_us = clock.now_us + SECOND
    assign(store, role=ROLE_PRIMARY, expire_us=expire_us)
    update(store, THERAPIST, "u", status=ON_LEAVE)
    clock.advance(2)
    primary = requests.Assign("v", "p", ROLE_PRIMARY)
    refused, validated, ended, begun, again, updated = batch(
        store._database,
        [
            partial(assign, store, "u", role=ROLE_PRIMARY),
            partial(store.assign, primary, VALIDATE),
            partial(store.unassign, requests.Unassign("t", "p"), request("r")),
            partial(store.assign, primary, request("s")),
            partial(assign, store, "u", role=ROLE_PRIMARY),
            partial(update, store, PATIENT, "p", email="a@b"),
        ],
    )
    assert isinstance(refused, errors.TherapistNotActive)
    assert isinstance(again, errors.PrimaryExists | errors.TherapistNotActive)
    assert (validated.created, ended.ended, begun.created, updated.email) == (True, False, True, "a@b")
    assert [(one.therapist_id, one.end_us, one.end_reason) for one in history(store)] == [
        ("t", expire_us, END_EXPIRED),
        ("v", None, 0),
    ]
    [(expiry,)] = run(store, EXPIRIES)
    assert [store.keys.number(one.revision) - expiry for one in (ended, begun)] == [0, 1]
    assert store.unassign(requests.Unassign("t", "p"), request("r")).revision == ended.revision
    assert store.assign(primary, request("s")) == begun
    assert broken(store) == []
    assert_consistent(store)
