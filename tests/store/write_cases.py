"""Every write of the store in one table, for tests that apply to all of them."""

from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
from caseload_server.domain.enums import PATIENT_DISCHARGED, ROLE_PRIMARY, THERAPIST_INACTIVE
from caseload_server.domain.requests import Assign, CallContext, Delete, Fields, Unassign, Update
from caseload_server.domain.results import (
    AssignResult,
    BatchCreateResult,
    DeleteResult,
    RecordResult,
    TransferResult,
    UnassignResult,
    UpdateResult,
)
from caseload_server.store import PATIENT, THERAPIST, RelationshipStore

from tests.store.store_calls import CALL, AnyKind, assign, delete, make, unassign

CREATED, UPDATED, DELETED, UNDELETED = 1, 2, 3, 4
ENDED = "state,end_time,end_reason,ended_by"

Change = tuple[int, str, str | None, str | None, bool]
"""Kind, field names, therapist, patient, and whether the change is of their assignment."""


RENAME: Fields = {"display_name": "Ada King", "email": "ada@example.org"}
FINISHED = Assign("t", "p", role=ROLE_PRIMARY, start_us=100, end_us=200, end_reason=1)


class Mutation(NamedTuple):
    """One call that writes, or that has no effect."""

    name: str
    prepare: Callable[[RelationshipStore], Any]
    do: Callable[[RelationshipStore, CallContext], Any]
    changes: tuple[Change, ...] = ()
    """The expected changes in the log, in order."""
    made: tuple[str, ...] = ()
    """The columns of the result that the server generates."""
    effect: int = 0
    """The expected result of `effect`."""


def effect(result: Any) -> int:
    """How many assignments the call began, ended or moved, according to its result."""
    match result:
        case AssignResult():
            return int(result.created)
        case UnassignResult():
            return int(result.ended)
        case DeleteResult() | UpdateResult():
            return result.ended_count
        case TransferResult():
            return len(result.ended)
    return 0


def everyone(store: RelationshipStore) -> None:
    """Therapists t and u, patients p and q."""
    for name in "tu":
        make(store, THERAPIST, name, identifiers='[["urn:npi","1"]]' if name == "t" else "[]")
    for name in "pq":
        make(store, PATIENT, name, identifiers='[["urn:mrn","1"]]' if name == "p" else "[]")


def assigned(store: RelationshipStore) -> None:
    """Everyone; t treats p, and u is the primary of p."""
    everyone(store)
    assign(store, "t", "p")
    assign(store, "u", "p", role=ROLE_PRIMARY)


def ended(store: RelationshipStore) -> None:
    """Everyone; t treated p."""
    everyone(store)
    assign(store, "t", "p")
    unassign(store, "t", "p")


def inactive(store: RelationshipStore) -> None:
    """Everyone; t is inactive, and p is discharged."""
    everyone(store)
    store.update(THERAPIST, Update("t", {"status": THERAPIST_INACTIVE}), CALL)
    store.update(PATIENT, Update("p", {"status": PATIENT_DISCHARGED}), CALL)


def finished(store: RelationshipStore) -> None:
    """Everyone; the finished period is recorded, and u is the primary of p."""
    everyone(store)
    store.assign(FINISHED, CALL)
    assign(store, "u", "p", role=ROLE_PRIMARY)


def first_of(result: BatchCreateResult[Any]) -> RecordResult[Any]:
    """The first record of a batch as the result, so that the tests of single records apply."""
    return RecordResult(result.records[0], result.revision)


def of(kind: AnyKind, record_id: str) -> tuple[str | None, str | None, bool]:
    """The log's columns for a therapist or a patient."""
    return (record_id, None, False) if kind is THERAPIST else (None, record_id, False)


def _creates(kind: AnyKind) -> list[Mutation]:
    name = kind.name
    return [
        Mutation(
            f"create a {name} under a new id",
            everyone,
            lambda store, call: store.create(kind, "", RENAME, call),
            ((CREATED, "", *of(kind, "<new>")),),
            (kind.id_column, "etag"),
        ),
        Mutation(
            f"create a {name} under a chosen id",
            everyone,
            lambda store, call: store.create(kind, "new", {**RENAME, "identifiers": '[["urn:x","1"]]'}, call),
            ((CREATED, "", *of(kind, "new")),),
            ("etag",),
        ),
        Mutation(
            f"create two {name}s at once",
            everyone,
            lambda store, call: first_of(store.batch_create(kind, [("new", RENAME), ("new-2", RENAME)], call)),
            ((CREATED, "", *of(kind, "new")), (CREATED, "", *of(kind, "new-2"))),
            ("etag",),
        ),
    ]


def _updates(kind: AnyKind) -> list[Mutation]:
    name, it = kind.name, kind.name[0]

    def update(store: RelationshipStore, call: CallContext) -> Any:
        return store.update(kind, Update(it, {**RENAME, "identifiers": store.get(kind, it).identifiers}), call)

    force = _forced_ends(kind)
    return [
        Mutation(f"update a {name}", everyone, update, ((UPDATED, "display_name,email", *of(kind, it)),), ("etag",)),
        Mutation(
            f"update a {name} with force",
            assigned,
            lambda store, call: store.update(kind, Update(it, {"status": kind.idle_status}, end_reason=1), call),
            (*force, (UPDATED, "status", *of(kind, it))),
            ("etag",),
            len(force),
        ),
    ]


def _deletes(kind: AnyKind) -> list[Mutation]:
    name, it = kind.name, kind.name[0]

    def deleted(store: RelationshipStore) -> None:
        everyone(store)
        delete(store, kind, it)

    def overtaken(store: RelationshipStore) -> None:
        deleted(store)
        make(store, kind, "new", identifiers=f'[["urn:{"npi" if kind is THERAPIST else "mrn"}","1"]]')

    force = _forced_ends(kind)
    return [
        Mutation(
            f"delete a {name}",
            everyone,
            lambda store, call: store.delete(kind, Delete(it), call),
            ((DELETED, "delete_time", *of(kind, it)),),
            ("etag",),
        ),
        Mutation(
            f"delete a {name} with force",
            assigned,
            lambda store, call: store.delete(kind, Delete(it, force=True), call),
            (*force, (DELETED, "delete_time", *of(kind, it))),
            ("etag",),
            len(force),
        ),
        Mutation(
            f"undelete a {name}",
            deleted,
            lambda store, call: store.undelete(kind, it, call),
            ((UNDELETED, "delete_time", *of(kind, it)),),
            ("etag",),
        ),
        Mutation(
            f"undelete a {name} without its identifiers",
            overtaken,
            lambda store, call: store.undelete(kind, it, call, release_identifiers=True),
            ((UNDELETED, "delete_time,identifiers", *of(kind, it)),),
            ("etag",),
        ),
    ]


def _forced_ends(kind: AnyKind) -> list[Change]:
    """The ends of the assignments of t or p, whom `assigned` has assigned."""
    return [(UPDATED, ENDED, therapist, "p", True) for therapist in ("t" if kind is THERAPIST else "tu")]


def _no_ops_of_kind(kind: AnyKind) -> list[Mutation]:
    name, it = kind.name, kind.name[0]

    def deleted(store: RelationshipStore) -> None:
        everyone(store)
        delete(store, kind, it)

    return [
        Mutation(
            f"update nothing of a {name}",
            everyone,
            lambda store, call: store.update(kind, Update(it, {"display_name": "Ada Lovelace"}), call),
        ),
        Mutation(f"delete a deleted {name}", deleted, lambda store, call: store.delete(kind, Delete(it), call)),
        Mutation(
            f"delete a missing {name}",
            everyone,
            lambda store, call: store.delete(kind, Delete("missing", allow_missing=True), call),
        ),
        Mutation(f"undelete a live {name}", everyone, lambda store, call: store.undelete(kind, it, call)),
    ]


WRITES = [
    *(case for kind in (THERAPIST, PATIENT) for cases in (_creates, _updates, _deletes) for case in cases(kind)),
    Mutation(
        "assign",
        everyone,
        lambda store, call: store.assign(Assign("t", "p", role=ROLE_PRIMARY, focus="grief"), call),
        ((CREATED, "", "t", "p", True),),
        ("assignment_id", "etag"),
        1,
    ),
    Mutation(
        "assign replacing the pair's own",
        assigned,
        lambda store, call: store.assign(Assign("t", "p", focus="grief", replace=True), call),
        ((UPDATED, ENDED, "t", "p", True), (CREATED, "", "t", "p", True)),
        ("assignment_id", "etag"),
        1,
    ),
    Mutation(
        "assign replacing two",
        assigned,
        lambda store, call: store.assign(Assign("t", "p", role=ROLE_PRIMARY, replace=True, replace_primary=True), call),
        ((UPDATED, ENDED, "t", "p", True), (UPDATED, ENDED, "u", "p", True), (CREATED, "", "t", "p", True)),
        ("assignment_id", "etag"),
        1,
    ),
    Mutation(
        "assign a finished period",
        inactive,
        lambda store, call: store.assign(FINISHED, call),
        ((CREATED, "", "t", "p", True),),
        ("assignment_id", "etag"),
        1,
    ),
    Mutation(
        "unassign",
        assigned,
        lambda store, call: store.unassign(Unassign("u", "p"), call),
        ((UPDATED, "state,end_time,ended_by", "u", "p", True),),
        ("etag",),
        1,
    ),
    Mutation(
        "unassign with a reason",
        assigned,
        lambda store, call: store.unassign(Unassign("t", "p", end_reason=1, end_us=2_000_000_000_000_000), call),
        ((UPDATED, ENDED, "t", "p", True),),
        ("etag",),
        1,
    ),
]
NO_OPS = [
    *_no_ops_of_kind(THERAPIST),
    *_no_ops_of_kind(PATIENT),
    Mutation("assign again", assigned, lambda store, call: store.assign(Assign("t", "p"), call)),
    Mutation("assign a finished period again", finished, lambda store, call: store.assign(FINISHED, call)),
    Mutation("unassign again", ended, lambda store, call: store.unassign(Unassign("t", "p"), call)),
    Mutation(
        "unassign two never assigned",
        everyone,
        lambda store, call: store.unassign(Unassign("t", "p", allow_missing=True), call),
    ),
]


def _each(mutations: list[Mutation]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("mutation", mutations, ids=[mutation.name for mutation in mutations])


each_write = _each(WRITES)
each_no_op = _each(NO_OPS)
each_mutation = _each([*WRITES, *NO_OPS])
