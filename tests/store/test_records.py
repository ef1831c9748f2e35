import json
from typing import Any

import pytest
from caseload_server.api import convert
from caseload_server.domain import enums, errors, limits, requests, results
from caseload_server.domain.records import Therapist
from caseload_server.domain.requests import Update
from caseload_server.store import PATIENT, THERAPIST, RelationshipStore
from caseload_server.store.records import RecordKind

from tests.store.conftest import Clock
from tests.store.store_calls import (
    CALL,
    AnyKind,
    assign,
    both_kinds,
    delete,
    ids,
    make,
    make_pair,
    other,
    unassign,
    update,
)

MRN = ("urn:mrn", "1")
WITH_MRN = '[["urn:mrn","1"]]'


@pytest.mark.parametrize(
    ("kind", "fields"),
    [
        (
            THERAPIST,
            {
                "display_name": "Zoë Müller-Lüdenscheidt",
                "aliases": '["Zoe Mueller"]',
                "email": "zoe@example.org",
                "status": 2,
                "identifiers": WITH_MRN,
                "specialties": '["hand-therapy","cbt"]',
                "max_active_patients": 0,
                "annotations": '{"team":"north"}',
            },
        ),
        (
            PATIENT,
            {
                "display_name": "李 小龍",
                "aliases": '["Bruce Lee"]',
                "birth_date": "2001-02-28",
                "email": "li@example.org",
                "phone_number": "+4930123",
                "status": 2,
                "identifiers": WITH_MRN,
                "annotations": '{"front-desk":"3"}',
            },
        ),
    ],
    ids=["therapist", "patient"],
)
def test_every_field_is_stored_as_created(
    store: RelationshipStore, clock: Clock, kind: AnyKind, fields: requests.Fields
) -> None:
    created = store.create(kind, "chosen", fields, CALL).record
    assert fields.items() <= created._asdict().items()
    assert set(fields) == set(kind.defaults)
    assert (created.created_us, created.updated_us, created.deleted_us) == (clock.now_us, clock.now_us, None)
    assert getattr(created, kind.count_column) == 0
    assert created.etag
    assert store.get(kind, "chosen") == created


@both_kinds
def test_create_sets_defaults_for_omitted_fields(store: RelationshipStore, kind: AnyKind) -> None:
    created = make(store, kind, "a")
    given = {**kind.defaults, "display_name": "Ada Lovelace"}
    assert given.items() <= created._asdict().items()


@both_kinds
def test_generated_ids_are_unique_and_sort_in_creation_order(store: RelationshipStore, kind: AnyKind) -> None:
    made = [make(store, kind, "")[0] for _ in range(20)]
    assert made == sorted(set(made))
    assert ids(store, kind) == made


@both_kinds
def test_both_kinds_can_use_the_same_id_and_identifier(store: RelationshipStore, kind: AnyKind) -> None:
    make(store, kind, "same", identifiers=WITH_MRN)
    make(store, other(kind), "same", identifiers=WITH_MRN)
    assert ids(store, kind, identifier=MRN) == ids(store, other(kind), identifier=MRN) == ["same"]


@both_kinds
def test_an_id_in_use_is_rejected_even_when_its_record_is_deleted(store: RelationshipStore, kind: AnyKind) -> None:
    first = make(store, kind, "a")
    with pytest.raises(errors.IdTaken):
        make(store, kind, "a", display_name="Bob")
    assert store.get(kind, "a") == first
    delete(store, kind, "a")
    with pytest.raises(errors.IdTaken):
        make(store, kind, "a", display_name="Bob")
    assert store.get(kind, "a").display_name == "Ada Lovelace"


@both_kinds
def test_an_unknown_record_is_not_found(store: RelationshipStore, kind: AnyKind) -> None:
    for look in (
        lambda: store.get(kind, "missing"),
        lambda: update(store, kind, "missing", email="a@b"),
        lambda: delete(store, kind, "missing"),
        lambda: store.undelete(kind, "missing", CALL),
    ):
        with pytest.raises(kind.not_found) as refusal:
            look()
        assert refusal.value.resources == (errors.Resource(f"caseload.v1.{kind.record.__name__}", "missing"),)


@both_kinds
def test_a_batch_is_returned_in_request_order_with_duplicates_and_deleted_records(
    store: RelationshipStore, kind: AnyKind
) -> None:
    for name in "abc":
        make(store, kind, name)
    delete(store, kind, "b")
    wanted = ["c", "a", "b", "c"]
    assert [record[0] for record in store.batch_get(kind, wanted)] == wanted
    assert store.batch_get(kind, wanted) == [store.get(kind, name) for name in wanted]


@both_kinds
def test_a_batch_with_a_missing_id_names_each_missing_one_once(store: RelationshipStore, kind: AnyKind) -> None:
    make(store, kind, "a")
    with pytest.raises(kind.not_found) as refusal:
        store.batch_get(kind, ["x", "a", "y", "x"])
    assert [resource.name for resource in refusal.value.resources] == ["x", "y"]
    assert refusal.value.metadata == {"missing": "2"}


@both_kinds
def test_the_error_of_100_missing_ids_names_a_bounded_number(store: RelationshipStore, kind: AnyKind) -> None:
    with pytest.raises(kind.not_found) as refusal:
        store.batch_get(kind, [f"{n:0>63}" for n in range(100)])
    assert 0 < len(refusal.value.resources) <= 15
    assert refusal.value.metadata == {"missing": "100"}


@both_kinds
def test_an_update_sets_only_the_named_fields(store: RelationshipStore, clock: Clock, kind: AnyKind) -> None:
    before = make(store, kind, "a", email="a@b")
    clock.advance(1)
    after = update(store, kind, "a", display_name="Ada King")
    assert after == before._replace(display_name="Ada King", updated_us=clock.now_us, etag=after.etag)
    assert after.etag != before.etag
    assert store.get(kind, "a") == after


@both_kinds
def test_an_update_that_changes_nothing_keeps_etag_time_and_revision(
    store: RelationshipStore, clock: Clock, kind: AnyKind
) -> None:
    created = store.create(kind, "a", {"display_name": "Ada", "email": "a@b"}, CALL)
    clock.advance(1)
    same: list[requests.Fields] = [{"display_name": "Ada", "email": "a@b"}, {}]
    for fields in same:
        repeated = store.update(kind, Update("a", fields, etag=created.record.etag), CALL)
        assert repeated == results.UpdateResult(created.record, 0, created.revision)


@both_kinds
def test_an_update_with_an_old_etag_is_rejected_even_without_a_change(store: RelationshipStore, kind: AnyKind) -> None:
    old = make(store, kind, "a").etag
    new = update(store, kind, "a", email="a@b")
    changed_and_same: list[requests.Fields] = [{"email": "c@d"}, {"email": "a@b"}]
    for fields in changed_and_same:
        with pytest.raises(errors.EtagMismatch):
            store.update(kind, Update("a", fields, etag=old), CALL)
    assert store.get(kind, "a") == new
    assert store.update(kind, Update("a", {"email": "c@d"}, etag=new.etag), CALL).record.email == "c@d"


@both_kinds
def test_an_etag_is_never_reused(store: RelationshipStore, kind: AnyKind) -> None:
    etags = [make(store, kind, "a").etag]
    for turn in range(4):
        etags.append(update(store, kind, "a", email=f"{turn % 2}@b").etag)
        etags.append(delete(store, kind, "a").record.etag)
        etags.append(store.undelete(kind, "a", CALL).record.etag)
    assert len(set(etags)) == len(etags)


@both_kinds
def test_a_deleted_record_cannot_be_updated(store: RelationshipStore, kind: AnyKind) -> None:
    make(store, kind, "a")
    deleted = delete(store, kind, "a").record
    with pytest.raises(kind.deleted):
        update(store, kind, "a", email="a@b")
    assert store.get(kind, "a") == deleted


def message_bytes(record: Any) -> int:
    message = convert.therapist(record) if isinstance(record, Therapist) else convert.patient(record)
    return message.ByteSize()


def grown(record: Any, text: str, size: int) -> Any:
    """The record with annotations of one repeated text, so that its message has about the given size."""
    annotations: dict[str, str] = {}
    while message_bytes(record) < size - 1000:
        annotations[f"k{len(annotations):02}"] = text * (900 // len(text.encode()))
        record = record._replace(annotations=json.dumps(annotations, ensure_ascii=False))
    annotations["last"] = "x" * (size - message_bytes(record) - 14)
    return record._replace(annotations=json.dumps(annotations, ensure_ascii=False))


@both_kinds
@pytest.mark.parametrize("text", ["x", "é", '"', "\\", "\U0001f600"], ids=ascii)
def test_a_record_is_a_message_of_at_most_32_kib(store: RelationshipStore, kind: AnyKind, text: str) -> None:
    small = make(store, kind, "a")
    above = grown(small, text, limits.MAX_RECORD_BYTES + 20)
    assert limits.MAX_RECORD_BYTES < message_bytes(above) < limits.MAX_RECORD_BYTES + 40
    with pytest.raises(errors.InvalidField) as refusal:
        update(store, kind, "a", annotations=above.annotations)
    assert [violation.field for violation in refusal.value.violations] == [kind.name]
    assert store.get(kind, "a") == small
    with pytest.raises(errors.InvalidField):
        make(store, kind, "b", annotations=above.annotations)
    below = grown(small, text, limits.MAX_RECORD_BYTES - 300)
    assert update(store, kind, "a", annotations=below.annotations).annotations == below.annotations


@both_kinds
def test_an_identifier_belongs_to_one_live_record(store: RelationshipStore, kind: AnyKind) -> None:
    make(store, kind, "a", identifiers=WITH_MRN)
    with pytest.raises(errors.IdentifierTaken):
        make(store, kind, "b", identifiers=WITH_MRN)
    with pytest.raises(kind.not_found):
        store.get(kind, "b")
    bystander = make(store, kind, "b", identifiers='[["urn:mrn","2"]]')
    with pytest.raises(errors.IdentifierTaken):
        update(store, kind, "b", identifiers='[["urn:mrn","3"],["urn:mrn","1"]]')
    assert store.get(kind, "b") == bystander
    assert ids(store, kind, identifier=("urn:mrn", "2")) == ["b"]
    assert ids(store, kind, identifier=("urn:mrn", "3")) == []


@both_kinds
def test_identifiers_differ_by_system_and_by_case(store: RelationshipStore, kind: AnyKind) -> None:
    for name, identifiers in (("a", '[["urn:a","x"]]'), ("b", '[["urn:b","x"]]'), ("c", '[["urn:a","X"]]')):
        make(store, kind, name, identifiers=identifiers)
    assert ids(store, kind, identifier=("urn:a", "x")) == ["a"]


@both_kinds
def test_an_update_frees_the_identifiers_it_drops(store: RelationshipStore, kind: AnyKind) -> None:
    make(store, kind, "a", identifiers=WITH_MRN)
    update(store, kind, "a", identifiers="[]")
    make(store, kind, "b", identifiers=WITH_MRN)
    assert ids(store, kind, identifier=MRN) == ["b"]


@pytest.mark.parametrize(("kind", "idle"), [(THERAPIST, enums.THERAPIST_INACTIVE), (PATIENT, enums.PATIENT_DISCHARGED)])
def test_the_final_status_is_rejected_while_assignments_are_active(
    store: RelationshipStore, kind: RecordKind[Any], idle: int
) -> None:
    make_pair(store)
    assign(store)
    before = store.get(kind, kind.name[0])
    with pytest.raises(errors.HasActiveAssignments) as refusal:
        update(store, kind, kind.name[0], status=idle, email="a@b")
    assert refusal.value.metadata == {"count": "1"}
    assert store.get(kind, kind.name[0]) == before
    unassign(store)
    assert update(store, kind, kind.name[0], status=idle).status == idle


def test_a_therapist_can_go_on_leave_with_a_caseload(store: RelationshipStore) -> None:
    make_pair(store)
    assign(store)
    assert update(store, THERAPIST, "t", status=2).active_patient_count == 1


def test_the_capacity_can_be_lowered_below_the_caseload(store: RelationshipStore) -> None:
    make_pair(store)
    assign(store)
    assert update(store, THERAPIST, "t", max_active_patients=0).active_patient_count == 1


@both_kinds
def test_a_rejected_write_does_not_change_the_revision(store: RelationshipStore, kind: AnyKind) -> None:
    created = store.create(kind, "a", {"display_name": "Ada"}, CALL)
    with pytest.raises(errors.IdTaken):
        make(store, kind, "a")
    after = store.create(kind, "b", {"display_name": "Ada"}, CALL)
    first, second = (outcome.revision.rpartition(".") for outcome in (created, after))
    assert (second[0], int(second[2])) == (first[0], int(first[2]) + 1)
