"""Constraints of the database reject invalid rows, even without the store's checks.

Each statement is first shown to succeed in a form that is allowed: it fails for the rule and for nothing else.
"""

import pytest
from caseload_server.store import PATIENT, THERAPIST, RelationshipStore
from caseload_server.store.backends.postgres import driver_errors

from tests.store.store_calls import assign, dump, run, unassign
from tests.store.write_cases import everyone

UNIQUE = r"(?i)unique constraint|23505"
CHECK = r"(?i)check constraint|23514"
FOREIGN_KEY = r"(?i)foreign key constraint|23503"
NOT_NULL = r"(?i)not.null constraint|23502"

ASSIGNMENT = (
    "INSERT INTO assignment (assignment_id, therapist_id, patient_id, role, focus, start_us, end_us, end_reason,"
    " created_by, ended_by, created_us, updated_us, etag)"
    " VALUES ('{id}', '{therapist}', '{patient}', {role}, '', 100, {end}, {reason}, 'a', '{ended_by}', 1, 1, 'e')"
)
PERIOD = {
    "id": "a",
    "therapist": "t",
    "patient": "q",
    "role": "2",
    "end": "NULL",
    "reason": "0",
    "ended_by": "",
}


def period(**values: str) -> str:
    return ASSIGNMENT.format(**{**PERIOD, **values})


@pytest.fixture
def full(store: RelationshipStore) -> RelationshipStore:
    """Therapists t and u, patients p and q; t is the primary of p and treated q."""
    everyone(store)
    assign(store, "t", "p", role=1)
    assign(store, "t", "q")
    unassign(store, "t", "q")
    return store


CHANGE_SET = "(revision, committed_us, actor, method, request_id, hash_version)"
RULES = [
    # One active assignment a pair; one active primary a patient.
    (UNIQUE, period(patient="p"), period()),
    (UNIQUE, period(therapist="u", patient="p", role="1"), period(therapist="u", patient="p", role="2")),
    # An assignment refers to an existing therapist and patient.
    (FOREIGN_KEY, period(therapist="missing"), period()),
    (FOREIGN_KEY, period(patient="missing"), period()),
    (NOT_NULL, period().replace("'t'", "NULL"), period()),
    # Values outside the contract.
    (CHECK, period(role="0"), period(role="4")),
    (CHECK, period(role="5"), period(role="1")),
    (CHECK, period(end="100", reason="-1"), period(end="100", reason="0")),
    # No end before the start; no reason and no ended_by without an end.
    (CHECK, period(end="99"), period(end="100")),
    (CHECK, period(reason="1"), period(end="200", reason="1")),
    (CHECK, period(ended_by="a"), period(end="200", ended_by="a")),
    # A record with assignments cannot be erased, be deleted or have its final status.
    (FOREIGN_KEY, "DELETE FROM therapist WHERE therapist_id = 't'", "DELETE FROM therapist WHERE therapist_id = 'u'"),
    (
        FOREIGN_KEY,
        "DELETE FROM patient WHERE patient_id = 'q'",
        "DELETE FROM patient_name_word WHERE patient_id = 'q'",
    ),
    (
        CHECK,
        "UPDATE therapist SET deleted_us = 1 WHERE therapist_id = 't'",
        "UPDATE therapist SET deleted_us = 1 WHERE therapist_id = 'u'",
    ),
    (
        CHECK,
        "UPDATE patient SET deleted_us = 1 WHERE patient_id = 'p'",
        "UPDATE patient SET deleted_us = 1 WHERE patient_id = 'q'",
    ),
    (
        CHECK,
        "UPDATE therapist SET status = 3 WHERE therapist_id = 't'",
        "UPDATE therapist SET status = 2 WHERE therapist_id = 't'",
    ),
    (
        CHECK,
        "UPDATE patient SET status = 2 WHERE patient_id = 'p'",
        "UPDATE patient SET status = 2 WHERE patient_id = 'q'",
    ),
    # Numbers out of range.
    (CHECK, "UPDATE therapist SET status = 0", "UPDATE therapist SET status = 2"),
    *[
        (CHECK, f"UPDATE {table} SET status = {wrong} WHERE {own}", f"UPDATE {table} SET status = {right} WHERE {own}")
        for table, own, wrong, right in (
            ("therapist", "therapist_id = 'u'", 4, 3),
            ("patient", "patient_id = 'q'", 0, 2),
            ("patient", "patient_id = 'q'", 3, 2),
        )
    ],
    (CHECK, "UPDATE therapist SET max_active_patients = -1", "UPDATE therapist SET max_active_patients = 0"),
    (
        CHECK,
        "UPDATE therapist SET active_patient_count = active_patient_count - 2",
        "UPDATE therapist SET active_patient_count = active_patient_count + 2",
    ),
    (
        CHECK,
        "UPDATE patient SET active_therapist_count = active_therapist_count - 2",
        "UPDATE patient SET active_therapist_count = active_therapist_count + 2",
    ),
    # A name is required.
    (CHECK, "UPDATE therapist SET display_name = ''", "UPDATE therapist SET display_name = 'x'"),
    (CHECK, "UPDATE patient SET display_name = ''", "UPDATE patient SET display_name = 'x'"),
    # Ids are unique.
    (
        UNIQUE,
        "UPDATE therapist_name_word SET word = 'x'",
        "UPDATE therapist_name_word SET word = 'x' WHERE word = 'ada'",
    ),
    (
        UNIQUE,
        "INSERT INTO therapist SELECT * FROM therapist WHERE therapist_id = 't'",
        "UPDATE therapist SET email = 'a@b' WHERE therapist_id = 't'",
    ),
    (
        UNIQUE,
        "INSERT INTO patient SELECT * FROM patient WHERE patient_id = 'p'",
        "UPDATE patient SET email = 'a@b' WHERE patient_id = 'p'",
    ),
    # Identifiers are unique among live records of a kind.
    (
        UNIQUE,
        "INSERT INTO therapist_identifier (therapist_id, system, value, live) VALUES ('u', 'urn:npi', '1', 1)",
        "INSERT INTO therapist_identifier (therapist_id, system, value, live) VALUES ('u', 'urn:npi', '1', NULL)",
    ),
    (
        UNIQUE,
        "INSERT INTO patient_identifier (patient_id, system, value, live) VALUES ('q', 'urn:mrn', '1', 1)",
        "INSERT INTO patient_identifier (patient_id, system, value, live) VALUES ('q', 'urn:mrn', '1', NULL)",
    ),
    (
        CHECK,
        "INSERT INTO therapist_identifier (therapist_id, system, value, live) VALUES ('u', 'urn:npi', '1', 0)",
        "INSERT INTO therapist_identifier (therapist_id, system, value, live) VALUES ('u', 'urn:npi', '2', 1)",
    ),
    (
        CHECK,
        "INSERT INTO patient_identifier (patient_id, system, value, live) VALUES ('q', 'urn:mrn', '1', 2)",
        "INSERT INTO patient_identifier (patient_id, system, value, live) VALUES ('q', 'urn:mrn', '2', 1)",
    ),
    # Search rows belong to a record.
    *[
        (
            FOREIGN_KEY,
            f"INSERT INTO {table} VALUES ('missing', {rest})",
            f"INSERT INTO {table} VALUES ({owner}, {rest})",
        )
        for table, owner, rest in (
            ("therapist_identifier", "'u'", "'s', 'v', 1, 'v', NULL"),
            ("patient_identifier", "'q'", "'s', 'v', 1, 'v', NULL"),
            ("therapist_name_word", "'u'", "'word'"),
            ("patient_name_word", "'q'", "'word'"),
            ("therapist_specialty", "'u'", "'cbt'"),
        )
    ],
    # The log.
    (
        f"{UNIQUE}|Concurrent writes conflicted",  # another instance has taken the revision
        f"INSERT INTO change_set {CHANGE_SET} VALUES (1, 1, 'a', 'm', '', 1)",
        f"INSERT INTO change_set {CHANGE_SET} VALUES (1000, 1, 'a', 'm', '', 1)",
    ),
    (
        FOREIGN_KEY,
        "INSERT INTO change VALUES (1000, 0, 1, '', NULL, NULL, NULL, NULL, NULL)",
        "INSERT INTO change VALUES (1, 9, 1, '', NULL, NULL, NULL, NULL, NULL)",
    ),
    (
        CHECK,
        "INSERT INTO change VALUES (1, 9, 0, '', NULL, NULL, NULL, NULL, NULL)",
        "INSERT INTO change VALUES (1, 9, 5, '', NULL, NULL, NULL, NULL, NULL)",
    ),
    # Exactly one row identifies the store.
    (
        CHECK,
        "INSERT INTO store SELECT 2, store_id, secret, 0, 0, 0, head_hash, oldest_hash, 0, 0 FROM store",
        "UPDATE store SET head_revision = 9",
    ),
]


@pytest.mark.parametrize(
    ("rule", "forbidden", "allowed"), RULES, ids=[f"{number}: {rule[1][:60]}" for number, rule in enumerate(RULES)]
)
def test_the_database_rejects_the_forbidden_row(
    full: RelationshipStore, monkeypatch: pytest.MonkeyPatch, rule: str, forbidden: str, allowed: str
) -> None:
    monkeypatch.setattr(driver_errors, "_RETRY_TIMEOUT_SECONDS", 0)  # a taken revision is tried again, in vain here
    before = dump(full)
    with pytest.raises(Exception, match=rule):
        run(full, forbidden)
    assert dump(full) == before
    run(full, allowed)
    assert dump(full) != before


def test_erasing_a_record_erases_its_search_rows(store: RelationshipStore) -> None:
    everyone(store)
    for kind, record_id in ((THERAPIST, "t"), (PATIENT, "p")):
        run(store, f"DELETE FROM {kind.name} WHERE {kind.id_column} = :id", {"id": record_id})
        for table in ("identifier", "name_word"):
            sql = f"SELECT count(*) FROM {kind.name}_{table} WHERE {kind.id_column} = :id"
            assert run(store, sql, {"id": record_id}) == [(0,)]
