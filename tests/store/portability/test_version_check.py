"""Verify compares versions with the change log. Each rule is broken once with plain SQL."""

import pytest
from caseload_server.store import PATIENT, THERAPIST, RelationshipStore
from caseload_server.store.portability import version_check
from caseload_server.store.portability.verify import BrokenRule, ContentCheck
from caseload_server.store.portability.version_check import HASHES, broken_versions
from caseload_server.store.version_images import IMAGE_COLUMNS

from tests.store.conftest import Clock
from tests.store.store_calls import assign, delete, make, run, unassign, update


def broken(store: RelationshipStore) -> dict[str, BrokenRule]:
    """The broken rules of versions, by name."""
    with store._database.snapshot() as transaction:
        return {one.rule: one for one in broken_versions(transaction)}


@pytest.fixture
def changed(store: RelationshipStore, clock: Clock) -> RelationshipStore:
    """Therapist t (revision 1) was updated (3), patient p (2) twice (4, 5); their assignment (6) ended (7)."""
    make(store, THERAPIST, "t")
    make(store, PATIENT, "p")
    update(store, THERAPIST, "t", email="t@example.org")
    clock.advance(1)
    update(store, PATIENT, "p", aliases='["Augusta"]')
    update(store, PATIENT, "p", aliases="[]")
    assign(store)
    unassign(store)
    return store


def unguard(store: RelationshipStore, table: str) -> None:
    """Recreates the table without its indexes, checks and foreign keys."""
    run(store, f"CREATE TABLE unguarded AS SELECT * FROM {table}")
    run(store, f"DROP TABLE {table}")
    run(store, f"ALTER TABLE unguarded RENAME TO {table}")


COMPLETE = "versions_revision is the last revision without versions, or a purge of them"
BREAKS: list[tuple[str, str, list[str]]] = [
    *(
        (
            f"each {kind}_id in {kind}_version exists in {kind}",
            f"UPDATE {kind}_version SET {kind}_id = 'missing'",
            ["missing", "missing"][: 2 if kind == "patient" else 1],
        )
        for kind in ("therapist", "patient", "assignment")
    ),
    ("no version is newer than the head", "UPDATE therapist_version SET to_revision = 8", ["t"]),
    ("no version is older than a purge of versions", "UPDATE change SET kind = 7, through_revision = 3", ["t"]),
    (
        "each version has the change that replaced it",
        "UPDATE change SET version_hash = NULL WHERE patient_id = 'p' AND assignment_id IS NULL",
        ["p", "p"],
    ),
    (
        "each version has the change that replaced it",
        "UPDATE patient_version SET to_revision = 6 WHERE to_revision = 5",
        ["p"],
    ),
    (
        "each version has the change that replaced it",
        "UPDATE change_set SET hash_version = 0 WHERE revision IN (4, 5)",  # older than the chain
        ["p", "p"],
    ),
    ("each version has the time of its change set", "UPDATE therapist_version SET to_us = to_us + 1", ["t"]),
    (
        "each version in the change log is there, unless it was purged",
        "DELETE FROM patient_version WHERE to_revision = 5",
        ["p"],
    ),
    (
        "each version in the change log is there, unless it was purged",
        "DELETE FROM assignment_version",
        [],
    ),
    (
        "each change after versions_revision kept a version",
        "UPDATE change SET version_hash = NULL WHERE therapist_id = 't' AND assignment_id IS NULL",
        ["t"],
    ),
    (COMPLETE, "UPDATE store SET versions_revision = 3", ["3", "3"]),
    (COMPLETE, "UPDATE store SET versions_revision = 9", ["9"]),
    (COMPLETE, "UPDATE store SET versions_us = 1", ["0"]),
    (COMPLETE, "UPDATE change_set SET hash_version = 1 WHERE revision = 7", ["7"]),
    (HASHES, "UPDATE therapist_version SET image = replace(image, 'Ada', 'Eve')", ["t"]),
    (HASHES, "UPDATE patient_version SET merged_into_patient_id = 'q' WHERE to_revision = 4", ["p"]),
    (HASHES, "UPDATE patient_version SET image = '[]' WHERE to_revision = 4", ["p"]),
    (HASHES, "UPDATE assignment_version SET focus = 'grief'", []),
]


def test_versions_of_an_intact_store_break_no_rule(changed: RelationshipStore) -> None:
    assert broken(changed) == {}


@pytest.mark.parametrize(("rule", "statement", "ids"), BREAKS, ids=range(len(BREAKS)))
def test_verify_reports_versions_that_contradict_the_log(
    changed: RelationshipStore, rule: str, statement: str, ids: list[str]
) -> None:
    if "missing" in ids:
        unguard(changed, f"{rule.split()[1].removesuffix('_id')}_version")
    if "change SET kind" in statement:
        statement += " WHERE revision = 7"
    run(changed, statement)
    found = broken(changed)[rule]
    assert found.records == max(1, len(ids))
    assert not ids or found.ids == ids


def test_every_rule_of_versions_has_a_case_that_breaks_it() -> None:
    assert {rule.text for rule in version_check.RULES} | {HASHES} == {rule for rule, _, _ in BREAKS}


@pytest.mark.parametrize(
    "change",
    [
        "replace(image, 'Ada', '\\u0041da')",
        "replace(image, '{', '{ ')",
        "replace(image, '\"status\":1', '\"status\":9')",
        'replace(image, \'"status":1\', \'"status":"1"\')',
        "replace(image, '\"etag\"', '\"e\"')",
        "replace(image, '\"annotations\":\"{}\",', '')",
        'replace(image, \'"aliases":"[]"\', \'"aliases":"[1]"\')',
        "replace(image, 'Ada', '\\u0000')",
        "'[]'",
        "''",
    ],
)
def test_verify_reports_an_image_that_no_server_could_have_stored(changed: RelationshipStore, change: str) -> None:
    run(changed, f"UPDATE therapist_version SET image = {change}")
    with changed._database.snapshot() as transaction:
        found = {one.rule: one.ids for one in ContentCheck(transaction).read(lambda _: None)}
    assert found == {"each image in therapist_version is valid": ["t"]}


def test_verify_accepts_versions_from_before_a_migration_added_a_column(
    changed: RelationshipStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    columns = tuple(sorted((*IMAGE_COLUMNS["therapist"], "pronouns")))  # as a later release has them
    monkeypatch.setitem(IMAGE_COLUMNS, "therapist", columns)
    with changed._database.snapshot() as transaction:
        assert list(ContentCheck(transaction).read(lambda _: None)) == []


def test_versions_break_no_rule_after_purges(changed: RelationshipStore, clock: Clock) -> None:
    changed.purger.purge_versions(clock())
    update(changed, PATIENT, "p", email="p@example.org")
    assert broken(changed) == {}
    changed.purger.purge_changes(2**62)
    update(changed, PATIENT, "p", email="")
    assert broken(changed) == {}
    delete(changed, PATIENT, "p")
    changed.purger.purge_record(PATIENT, "p")
    assert broken(changed) == {}
