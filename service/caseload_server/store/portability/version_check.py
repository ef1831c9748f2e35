"""Checks the versions of records against the change log."""

import json
from collections.abc import Iterator
from typing import Final

from caseload_server.domain import enums
from caseload_server.domain.records import Assignment
from caseload_server.store.backends.protocol import Query, Row, Transaction
from caseload_server.store.hash_chain import FORMAT
from caseload_server.store.portability.verify import (
    MAX_LISTED_IDS,
    BrokenRule,
    Rule,
    broken_rules,
    reference_exists,
    unreadable,
)
from caseload_server.store.version_images import STORED_COLUMNS, image_hash, version_of

HASHES: Final = "each version has the hash that its change recorded"
_CHANGE_OF: Final = {
    "therapist": "change.therapist_id = {row}.therapist_id AND change.assignment_id IS NULL",
    "patient": "change.patient_id = {row}.patient_id AND change.assignment_id IS NULL",
    "assignment": "change.assignment_id = {row}.assignment_id",
}
"""The condition that a change is of the record of a row, by table."""
_PURGED_THROUGH: Final = (
    f"COALESCE((SELECT MAX(through_revision) FROM change WHERE kind = {enums.CHANGE_VERSIONS_PURGED}), 0)"
)


def _select_of_each(template: str) -> str:
    """Returns one SELECT over all tables of versions."""
    parts = (
        template.format(table=table, of_version=of.format(row="version"), of_record=of.format(row="record"))
        for table, of in _CHANGE_OF.items()
    )
    return " UNION ALL ".join(parts)


RULES: Final = (
    *(reference_exists(f"{table}_version", f"{table}_id", table) for table in STORED_COLUMNS),
    Rule(
        "no version is newer than the head",
        _select_of_each("SELECT {table}_id FROM {table}_version, store WHERE to_revision > head_revision"),
    ),
    Rule(
        "no version is older than a purge of versions",
        _select_of_each(f"SELECT {{table}}_id FROM {{table}}_version WHERE to_revision <= {_PURGED_THROUGH}"),
    ),
    Rule(
        "each version has the change that replaced it",
        _select_of_each(
            "SELECT version.{table}_id FROM {table}_version AS version, store"
            " WHERE version.to_revision > oldest_revision AND NOT EXISTS (SELECT 1 FROM change"
            " JOIN change_set ON change_set.revision = change.revision WHERE change.revision = version.to_revision"
            f" AND hash_version >= {FORMAT} AND change.version_hash IS NOT NULL AND {{of_version}})"
        ),
    ),
    Rule(
        "each version has the time of its change set",
        _select_of_each(
            "SELECT {table}_id FROM {table}_version JOIN change_set ON revision = to_revision"
            " WHERE to_us <> committed_us"
        ),
    ),
    Rule(
        "each version in the change log is there, unless it was purged",
        _select_of_each(
            "SELECT record.{table}_id FROM change JOIN {table} AS record ON {of_record}"
            f" WHERE change.version_hash IS NOT NULL AND change.revision > {_PURGED_THROUGH}"
            " AND NOT EXISTS (SELECT 1 FROM {table}_version AS version"
            " WHERE version.{table}_id = record.{table}_id AND version.to_revision = change.revision)"
        ),
    ),
    Rule(
        "each change after versions_revision kept a version",
        "SELECT COALESCE(this.assignment_id, this.patient_id, this.therapist_id) FROM change AS this, store"
        f" WHERE this.kind BETWEEN {enums.CHANGE_UPDATED} AND {enums.CHANGE_UNDELETED}"
        " AND this.version_hash IS NULL AND this.revision > versions_revision AND NOT EXISTS ("
        " SELECT 1 FROM change AS first WHERE first.revision = this.revision AND first.position < this.position"
        f" AND (first.version_hash IS NOT NULL OR first.kind = {enums.CHANGE_CREATED})"
        " AND COALESCE(first.assignment_id, first.patient_id, first.therapist_id)"
        " = COALESCE(this.assignment_id, this.patient_id, this.therapist_id)"
        " AND (first.assignment_id IS NULL) = (this.assignment_id IS NULL)"
        " AND (first.patient_id IS NULL) = (this.patient_id IS NULL))",
    ),
    Rule(
        "versions_revision is the last revision without versions, or a purge of them",
        f"SELECT revision FROM change_set, store WHERE revision > versions_revision AND hash_version < {FORMAT}"
        " UNION ALL SELECT versions_revision FROM store WHERE versions_revision > head_revision"
        f" OR versions_revision < {_PURGED_THROUGH}"
        f" OR (versions_revision > oldest_revision AND versions_revision <> {_PURGED_THROUGH} AND NOT EXISTS ("
        f"SELECT 1 FROM change_set WHERE revision = versions_revision AND hash_version < {FORMAT}))"
        " UNION ALL SELECT revision FROM change_set, store WHERE committed_us > versions_us"
        f" AND revision <= versions_revision AND (revision = versions_revision OR hash_version < {FORMAT})"
        " UNION ALL SELECT versions_revision FROM store WHERE oldest_revision = 0 AND versions_us >"
        " COALESCE((SELECT MAX(committed_us) FROM change_set WHERE revision <= versions_revision), 0)",
    ),
)


def broken_versions(transaction: Transaction) -> Iterator[BrokenRule]:
    """Reads all versions, and yields each broken rule with the ids of the records that break it."""
    yield from broken_rules(transaction, RULES)
    broken: list[str] = []
    for table in STORED_COLUMNS:
        try:
            broken += _with_wrong_hash(transaction, table)
        except UnicodeDecodeError:
            yield unreadable(f"{table}_version")
    if broken:
        yield BrokenRule(HASHES, len(broken), broken[:MAX_LISTED_IDS])


def _with_wrong_hash(transaction: Transaction, table: str) -> Iterator[str]:
    """Yields the id of each version whose content is not the one of which its change recorded the hash."""
    columns = ", ".join(f"version.{column}" for column in STORED_COLUMNS[table])
    sql = (
        f"SELECT change.version_hash, {columns} FROM {table}_version AS version JOIN change"
        f" ON change.revision = version.to_revision AND {_CHANGE_OF[table].format(row='version')}"
        " WHERE change.version_hash IS NOT NULL"
    )
    for recorded, *row in transaction.rows(Query(sql, {})):
        if recorded != _hash_of(table, row):
            yield str(row[0])


def _hash_of(table: str, row: Row | list[object]) -> str | None:
    """Returns the hash of a stored version, or None if its columns contradict its image."""
    if table == "assignment":
        return version_of(Assignment._make(row)).hash
    *values, image = row
    try:
        columns = json.loads(str(image))
        is_same = [columns[name] for name in STORED_COLUMNS[table][:-1]] == values
    except (ValueError, LookupError, TypeError, RecursionError):
        return None
    return image_hash(str(image)) if is_same else None
