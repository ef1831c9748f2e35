from caseload_server.domain import requests
from caseload_server.domain.requests import Update
from caseload_server.store import PATIENT, THERAPIST, RelationshipStore
from caseload_server.store.backends.protocol import Value

from tests.store.conftest import Clock
from tests.store.store_calls import (
    CALL,
    assign,
    delete,
    dump,
    head,
    make,
    make_pair,
    race,
    request,
    run,
    unassign,
    update,
)
from tests.store.write_cases import Mutation, each_mutation, each_no_op, each_write, effect

ID = "3b241101-e2bb-4255-8caf-4136c566a962"


def number(revision: str) -> int:
    return int(revision.rpartition(".")[2])


@each_write
def test_each_write_is_one_change_set_that_says_what_changed(
    store: RelationshipStore, clock: Clock, mutation: Mutation
) -> None:
    mutation.prepare(store)
    before = head(store)
    now = clock.advance(1)
    call = request(ID)._replace(actor="front-desk", method="/caseload.v1.PatientService/Other")
    outcome = mutation.do(store, call)
    revision = before + 1
    assert number(outcome.revision) == head(store) == revision
    after: dict[str, Value] = {"before": before}
    sets = run(
        store,
        "SELECT revision, committed_us, actor, method, request_id FROM change_set WHERE revision > :before",
        after,
    )
    assert sets == [(revision, now, "front-desk", "/caseload.v1.PatientService/Other", ID)]
    lines = run(
        store,
        "SELECT kind, changed_fields, therapist_id, patient_id, assignment_id FROM change"
        " WHERE revision > :before ORDER BY revision, position",
        after,
    )
    new = outcome.record[0]
    expected = [tuple(new if value == "<new>" else value for value in change) for change in mutation.changes]
    assert [(*line[:4], line[4] is not None) for line in lines] == expected


@each_write
def test_a_change_of_an_assignment_names_the_assignment(store: RelationshipStore, mutation: Mutation) -> None:
    mutation.prepare(store)
    before = head(store)
    mutation.do(store, CALL)
    lines = run(
        store,
        "SELECT assignment_id, therapist_id, patient_id FROM change"
        " WHERE revision > :before AND assignment_id IS NOT NULL",
        {"before": before},
    )
    known = run(store, "SELECT assignment_id, therapist_id, patient_id FROM assignment")
    assert set(lines) <= set(known)


@each_no_op
def test_a_call_without_effect_leaves_no_change_and_returns_the_head(
    store: RelationshipStore, clock: Clock, mutation: Mutation
) -> None:
    mutation.prepare(store)
    before = dump(store)
    clock.advance(1)
    outcome = mutation.do(store, CALL)
    assert dump(store) == before
    assert number(outcome.revision) == head(store)
    assert effect(outcome) == 0


@each_mutation
def test_a_replay_leaves_no_change(store: RelationshipStore, mutation: Mutation) -> None:
    mutation.prepare(store)
    mutation.do(store, request(ID))
    before = head(store)
    mutation.do(store, request(ID))
    assert head(store) == before


def test_a_change_names_only_the_fields_that_differ(store: RelationshipStore) -> None:
    make(store, THERAPIST, "t", email="a@b", max_active_patients=3)
    update(store, THERAPIST, "t", email="a@b", max_active_patients=None, specialties='["cbt"]', status=1)
    [[fields]] = run(store, "SELECT changed_fields FROM change WHERE kind = 2")
    assert set(fields.split(",")) == {"max_active_patients", "specialties"}


def test_revisions_are_gapless_and_in_the_order_of_commits(store: RelationshipStore) -> None:
    make_pair(store)

    def one(thread: int) -> list[int]:
        numbers = []
        for turn in range(8):
            outcome = store.create(THERAPIST, "", {"display_name": f"A{thread}"}, CALL)
            numbers.append(number(outcome.revision))
            if turn % 3 == 0:  # a rejected call uses no revision
                store.delete(THERAPIST, requests.Delete("missing", allow_missing=True), CALL)
        return numbers

    start = head(store)
    results, _ = race(one, threads=8)
    assert all(numbers == sorted(numbers) for numbers in results)
    assert sorted(revision for numbers in results for revision in numbers) == list(range(start + 1, start + 65))
    assert run(store, "SELECT count(*), max(revision) FROM change_set") == [(start + 64, start + 64)]


def test_a_list_at_a_revision_shows_every_change_up_to_it(store: RelationshipStore) -> None:
    created = [store.create(THERAPIST, f"t{n}", {"display_name": "Ada"}, CALL).revision for n in range(3)]
    page = store.list_records(THERAPIST, requests.RecordQuery(), requests.PageRequest(2, ""))
    assert page.revision == created[-1]


def test_every_record_can_be_followed_through_the_log(store: RelationshipStore) -> None:
    make_pair(store)
    period = assign(store)
    unassign(store)
    delete(store, PATIENT, "p")
    store.undelete(PATIENT, "p", CALL)
    rows = run(store, "SELECT kind FROM change WHERE patient_id = 'p' AND assignment_id IS NULL ORDER BY revision")
    assert [row[0] for row in rows] == [1, 3, 4]
    sql = "SELECT kind FROM change WHERE assignment_id = :id ORDER BY revision"
    assert run(store, sql, {"id": period.assignment_id}) == [(1,), (2,)]


def test_the_log_and_the_stored_requests_hold_no_personal_data(store: RelationshipStore) -> None:
    canaries = [f"canary{n}" for n in range(12)]
    c = iter(canaries)
    patient: requests.Fields = {
        "display_name": next(c),
        "birth_date": next(c),
        "email": next(c),
        "phone_number": next(c),
        "identifiers": f'[["{next(c)}","{next(c)}"]]',
        "annotations": f'{{"{next(c)}":"{next(c)}"}}',
    }
    everything = " ".join(canaries).encode()

    def call(step: int) -> requests.CallContext:
        return request(f"{step}", everything)

    store.create(PATIENT, "p", {"display_name": "first"}, call(1))
    store.update(PATIENT, Update("p", patient), call(2))
    store.create(THERAPIST, "t", {"display_name": next(c), "email": next(c), "specialties": f'["{next(c)}"]'}, call(3))
    store.assign(requests.Assign("t", "p", focus=next(c)), call(4))
    store.unassign(requests.Unassign("t", "p"), call(5))
    store.delete(PATIENT, requests.Delete("p"), call(6))
    tables = dump(store)
    assert all(canary in repr(tables) for canary in canaries)
    kept = repr([tables[name] for name in ("change_set", "change", "request", "store")])
    assert [canary for canary in canaries if canary in kept] == []


def test_a_stored_request_reveals_nothing_without_the_stores_key(store: RelationshipStore) -> None:
    for request_id in ("1", "2"):
        store.create(PATIENT, "", {"display_name": "Ada"}, request(request_id))
    (here,) = {row[0] for row in run(store, "SELECT fingerprint FROM request")}
    there = store.keys._replace(secret=bytes(32)).fingerprint(request("1"))
    assert here != there
    assert here == store.keys.fingerprint(request("1"))
