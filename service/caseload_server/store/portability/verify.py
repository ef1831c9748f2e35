"""What must always hold between the rows of a store, looked for in one state of it while others write."""

from collections.abc import Iterator
from typing import Final, NamedTuple

from caseload_server.domain.enums import END_ENTERED_IN_ERROR, PATIENT_DISCHARGED, ROLE_PRIMARY, THERAPIST_INACTIVE
from caseload_server.store.backends.protocol import Row, Transaction
from caseload_server.store.portability import content
from caseload_server.store.portability.content import FOUND, TABLES, Table, Tally
from caseload_server.store.portability.export import Progress

NAMED: Final = 10
"""So many ids are named of what breaks a rule."""
_FOR_EVER_US: Final = 2**63 - 1


class Rule(NamedTuple):
    """What must hold, and the SELECT of the ids of what breaks it."""

    text: str
    sql: str


class Broken(NamedTuple):
    """A rule that does not hold."""

    rule: str
    records: int
    ids: list[str]
    """Of the first records that break it."""


_IDLE: Final = {"therapist": THERAPIST_INACTIVE, "patient": PATIENT_DISCHARGED}
_COUNTS: Final = {"therapist": "active_patient_count", "patient": "active_therapist_count"}


def _of_either_side(kind: str) -> Iterator[Rule]:
    active = f"FROM assignment WHERE assignment.{kind}_id = {kind}.{kind}_id AND end_us IS NULL"
    yield Rule(
        f"{_COUNTS[kind]} is the number of active assignments",
        f"SELECT {kind}_id FROM {kind} WHERE {_COUNTS[kind]} <> (SELECT COUNT(*) {active})",
    )
    yield Rule(
        f"a deleted {kind}, or one of the last status, has no active assignment",
        f"SELECT {kind}_id FROM {kind} WHERE (deleted_us IS NOT NULL OR status = {_IDLE[kind]})"
        f" AND EXISTS (SELECT 1 {active})",
    )
    yield Rule(
        f"an identifier is that of one {kind} that is not deleted",
        f"SELECT MIN({kind}_id) FROM {kind}_identifier WHERE live = 1 GROUP BY system, value HAVING COUNT(*) > 1",
    )
    yield Rule(
        f"the id of a purged {kind} is that of no other",
        f"SELECT {kind}_id FROM {kind} WHERE EXISTS"
        f" (SELECT 1 FROM purged WHERE kind = '{kind}' AND record_id = {kind}_id)",
    )


def _overlapping(periods: str, condition: str = "") -> str:
    """Periods that begin before an earlier one of the same has ended; those that were never in force apart."""
    return f"""
SELECT assignment_id FROM (
    SELECT assignment_id, start_us, MAX(COALESCE(end_us, {_FOR_EVER_US})) OVER (
        PARTITION BY {periods} ORDER BY start_us, assignment_id ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING
    ) AS taken_until_us
    FROM assignment
    WHERE end_reason <> {END_ENTERED_IN_ERROR} AND (end_us IS NULL OR end_us > start_us){condition}
) AS period
WHERE start_us < taken_until_us"""


def _pointing_nowhere(child: str, column: str, parent: str) -> Rule:
    return Rule(
        f"each {column} in {child} is that of a {parent}",
        f"SELECT {column} FROM {child} WHERE NOT EXISTS"
        f" (SELECT 1 FROM {parent} WHERE {parent}.{column} = {child}.{column})",
    )


RULES: Final = (
    *_of_either_side("therapist"),
    *_of_either_side("patient"),
    Rule(
        "primary_therapist_id is the therapist of the active PRIMARY assignment",
        "SELECT patient_id FROM patient WHERE primary_therapist_id <> COALESCE((SELECT MIN(therapist_id)"
        " FROM assignment WHERE assignment.patient_id = patient.patient_id AND end_us IS NULL"
        f" AND role = {ROLE_PRIMARY}), '')",
    ),
    Rule(
        "a pair has one active assignment at most",
        "SELECT MIN(assignment_id) FROM assignment WHERE end_us IS NULL"
        " GROUP BY patient_id, therapist_id HAVING COUNT(*) > 1",
    ),
    Rule(
        "a patient has one active PRIMARY assignment at most",
        f"SELECT MIN(assignment_id) FROM assignment WHERE end_us IS NULL AND role = {ROLE_PRIMARY}"
        " GROUP BY patient_id HAVING COUNT(*) > 1",
    ),
    Rule("the periods of a pair do not overlap", _overlapping("patient_id, therapist_id")),
    Rule("the PRIMARY periods of a patient do not overlap", _overlapping("patient_id", f" AND role = {ROLE_PRIMARY}")),
    Rule(
        "the revisions of the log have no gap from the oldest kept to the newest",
        "SELECT oldest_revision + 1 FROM store WHERE oldest_revision < head_revision"
        " AND NOT EXISTS (SELECT 1 FROM change_set WHERE revision = oldest_revision + 1)"
        " UNION ALL SELECT one.revision + 1 FROM change_set AS one, store WHERE one.revision < head_revision"
        " AND NOT EXISTS (SELECT 1 FROM change_set AS other WHERE other.revision = one.revision + 1)",
    ),
    Rule(
        "no revision is newer than the newest, or as old as what was purged",
        "SELECT revision FROM change_set, store WHERE revision > head_revision OR revision <= oldest_revision"
        " UNION ALL SELECT revision FROM request, store WHERE revision > head_revision",
    ),
    Rule(
        "each change set has changes",
        "SELECT revision FROM change_set WHERE NOT EXISTS"
        " (SELECT 1 FROM change WHERE change.revision = change_set.revision)",
    ),
    _pointing_nowhere("change", "revision", "change_set"),
    _pointing_nowhere("assignment", "therapist_id", "therapist"),
    _pointing_nowhere("assignment", "patient_id", "patient"),
    *(_pointing_nowhere(table, columns[0], columns[0].removesuffix("_id")) for table, columns in FOUND.items()),
)


def broken_rules(transaction: Transaction) -> Iterator[Broken]:
    """Each rule between rows that does not hold. A therapist may have more patients than the present limit."""
    for text, sql in RULES:
        ids = [str(one) for (one,) in transaction.run(f"{sql} LIMIT {NAMED}")]
        if ids:
            [(count,)] = transaction.run(f"SELECT COUNT(*) FROM ({sql}) AS broken")
            yield Broken(text, count, ids)


def damage(transaction: Transaction) -> Iterator[Broken]:
    """What SQLite itself finds wrong with its file."""
    found = transaction.run("PRAGMA integrity_check")
    if found != [("ok",)]:
        yield Broken("the file is sound (PRAGMA integrity_check)", len(found), [])


class Contents:
    """Reads the whole content of a store: its digest, and whether people are found by what their records say."""

    def __init__(self, transaction: Transaction) -> None:
        self.tally = Tally()
        self._transaction = transaction
        self._wrong: dict[str, Broken] = {}

    def read(self, progress: Progress) -> Iterator[Broken]:
        """Each rule that does not hold, at the end. progress is of rows."""
        for table in TABLES:
            for rows in content.pages(self._transaction, table):
                self.tally.add(table, len(rows), content.lines(table, rows))
                if "display_name" in table.columns:
                    self._compare(table, rows)
                progress(len(rows))
        yield from self._wrong.values()

    def _compare(self, table: Table, rows: list[Row]) -> None:
        """Compares the tables that people of one page are found by with what their records say."""
        expected: dict[str, set[Row]] = {name: set() for name in FOUND if name.startswith(table.name)}
        for row in rows:
            try:
                found = content.found_by(table, [row])
            except content.Malformed as error:
                self._note(f"{error} of a {table.name} is the JSON that it must be", [row[0]])
                continue
            for name, more in found.items():
                expected[name].update(more)
        for name, wanted in expected.items():
            stored = self._stored(name, rows[0][0], rows[-1][0])
            self._note(f"{name} says what the records say", sorted({row[0] for row in wanted ^ stored}))

    def _stored(self, name: str, first: str, last: str) -> set[Row]:
        columns = FOUND[name]
        sql = f"SELECT {', '.join(columns)} FROM {name} WHERE {columns[0]} BETWEEN :first AND :last"
        return set(self._transaction.run(sql, {"first": first, "last": last}))

    def _note(self, rule: str, ids: list[str]) -> None:
        if ids:
            before = self._wrong.get(rule, Broken(rule, 0, []))
            self._wrong[rule] = Broken(rule, before.records + len(ids), [*before.ids, *ids][:NAMED])
