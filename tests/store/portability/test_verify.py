"""Verify reports every rule, which a test breaks once with plain SQL."""

import json
from typing import Any

import pytest
from caseload_server.domain.enums import END_ENTERED_IN_ERROR, ROLE_PRIMARY
from caseload_server.domain.requests import Update
from caseload_server.store import PATIENT, THERAPIST, RelationshipStore
from caseload_server.store.portability import verify
from caseload_server.store.portability.verify import BrokenRule, ContentCheck, broken_rules

from tests.store.portability.rule_breaks import BREAKS, copied
from tests.store.store_calls import assign, delete, make, request, run, unassign, update


def broken(store: RelationshipStore) -> dict[str, BrokenRule]:
    """The broken rules that verify reports, by name."""
    with store._database.snapshot() as transaction:
        found = [*broken_rules(transaction), *ContentCheck(transaction).read(lambda _: None)]
    return {one.rule: one for one in found}


def digest(store: RelationshipStore) -> str:
    with store._database.snapshot() as transaction:
        contents = ContentCheck(transaction)
        assert list(contents.read(lambda _: None)) == []
    return contents.content_digest.digest


@pytest.fixture
def filled_store(store: RelationshipStore) -> RelationshipStore:
    """Therapists t and u, patients p and q. t is p's primary therapist, u treats p; u treated q until 2000, t then."""
    for kind, ids in ((THERAPIST, "tu"), (PATIENT, "pq")):
        for one in ids:
            pair = json.dumps([["https://example.org/staff", f"A-{one}"]])
            make(store, kind, one, identifiers=pair)
    update(store, THERAPIST, "t", specialties='["hand-therapy"]', annotations='{"room":"12"}')
    update(store, PATIENT, "q", aliases='["Augusta Byron"]')
    assign(store, "t", "p", role=ROLE_PRIMARY, start_us=1000)
    assign(store, "u", "p", start_us=1000)
    assign(store, "u", "q", start_us=1000)
    unassign(store, "u", "q", end_us=2000)
    assign(store, "t", "q", role=ROLE_PRIMARY, start_us=2000)
    store.update(THERAPIST, Update("t", {"email": "t@example.org"}), request("r"))
    return store


def unguard(store: RelationshipStore, table: str) -> None:
    """Recreates the table without its indexes, checks and foreign keys."""
    run(store, f"CREATE TABLE unguarded AS SELECT * FROM {table}")
    run(store, f"DROP TABLE {table}")
    run(store, f"ALTER TABLE unguarded RENAME TO {table}")


FOUND_BREAKS = [
    ("therapist_name_word", "DELETE FROM therapist_name_word WHERE therapist_id = 't'", ["t"]),
    ("patient_name_word", "UPDATE patient_name_word SET word = 'eve' WHERE patient_id = 'q' AND word = 'ada'", ["q"]),
    ("patient_name_word", "DELETE FROM patient_name_word WHERE word = 'byron'", ["q"]),
    ("patient_name_word", "UPDATE patient SET aliases = '[]'", ["q"]),
    ("therapist_specialty", "INSERT INTO therapist_specialty VALUES ('u', 'hand-therapy')", ["u"]),
    ("therapist_identifier", "UPDATE therapist_identifier SET live = NULL", ["t", "u"]),
    ("patient_identifier", "UPDATE patient SET identifiers = '[]' WHERE patient_id = 'q'", ["q"]),
]


def test_verify_reports_nothing_for_an_intact_store(filled_store: RelationshipStore) -> None:
    assert broken(filled_store) == {}


@pytest.mark.slow
@pytest.mark.parametrize(("rule", "statements", "ids"), BREAKS, ids=range(len(BREAKS)))
def test_verify_reports_a_broken_rule_with_the_ids(
    filled_store: RelationshipStore, rule: str, statements: list[str], ids: list[str]
) -> None:
    for table in ("assignment_version", "assignment", "change", "therapist_identifier", "patient_identifier"):
        unguard(filled_store, table)
    for table in ("therapist_specialty", "therapist_name_word", "patient_name_word"):
        unguard(filled_store, table)
    for statement in statements:
        run(filled_store, statement)
    found = broken(filled_store)[rule]
    assert found.records == max(1, len(ids))
    assert not ids or sorted(found.ids) == sorted(ids)


def test_every_rule_has_a_case_that_breaks_it() -> None:
    assert {rule.text for rule in verify.RULES} == {rule for rule, _, _ in BREAKS}


@pytest.mark.slow
@pytest.mark.parametrize(("table", "statement", "ids"), FOUND_BREAKS)
def test_verify_reports_people_whose_search_rows_differ_from_their_records(
    filled_store: RelationshipStore, table: str, statement: str, ids: list[str]
) -> None:
    run(filled_store, statement)
    assert broken(filled_store) == {
        f"{table} matches the records": BrokenRule(f"{table} matches the records", len(ids), ids)
    }


@pytest.mark.parametrize(
    ("kind", "column", "ids"), [("therapist", "name_key", ["t", "u"]), ("patient", "email_key", ["p", "q"])]
)
def test_verify_reports_keys_that_differ_from_their_records(
    filled_store: RelationshipStore, kind: str, column: str, ids: list[str]
) -> None:
    run(filled_store, f"UPDATE {kind} SET {column} = 'other'")
    rule = f"the keys of each {kind} match it"
    assert broken(filled_store) == {rule: BrokenRule(rule, len(ids), ids)}


def test_verify_does_not_compare_the_words_of_a_record_that_has_none_yet(filled_store: RelationshipStore) -> None:
    run(filled_store, "UPDATE patient SET keyed_etag = '' WHERE patient_id = 'p'")
    run(filled_store, "DELETE FROM patient_name_word")
    assert broken(filled_store)["patient_name_word matches the records"].ids == ["q"]


@pytest.mark.slow
@pytest.mark.parametrize("column", ["aliases", "identifiers", "specialties", "annotations"])
@pytest.mark.parametrize("text", ["[", '[["a"]]', "7", '{"a":1}', '["a",1]'])
def test_verify_reports_invalid_json_of_a_record(filled_store: RelationshipStore, column: str, text: str) -> None:
    run(filled_store, f"UPDATE therapist SET {column} = :text WHERE therapist_id = 'u'", {"text": text})
    found = broken(filled_store)[f"{column} of each therapist is valid JSON for its column"]
    assert (found.records, found.ids) == (1, ["u"])


@pytest.mark.parametrize(
    ("rule", "statement", "ids"),
    [
        ("each birth_date in patient is valid", "UPDATE patient SET birth_date = '1990-02-30'", ["p", "q"]),
        ("each birth_date in patient is valid", "UPDATE patient SET birth_date = '1990-00'", ["p", "q"]),
        ("each etag in therapist is valid", "UPDATE therapist SET etag = '' WHERE therapist_id = 'u'", ["u"]),
        ("each created_us in therapist is valid", f"UPDATE therapist SET created_us = {2**62}", ["t", "u"]),
        ("each end_reason in assignment is valid", "UPDATE assignment SET end_reason = 10 WHERE end_us = 2000", None),
        (
            "each assignment_id in assignment is valid",
            "UPDATE assignment SET assignment_id = 'Ada Lovelace' WHERE end_us = 2000",
            ["malformed id"],
        ),
        ("each record_id in purged is valid", "INSERT INTO purged VALUES ('patient', 'Ada Lovelace')", ["patient"]),
        (
            "annotations of each patient is valid JSON for its column",
            """UPDATE patient SET annotations = '{"k":"a","k":"b"}'""",
            ["p", "q"],
        ),
    ],
)
def test_verify_reports_values_that_no_request_could_have_stored(
    filled_store: RelationshipStore, rule: str, statement: str, ids: list[str] | None
) -> None:
    run(filled_store, "DELETE FROM assignment_version")  # which refers to assignments
    run(filled_store, statement)
    found = broken(filled_store)[rule]
    assert ids is None or found.ids == ids


def test_verify_names_ten_ids_and_counts_all(store: RelationshipStore) -> None:
    for number in range(25):
        make(store, PATIENT, f"p{number:02}")
    run(store, "UPDATE patient SET active_therapist_count = 1")
    run(store, "DELETE FROM patient_name_word")
    found = broken(store)
    assert len(found) == 2
    for one in found.values():
        assert (one.records, len(set(one.ids))) == (25, 10)


def test_verify_accepts_unusual_but_valid_states(filled_store: RelationshipStore) -> None:
    # A limit below the count, periods that are not in force, and a deleted record whose identifier is another's now.
    update(filled_store, THERAPIST, "t", max_active_patients=0)
    for start_us, end_us, reason in ((1100, 1200, END_ENTERED_IN_ERROR), (1300, 1300, 1)):
        run(
            filled_store,
            copied(
                "assignment",
                f"assignment_id='z{start_us}', start_us={start_us}, end_us={end_us}, end_reason={reason}, role=1",
                "end_us = 2000",
            ),
        )
    delete(filled_store, PATIENT, "q", force=True)
    make(filled_store, PATIENT, "r", identifiers='[["https://example.org/staff","A-q"]]')
    filled_store.purger.purge_changes(2**62)
    assert broken(filled_store) == {}


CHANGES: list[Any] = [
    "UPDATE store SET head_revision = head_revision + 1",
    "UPDATE store SET oldest_revision = oldest_revision + 1",
    "UPDATE therapist SET email = 'x@example.org', email_key = 'x@example.org' WHERE therapist_id = 'u'",
    "UPDATE patient SET etag = 'x' WHERE patient_id = 'q'",
    "UPDATE assignment SET focus = 'x' WHERE end_us = 2000",
    "UPDATE change_set SET actor = 'x' WHERE revision = 3",
    "UPDATE change SET changed_fields = 'x' WHERE revision = 3",
    "DELETE FROM request WHERE request_id = 'r'",
]


@pytest.mark.parametrize("statement", CHANGES)
def test_the_digest_changes_with_any_content(filled_store: RelationshipStore, statement: str) -> None:
    before = digest(filled_store)
    assert digest(filled_store) == before
    run(filled_store, statement)
    assert digest(filled_store) != before


def test_the_store_id_and_key_are_not_part_of_the_digest(filled_store: RelationshipStore) -> None:
    before = digest(filled_store)
    run(filled_store, "UPDATE store SET store_id = 'another', secret = :secret", {"secret": b"another"})
    assert digest(filled_store) == before
