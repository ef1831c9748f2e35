"""Checks the rules between the rows of a store, in one snapshot, while others write."""

from collections.abc import Iterable, Iterator
from typing import Final, NamedTuple

from caseload_server.domain.enums import (
    END_ENTERED_IN_ERROR,
    END_EXPIRED,
    PATIENT_DISCHARGED,
    ROLE_PRIMARY,
    THERAPIST_INACTIVE,
)
from caseload_server.domain.id_formats import ID_PATTERN
from caseload_server.store.backends.protocol import Row, Transaction
from caseload_server.store.portability import content, value_rules
from caseload_server.store.portability.content import (
    SEARCH_TABLES,
    TABLES,
    ContentDigest,
    MalformedColumn,
    Table,
)
from caseload_server.store.portability.export import Progress
from caseload_server.store.search import KEY_COLUMNS, RULES_VERSION

MAX_LISTED_IDS: Final = 10
"""Ids that are listed for a broken rule."""
_MAX_TIME_US: Final = 2**63 - 1


class Rule(NamedTuple):
    """A rule, and the SELECT of the ids that break it."""

    text: str
    sql: str


class BrokenRule(NamedTuple):
    """A rule that some records break."""

    rule: str
    records: int
    """Number of records that break it."""
    ids: list[str]
    """The ids of the first of them."""


_IDLE_STATUS: Final = {"therapist": ("inactive", THERAPIST_INACTIVE), "patient": ("discharged", PATIENT_DISCHARGED)}
_COUNT_COLUMNS: Final = {"therapist": "active_patient_count", "patient": "active_therapist_count"}


def _rules_of_kind(kind: str) -> Iterator[Rule]:
    active = f"FROM assignment WHERE assignment.{kind}_id = {kind}.{kind}_id AND end_us IS NULL"
    status_name, status = _IDLE_STATUS[kind]
    yield Rule(
        f"{_COUNT_COLUMNS[kind]} is the number of active assignments",
        f"SELECT {kind}_id FROM {kind} WHERE {_COUNT_COLUMNS[kind]} <> (SELECT COUNT(*) {active})",
    )
    yield Rule(
        f"a deleted or {status_name} {kind} has no active assignment",
        f"SELECT {kind}_id FROM {kind} WHERE (deleted_us IS NOT NULL OR status = {status})"
        f" AND EXISTS (SELECT 1 {active})",
    )
    yield Rule(
        f"an identifier belongs to one {kind} that is not deleted",
        f"SELECT MIN({kind}_id) FROM {kind}_identifier WHERE live = 1 GROUP BY system, value HAVING COUNT(*) > 1",
    )
    table = f"{kind}_identifier"
    yield Rule(
        f"the key of an identifier belongs to one {kind} that is not deleted",
        f"SELECT other.{kind}_id FROM {table} AS other WHERE other.live = 1 AND other.holds_key IS NULL"
        f" AND other.value_key <> '' AND EXISTS (SELECT 1 FROM {table} AS holder"
        " WHERE holder.value_key = other.value_key AND holder.system = other.system AND holder.holds_key = 1"
        f" AND holder.{kind}_id <> other.{kind}_id) ORDER BY 1",
    )
    yield Rule(
        f"each {kind} has current words and keys: caseload migrate makes them",
        f"SELECT {kind}_id FROM {kind} WHERE keyed_etag <> '{RULES_VERSION}:' || etag",
    )
    yield Rule(
        f"the id of a purged {kind} is not in use",
        f"SELECT {kind}_id FROM {kind} WHERE EXISTS"
        f" (SELECT 1 FROM purged WHERE kind = '{kind}' AND record_id = {kind}_id)",
    )


def _select_overlapping(partition: str, condition: str = "") -> str:
    """Selects periods that start before an earlier one of the same partition has ended.

    An active period runs to its planned end, or for ever. Empty periods and those entered in error are left out: they
    were never in force.
    """
    return f"""
SELECT assignment_id FROM (
    SELECT assignment_id, start_us, MAX(COALESCE(end_us, expire_us, {_MAX_TIME_US})) OVER (
        PARTITION BY {partition} ORDER BY start_us, assignment_id ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING
    ) AS occupied_until_us
    FROM assignment
    WHERE end_reason <> {END_ENTERED_IN_ERROR} AND (end_us IS NULL OR end_us > start_us){condition}
) AS period
WHERE start_us < occupied_until_us"""


def reference_exists(child: str, column: str, parent: str) -> Rule:
    """Returns the rule that a column of one table has only keys of another."""
    return Rule(
        f"each {column} in {child} exists in {parent}",
        f"SELECT {column} FROM {child} WHERE NOT EXISTS"
        f" (SELECT 1 FROM {parent} WHERE {parent}.{column} = {child}.{column})",
    )


_PERSONS: Final = """
WITH RECURSIVE person (patient_id, person_id) AS (
    SELECT patient_id, patient_id FROM patient WHERE merged_into_patient_id = '' AND patient_id IN (
        SELECT merged_into_patient_id FROM patient WHERE merged_into_patient_id <> '')
    UNION ALL
    SELECT merged.patient_id, person.person_id FROM person
    JOIN patient AS merged ON merged.merged_into_patient_id = person.patient_id AND merged.merged_into_patient_id <> ''
)
SELECT patient_id, person_id FROM person"""
"""Selects the patients that merges join, each with the patient into which all are merged. It leaves out cycles."""

RULES: Final = (
    *_rules_of_kind("therapist"),
    *_rules_of_kind("patient"),
    Rule(
        "primary_therapist_id is the therapist of the active PRIMARY assignment",
        "SELECT patient_id FROM patient WHERE primary_therapist_id <> COALESCE((SELECT MIN(therapist_id)"
        " FROM assignment WHERE assignment.patient_id = patient.patient_id AND end_us IS NULL"
        f" AND role = {ROLE_PRIMARY}), '')",
    ),
    Rule(
        "a pair has at most one active assignment",
        "SELECT MIN(assignment_id) FROM assignment WHERE end_us IS NULL"
        " GROUP BY patient_id, therapist_id HAVING COUNT(*) > 1",
    ),
    Rule(
        "a patient has at most one active PRIMARY assignment",
        f"SELECT MIN(assignment_id) FROM assignment WHERE end_us IS NULL AND role = {ROLE_PRIMARY}"
        " GROUP BY patient_id HAVING COUNT(*) > 1",
    ),
    Rule(
        "the planned end of an active assignment is not before its start",
        "SELECT assignment_id FROM assignment WHERE end_us IS NULL AND expire_us < start_us",
    ),
    Rule(
        "an assignment that expired had a planned end",
        f"SELECT assignment_id FROM assignment WHERE end_reason = {END_EXPIRED} AND expire_us IS NULL",
    ),
    Rule("the periods of a pair do not overlap", _select_overlapping("patient_id, therapist_id")),
    Rule(
        "the PRIMARY periods of a patient do not overlap",
        _select_overlapping("patient_id", f" AND role = {ROLE_PRIMARY}"),
    ),
    Rule(
        "a merged patient is deleted",
        "SELECT patient_id FROM patient WHERE merged_into_patient_id <> '' AND deleted_us IS NULL",
    ),
    Rule(
        "each merged_into_patient_id leads to a patient that is not merged",
        "SELECT patient_id FROM patient WHERE merged_into_patient_id <> ''"
        f" AND patient_id NOT IN (SELECT patient_id FROM ({_PERSONS}) AS person)",
    ),
    Rule(
        "same_person has the patients that merges join",
        f"SELECT patient_id FROM ({_PERSONS}) AS person WHERE NOT EXISTS (SELECT 1 FROM same_person"
        " WHERE same_person.patient_id = person.patient_id AND same_person.person_id = person.person_id)"
        f" UNION ALL SELECT patient_id FROM same_person WHERE NOT EXISTS (SELECT 1 FROM ({_PERSONS}) AS person"
        " WHERE same_person.patient_id = person.patient_id AND same_person.person_id = person.person_id)",
    ),
    Rule("the table store has one row", "SELECT COUNT(*) FROM store HAVING COUNT(*) <> 1"),
    Rule(
        "the change log has every revision from the oldest to the head",
        "SELECT oldest_revision + 1 FROM store WHERE oldest_revision < head_revision"
        " AND NOT EXISTS (SELECT 1 FROM change_set WHERE revision = oldest_revision + 1)"
        " UNION ALL SELECT this.revision + 1 FROM change_set AS this, store WHERE this.revision < head_revision"
        " AND NOT EXISTS (SELECT 1 FROM change_set AS next WHERE next.revision = this.revision + 1)",
    ),
    Rule(
        "no revision is newer than the head, or was purged",
        "SELECT revision FROM change_set, store WHERE revision > head_revision OR revision <= oldest_revision"
        " UNION ALL SELECT revision FROM request, store WHERE revision > head_revision",
    ),
    Rule(
        "each change set has changes",
        "SELECT revision FROM change_set WHERE NOT EXISTS"
        " (SELECT 1 FROM change WHERE change.revision = change_set.revision)",
    ),
    reference_exists("change", "revision", "change_set"),
    reference_exists("assignment", "therapist_id", "therapist"),
    reference_exists("assignment", "patient_id", "patient"),
    *(reference_exists(table, columns[0], columns[0].removesuffix("_id")) for table, columns in SEARCH_TABLES.items()),
)


def broken_rules(transaction: Transaction, rules: Iterable[Rule] = RULES) -> Iterator[BrokenRule]:
    """Yields each broken rule. No rule covers capacity: a limit may be set below the present count."""
    for text, sql in rules:
        if ids := _first_ids(transaction, sql):
            [(count,)] = transaction.run(f"SELECT COUNT(*) FROM ({sql}) AS broken")
            yield BrokenRule(text, count, ids)


def _first_ids(transaction: Transaction, sql: str) -> list[str]:
    try:
        return [str(row_id) for (row_id,) in transaction.run(f"{sql} LIMIT {MAX_LISTED_IDS}")]
    except UnicodeDecodeError:
        return ["not valid UTF-8"]


def unreadable(name: str) -> BrokenRule:
    """Returns the broken rule for text in SQLite that is not valid UTF-8. Args: name, of what could not be read."""
    return BrokenRule(f"each text in {name} is valid UTF-8", 1, [])


def file_damage(transaction: Transaction) -> Iterator[BrokenRule]:
    """Yields a broken rule if SQLite finds its file damaged: https://sqlite.org/pragma.html#pragma_integrity_check"""
    found = transaction.run("PRAGMA integrity_check")
    if found != [("ok",)]:
        yield BrokenRule("the file is sound (PRAGMA integrity_check)", len(found), [])


def _compared(name: str) -> tuple[str, ...]:
    """Returns the columns of a search table that the record of a row determines."""
    return tuple(column for column in SEARCH_TABLES[name] if column != content.HOLDS_KEY)


class ContentCheck:
    """Reads the whole content of a store. Computes its digest and compares the search tables with the records."""

    def __init__(self, transaction: Transaction) -> None:
        self.content_digest = ContentDigest()
        self._transaction = transaction
        self._broken: dict[str, BrokenRule] = {}

    def read(self, progress: Progress) -> Iterator[BrokenRule]:
        """Reads the content, then yields each broken rule. Args: progress, is called with rows."""
        for table in TABLES:
            try:
                self._read_table(table, progress)
            except UnicodeDecodeError:
                yield unreadable(table.name)
        yield from self._broken.values()

    def _read_table(self, table: Table, progress: Progress) -> None:
        for rows in content.pages(self._transaction, table):
            self.content_digest.add(table, len(rows), content.to_lines(table, rows))
            self._check_values(table, rows)
            if "display_name" in table.columns:
                self._compare(table, rows)
            progress(len(rows))

    def _check_values(self, table: Table, rows: list[Row]) -> None:
        for column, values in zip(table.columns, zip(*rows, strict=True), strict=True):
            keys = [str(rows[index][0]) for index in value_rules.invalid(table, column, values)]
            ids = [key if ID_PATTERN.fullmatch(key) else "malformed id" for key in keys]
            self._add(f"each {column} in {table.name} is valid", ids)

    def _compare(self, table: Table, rows: list[Row]) -> None:
        """Compares the search rows of one page of records with what the records say.

        It leaves out records without current keys, whose words and keys are made later.
        """
        expected: dict[str, set[Row]] = {name: set() for name in SEARCH_TABLES if name.startswith(table.name)}
        for row in rows:
            try:
                search_rows = content.search_rows(table, [row])
            except MalformedColumn as column:
                self._add(f"{column} of each {table.name} is valid JSON for its column", [row[0]])
                continue
            for name, found in search_rows.items():
                expected[name].update(row[: len(_compared(name))] for row in found)
        outdated = self._compare_keys(table, rows)
        for name, wanted in expected.items():
            stored = self._stored(name, rows[0][0], rows[-1][0])
            self._add(f"{name} matches the records", sorted({row[0] for row in wanted ^ stored} - outdated))

    def _compare_keys(self, table: Table, rows: list[Row]) -> set[str]:
        """Compares the keys of one page of records. Returns the ids of those without current ones."""
        columns = f"{table.key[0]}, {', '.join(KEY_COLUMNS)}"
        sql = f"SELECT {columns} FROM {table.name} WHERE {table.key[0]} BETWEEN :first AND :last"
        stored = {row[0]: row[1:] for row in self._transaction.run(sql, {"first": rows[0][0], "last": rows[-1][0]})}
        wanted = {row[0]: keys for row, keys in zip(rows, content.record_keys(table, rows), strict=True)}
        outdated = {record_id for record_id, keys in wanted.items() if stored[record_id][-1] != keys[-1]}
        differing = {record_id for record_id, keys in wanted.items() if stored[record_id] != keys}
        self._add(f"the keys of each {table.name} match it", sorted(differing - outdated))
        return outdated

    def _stored(self, name: str, first: str, last: str) -> set[Row]:
        columns = _compared(name)
        sql = f"SELECT {', '.join(columns)} FROM {name} WHERE {columns[0]} BETWEEN :first AND :last"
        return set(self._transaction.run(sql, {"first": first, "last": last}))

    def _add(self, rule: str, ids: list[str]) -> None:
        if ids:
            before = self._broken.get(rule, BrokenRule(rule, 0, []))
            self._broken[rule] = BrokenRule(rule, before.records + len(ids), [*before.ids, *ids][:MAX_LISTED_IDS])
