"""A way to meet each reason that a call can be refused with: on a failing disk, a held lock, a planted defect."""

import time
from collections.abc import Callable
from typing import Any, NamedTuple

import apsw
import grpc
from grpc import StatusCode

from tests.clinic import Clinic
from tests.following import unread
from tests.security.serving import KeysFile, bearer, serving
from tests.services.calling import T0, People, everything_said
from tests.services.world import CANARY, World, holding_the_lock
from tests.store.ward import fill

MRN = {"system": "urn:example:mrn", "value": CANARY}
ONE = "0190a3c4-0000-7000-8000-000000000001"
PRIMARY = 1
SLOW_SECONDS = 0.3
"""What a watch of these tests may take for a message."""


def deleted(people: People, record_id: str) -> None:
    people.delete(record_id, force=True)


def invalid_field(world: World) -> object:
    return world.therapists.create("t2", display_name=f"{CANARY}\x00")


def page_token_invalid(world: World) -> object:
    return world.patients.call("List", page_token=CANARY)


def page_token_mismatch(world: World) -> object:
    world.patients.create("p2")
    token = world.patients.call("List", page_size=1).next_page_token
    return world.patients.call("List", page_size=1, page_token=token, filter={"name_prefix": CANARY})


def request_id_reused(world: World) -> object:
    world.patients.call("Create", record={"display_name": CANARY}, request_id=ONE)
    return world.patients.call("Create", record={"display_name": CANARY * 2}, request_id=ONE)


def identifier_taken(world: World) -> object:
    return world.patients.create("p2", identifiers=[MRN])


def assignment_differs(world: World) -> object:
    world.side.assign(focus="canary-zq9")
    return world.side.assign(focus="canary-zq9-2")


def therapist_deleted(world: World) -> object:
    deleted(world.therapists, "t1")
    return world.side.assign()


def patient_deleted(world: World) -> object:
    deleted(world.patients, "p1")
    return world.side.assign()


def therapist_not_active(world: World) -> object:
    world.therapists.update("t1", status=2)
    return world.side.assign()


def patient_not_active(world: World) -> object:
    world.patients.update("p1", status=2)
    return world.side.assign()


def primary_exists(world: World) -> object:
    world.therapists.create("t2")
    world.side.assign("t2", role=PRIMARY)
    return world.side.assign(role=PRIMARY)


def therapist_at_capacity(world: World) -> object:
    world.therapists.update("t1", "max_active_patients", max_active_patients=0)
    return world.side.assign(focus="canary-zq9")


def has_active_assignments(world: World) -> object:
    world.side.assign()
    return world.therapists.delete("t1")


def period_overlaps(world: World) -> object:
    world.side.assign(start_time={"seconds": T0})
    world.side.unassign(end_time={"seconds": T0 + 60})
    return world.side.assign(start_time={"seconds": T0 + 30})


def therapist_deleted_in_transfer(world: World) -> object:
    world.therapists.create("t2")
    deleted(world.therapists, "t2")
    return world.clinic.transfer()


def patient_deleted_in_transfer(world: World) -> object:
    world.therapists.create("t2")
    deleted(world.patients, "p1")
    return world.clinic.transfer("t1", "t2", "p1")


def not_with_the_source(world: World) -> object:
    world.therapists.create("t2")
    return world.clinic.transfer("t1", "t2", "p1")


MANY_ASSIGNED = """
CREATE TEMP TABLE many AS
    WITH RECURSIVE numbers (n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM numbers WHERE n < 1001) SELECT n FROM numbers;
INSERT INTO patient (patient_id, display_name, birth_date, email, phone_number, status, identifiers, annotations,
        active_therapist_count, created_us, updated_us, etag)
    SELECT 'many' || n, 'A', '', '', '', 1, '[]', '{}', 1, 0, 0, 'e' FROM many;
INSERT INTO assignment (assignment_id, therapist_id, patient_id, role, focus, start_us, end_reason, created_by,
        ended_by, created_us, updated_us, etag)
    SELECT 'a' || n, 't1', 'many' || n, 2, '', 0, 0, 'local', '', 0, 0, 'e' FROM many;
UPDATE therapist SET active_patient_count = 1001 WHERE therapist_id = 't1'"""


def assign_too_many(world: World) -> None:
    """They are put into the file at once: a thousand and one calls would take their time."""
    with apsw.Connection(str(world.database)) as other:
        other.execute(MANY_ASSIGNED)


def too_many_assignments(world: World) -> object:
    assign_too_many(world)
    return world.therapists.delete("t1", force=True)


def too_many_assignments_in_transfer(world: World) -> object:
    assign_too_many(world)
    world.therapists.create("t2")
    return world.clinic.transfer()


def etag_mismatch(world: World) -> object:
    return world.patients.update("p1", display_name=CANARY, etag=CANARY)


def store_busy(world: World) -> object:
    with holding_the_lock(world.database):
        return world.patients.create("p2", display_name=CANARY)


def store_unavailable(world: World) -> object:
    world.writer.pragma("shrink_memory")  # or it would not have to read
    world.disk.failing = "read"
    return world.patients.create("p2", display_name=CANARY)


def store_unavailable_to_watch(world: World) -> object:
    world.disk.failing = "read"
    return next(world.clinic.watch())


def outcome_unknown(world: World) -> object:
    world.disk.failing = "sync"
    return world.patients.create("p2", display_name=CANARY)


def pruned(world: World) -> str:
    """A revision from before a purge."""
    oldest = str(world.clinic.send("ListChanges").oldest_revision)
    world.server._store.purge_changes(time.time_ns() // 1000 + 1)
    return oldest


def too_many_watches(world: World) -> object:
    with_the_place = world.clinic.watch()
    next(with_the_place)
    try:
        return next(world.clinic.watch())
    finally:
        with_the_place.cancel()


def watch_too_slow(world: World) -> object:
    start = world.clinic.head()
    fill(world.server._store, sets=8, lines=3000)
    with unread(world.server.address, start) as stream:
        time.sleep(SLOW_SECONDS * 3)
        return list(stream)


def shutting_down_in_watch(world: World) -> object:
    watch = world.clinic.watch()
    next(watch)
    world.server._watches.close()
    return next(watch)


def store_full(world: World) -> object:
    world.writer.pragma("max_page_count", world.writer.pragma("page_count"))
    return world.patients.create("p2", annotations={str(n): CANARY * 90 for n in range(30)})


def shutting_down(world: World) -> object:
    """A call that outlasts the grace of a stop finds the store closed."""
    world.server._store.close()
    return world.patients.create("p2", display_name=CANARY)


def deadline_exceeded(world: World) -> object:
    """The timeout is sent as a header, since a client that knows of it would not wait for the answer.

    A call may still be in time, or be cut by the library: so it is tried until it meets ours.
    """
    body = {"display_name": CANARY}
    request = world.patients.pb.CreatePatientRequest(patient=body, validate_only=True)
    for _ in range(500):
        try:
            world.side.client.patients.CreatePatient(request, metadata=(("grpc-timeout", "1n"),))
        except grpc.RpcError as error:
            if "grpc-status-details-bin" in everything_said(error):
                raise
    raise AssertionError("always in time")


def to_those_who_ask(world: World, permission: str, token: str = "") -> object:
    """A read of another server, which knows one caller with one permission; with its key, or another token."""
    folder = world.database.parent / "asking"
    folder.mkdir()
    keys_file = KeysFile(folder / "keys")
    key = keys_file.add(CANARY, permission)
    with serving(folder, keys_file=keys_file.path, threads=2) as server, Clinic(server.address) as clinic:
        get: Any = clinic.channel.unary_unary("/caseload.v1.PatientService/GetPatient", None, None)
        return get(CANARY.encode(), metadata=bearer(token or key), timeout=20)


def internal(world: World) -> object:
    return world.therapists.get("broken")


def internal_in_watch(world: World) -> object:
    return list(world.clinic.watch(actor=CANARY))


class Row(NamedTuple):
    """How a reason is provoked, and what its refusal carries besides ErrorInfo."""

    provoke: Callable[[World], object]
    code: StatusCode
    details: frozenset[str] = frozenset()
    metadata: tuple[str, ...] = ()


NONE: frozenset[str] = frozenset()
BAD_FIELD = frozenset({"BadRequest"})
BROKEN_RULE = frozenset({"PreconditionFailure"})
NAMED = frozenset({"ResourceInfo"})
LATER = frozenset({"RetryInfo"})
TABLE = {
    "INVALID_FIELD": Row(invalid_field, StatusCode.INVALID_ARGUMENT, BAD_FIELD),
    "INVALID_FIELD by watch": Row(
        lambda w: next(w.clinic.watch(patient_id=CANARY)), StatusCode.INVALID_ARGUMENT, BAD_FIELD
    ),
    "PAGE_TOKEN_INVALID": Row(page_token_invalid, StatusCode.INVALID_ARGUMENT),
    "PAGE_TOKEN_MISMATCH": Row(page_token_mismatch, StatusCode.INVALID_ARGUMENT),
    "REQUEST_ID_REUSED": Row(request_id_reused, StatusCode.INVALID_ARGUMENT),
    "THERAPIST_NOT_FOUND": Row(lambda w: w.therapists.get("no"), StatusCode.NOT_FOUND, NAMED, ("missing",)),
    "PATIENT_NOT_FOUND": Row(lambda w: w.patients.get("no"), StatusCode.NOT_FOUND, NAMED, ("missing",)),
    "ASSIGNMENT_NOT_FOUND": Row(lambda w: w.clinic.get(ONE), StatusCode.NOT_FOUND, NAMED),
    "ASSIGNMENT_NOT_FOUND by unassign": Row(lambda w: w.side.unassign(), StatusCode.NOT_FOUND),
    "ASSIGNMENT_NOT_FOUND by transfer": Row(not_with_the_source, StatusCode.NOT_FOUND, NAMED, ("missing",)),
    "ID_TAKEN": Row(lambda w: w.patients.create("p1", display_name=CANARY), StatusCode.ALREADY_EXISTS),
    "IDENTIFIER_TAKEN": Row(identifier_taken, StatusCode.ALREADY_EXISTS),
    "ASSIGNMENT_DIFFERS": Row(assignment_differs, StatusCode.ALREADY_EXISTS, NONE, ("assignment_id",)),
    "THERAPIST_DELETED": Row(therapist_deleted, StatusCode.FAILED_PRECONDITION, BROKEN_RULE),
    "THERAPIST_DELETED by transfer": Row(
        therapist_deleted_in_transfer, StatusCode.FAILED_PRECONDITION, BROKEN_RULE, ("therapist_id",)
    ),
    "PATIENT_DELETED": Row(patient_deleted, StatusCode.FAILED_PRECONDITION, BROKEN_RULE),
    "PATIENT_DELETED by transfer": Row(
        patient_deleted_in_transfer, StatusCode.FAILED_PRECONDITION, BROKEN_RULE | NAMED
    ),
    "THERAPIST_NOT_ACTIVE": Row(therapist_not_active, StatusCode.FAILED_PRECONDITION, BROKEN_RULE),
    "PATIENT_NOT_ACTIVE": Row(patient_not_active, StatusCode.FAILED_PRECONDITION, BROKEN_RULE),
    "PRIMARY_EXISTS": Row(primary_exists, StatusCode.FAILED_PRECONDITION, BROKEN_RULE, ("therapist_id",)),
    "THERAPIST_AT_CAPACITY": Row(
        therapist_at_capacity, StatusCode.FAILED_PRECONDITION, BROKEN_RULE, ("limit", "current")
    ),
    "HAS_ACTIVE_ASSIGNMENTS": Row(has_active_assignments, StatusCode.FAILED_PRECONDITION, BROKEN_RULE, ("count",)),
    "PERIOD_OVERLAPS": Row(period_overlaps, StatusCode.FAILED_PRECONDITION, BROKEN_RULE, ("assignment_id",)),
    "TOO_MANY_ASSIGNMENTS": Row(
        too_many_assignments, StatusCode.FAILED_PRECONDITION, BROKEN_RULE, ("limit", "current")
    ),
    "TOO_MANY_ASSIGNMENTS by transfer": Row(
        too_many_assignments_in_transfer, StatusCode.FAILED_PRECONDITION, BROKEN_RULE, ("limit", "current")
    ),
    "ETAG_MISMATCH": Row(etag_mismatch, StatusCode.ABORTED),
    "STORE_BUSY": Row(store_busy, StatusCode.UNAVAILABLE, LATER),
    "STORE_UNAVAILABLE": Row(store_unavailable, StatusCode.UNAVAILABLE, LATER),
    "STORE_UNAVAILABLE by watch": Row(store_unavailable_to_watch, StatusCode.UNAVAILABLE, LATER),
    "OUTCOME_UNKNOWN": Row(outcome_unknown, StatusCode.UNAVAILABLE),
    "STORE_FULL": Row(store_full, StatusCode.RESOURCE_EXHAUSTED),
    "SHUTTING_DOWN": Row(shutting_down, StatusCode.UNAVAILABLE),
    "SHUTTING_DOWN by watch": Row(shutting_down_in_watch, StatusCode.UNAVAILABLE),
    "REVISION_PRUNED": Row(
        lambda w: w.clinic.send("ListChanges", after_revision=pruned(w)),
        StatusCode.OUT_OF_RANGE,
        NONE,
        ("oldest_revision",),
    ),
    "REVISION_PRUNED by watch": Row(
        lambda w: next(w.clinic.watch(pruned(w))), StatusCode.OUT_OF_RANGE, NONE, ("oldest_revision",)
    ),
    "REVISION_FOREIGN": Row(lambda w: w.clinic.send("ListChanges", after_revision=CANARY), StatusCode.OUT_OF_RANGE),
    "REVISION_FOREIGN by watch": Row(lambda w: next(w.clinic.watch(CANARY)), StatusCode.OUT_OF_RANGE),
    "TOO_MANY_WATCHES": Row(too_many_watches, StatusCode.RESOURCE_EXHAUSTED, NONE, ("limit",)),
    "WATCH_TOO_SLOW": Row(watch_too_slow, StatusCode.ABORTED),
    "UNAUTHENTICATED": Row(lambda w: to_those_who_ask(w, "write", "not-a-key"), StatusCode.UNAUTHENTICATED),
    "PERMISSION_DENIED": Row(
        lambda w: to_those_who_ask(w, "write"), StatusCode.PERMISSION_DENIED, NONE, ("permission",)
    ),
    "DEADLINE_EXCEEDED": Row(deadline_exceeded, StatusCode.DEADLINE_EXCEEDED),
    "INTERNAL": Row(internal, StatusCode.INTERNAL, NONE, ("error_id",)),
    "INTERNAL by watch": Row(internal_in_watch, StatusCode.INTERNAL, NONE, ("error_id",)),
}
"""By the reason, and where there are several ways to it, the RPC."""
