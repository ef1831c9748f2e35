"""A repeat without a request_id succeeds and writes nothing, because its effect already holds."""

from collections.abc import Callable
from typing import Any

import pytest
from caseload_server.domain import requests
from caseload_server.domain.enums import ROLE_PRIMARY
from caseload_server.store import PATIENT, THERAPIST, RelationshipStore

from tests.store.store_calls import CALL, AnyKind, assign, both_kinds, delete, dump, make, make_pair, update
from tests.store.write_cases import effect


def leave(store: RelationshipStore) -> None:
    update(store, THERAPIST, "t", status=2)


def fill(store: RelationshipStore) -> None:
    update(store, THERAPIST, "t", max_active_patients=0)


def rename(store: RelationshipStore) -> None:
    update(store, THERAPIST, "t", display_name="New")
    update(store, PATIENT, "p", display_name="New")


def another_primary(store: RelationshipStore) -> None:
    make(store, THERAPIST, "u")
    assign(store, "u", "p", role=ROLE_PRIMARY)


def discharge(store: RelationshipStore) -> None:
    update(store, PATIENT, "p", status=2)


def delete_both(store: RelationshipStore) -> None:
    delete(store, THERAPIST, "t", force=True)
    delete(store, PATIENT, "p", force=True)


def take_identifier(store: RelationshipStore) -> None:
    for kind in (THERAPIST, PATIENT):
        make(store, kind, "taker", identifiers='[["urn:mrn","1"]]')


Meanwhile = Callable[[RelationshipStore], None]


def repeated(store: RelationshipStore, meanwhile: Meanwhile, call: Callable[[], Any]) -> None:
    call()
    meanwhile(store)
    before = dump(store)
    assert effect(call()) == 0
    assert dump(store) == before


@pytest.mark.parametrize("meanwhile", [leave, fill, rename, another_primary])
def test_a_repeated_assign_succeeds_after_other_changes(store: RelationshipStore, meanwhile: Meanwhile) -> None:
    make_pair(store)
    repeated(store, meanwhile, lambda: store.assign(requests.Assign("t", "p"), CALL))


@pytest.mark.parametrize("meanwhile", [leave, fill, rename, another_primary, discharge, delete_both])
def test_a_repeated_unassign_succeeds_after_other_changes(store: RelationshipStore, meanwhile: Meanwhile) -> None:
    make_pair(store)
    order = requests.Unassign("t", "p", etag=assign(store).etag)
    repeated(store, meanwhile, lambda: store.unassign(order, CALL))


@both_kinds
@pytest.mark.parametrize("meanwhile", [take_identifier, lambda _: None], ids=["identifier taken", "nothing"])
def test_a_repeated_delete_succeeds_after_other_changes(
    store: RelationshipStore, kind: AnyKind, meanwhile: Meanwhile
) -> None:
    created = make(store, kind, "a", identifiers='[["urn:mrn","1"]]')
    order = requests.Delete("a", etag=created.etag)
    repeated(store, meanwhile, lambda: store.delete(kind, order, CALL))


@both_kinds
@pytest.mark.parametrize("meanwhile", [leave, fill, rename, another_primary, discharge])
def test_a_repeated_undelete_succeeds_after_other_changes(
    store: RelationshipStore, kind: AnyKind, meanwhile: Meanwhile
) -> None:
    make_pair(store)
    it = kind.name[0]
    delete(store, kind, it)
    repeated(store, meanwhile, lambda: store.undelete(kind, it, CALL))
