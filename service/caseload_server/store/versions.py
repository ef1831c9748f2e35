"""Lists the versions of one record: what it was, from when to when, and who changed it. Newest first."""

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from typing import Any, Final, Generic

from caseload_server.domain import errors
from caseload_server.domain.records import Assignment, Patient, R, Therapist
from caseload_server.domain.requests import PageRequest
from caseload_server.domain.results import RecordVersion, VersionPage
from caseload_server.store import assignments, records
from caseload_server.store.backends.protocol import Query, Row, Transaction, Value
from caseload_server.store.pages import build_page
from caseload_server.store.records import PATIENT, THERAPIST
from caseload_server.store.store_identity import StoreKeys
from caseload_server.store.version_images import DERIVED_COLUMNS, STORED_COLUMNS, version_of

_SELECT_STORE: Final = "SELECT head_revision, versions_revision, versions_us FROM store"


@dataclass(frozen=True)
class History(Generic[R]):
    """The versions of one kind of record: how the kinds differ."""

    record: type[R]
    own_change: str
    """The SQL condition for a change of the record :id itself, which an index serves."""
    not_found: Callable[[str], errors.DomainError]
    """Returns the error for an id."""
    defaults: dict[str, Any]
    """The values of columns that a version does not have."""

    @property
    def table(self) -> str:
        """Returns the name of the table of the records."""
        return self.record.__name__.lower()

    @cached_property
    def select_current(self) -> str:
        """Returns the SELECT of the record by :id."""
        return f"SELECT {', '.join(self.record._fields)} FROM {self.table} WHERE {self.table}_id = :id"

    @cached_property
    def select_current_origin(self) -> str:
        """Returns the SELECT of the origin of the current record. It takes :before as select_versions."""
        source = "SELECT CAST(:before AS BIGINT) AS to_revision, CAST(NULL AS BIGINT) AS to_us"
        return self._with_origin(source, [])

    @cached_property
    def select_oldest(self) -> str:
        """Returns the SELECT of the oldest version of the record :id, with to_revision before STORED_COLUMNS."""
        columns = ", ".join(("to_revision", *STORED_COLUMNS[self.table]))
        return f"SELECT {columns} FROM {self.table}_version WHERE {self.table}_id = :id ORDER BY to_revision LIMIT 1"

    @cached_property
    def select_versions(self) -> str:
        """Returns the SELECT of the versions that changes before the revision :before replaced, newest first."""
        columns = STORED_COLUMNS[self.table]
        source = (
            f"SELECT to_revision, to_us, {', '.join(columns)} FROM {self.table}_version"
            f" WHERE {self.table}_id = :id AND to_revision < :before ORDER BY to_revision DESC LIMIT :limit"
        )
        return f"{self._with_origin(source, list(columns))} ORDER BY version.to_revision DESC"

    def _with_origin(self, source: str, columns: list[str]) -> str:
        """Returns the SELECT of versions, each with the change that wrote it and the end of the version before."""
        selected = "".join(f", version.{column}" for column in columns)
        own = f"{self.table}_version WHERE {self.table}_id = :id AND to_revision"
        return f"""
SELECT version.to_revision, version.to_us, origin.revision, origin.actor, origin.on_behalf_of,
    previous.to_revision, previous.to_us{selected}
FROM ({source}) AS version
LEFT JOIN change_set AS origin ON origin.revision = (
    SELECT MAX(change.revision) FROM change WHERE {self.own_change} AND change.revision < version.to_revision)
LEFT JOIN {self.table}_version AS previous ON previous.{self.table}_id = :id AND previous.to_revision = (
    SELECT MAX(to_revision) FROM {own} < version.to_revision)"""


_DERIVED: Final = {name: "" if name.endswith("_id") else 0 for name in DERIVED_COLUMNS}
THERAPIST_HISTORY: Final = History(
    Therapist,
    "change.therapist_id = :id AND change.patient_id IS NULL",
    lambda record_id: records.not_found(THERAPIST, [record_id]),
    THERAPIST.defaults | _DERIVED,
)
PATIENT_HISTORY: Final = History(
    Patient,
    "change.patient_id = :id AND change.therapist_id IS NULL",
    lambda record_id: records.not_found(PATIENT, [record_id]),
    PATIENT.defaults | _DERIVED,
)
ASSIGNMENT_HISTORY: Final = History(
    Assignment,
    "change.assignment_id = :id AND change.patient_id = (SELECT patient_id FROM assignment WHERE assignment_id = :id)",
    assignments.not_found,
    {},
)


def read_page(
    transaction: Transaction, keys: StoreKeys, history: History[R], record_id: str, page: PageRequest
) -> VersionPage[R]:
    """Returns one page of the versions of a record. The current record is the first one. Raises its NOT_FOUND.

    Args: page, whose position is the revision before which the next version was replaced, as text.
    """
    [(head, complete_revision, complete_us)] = transaction.run(_SELECT_STORE)
    rows = transaction.run(history.select_current, {"id": record_id})
    if not rows:
        raise history.not_found(record_id)
    current: R = history.record._make(rows[0])
    is_complete = current.created_us > complete_us and _are_all_kept(transaction, history, current, complete_revision)
    oldest = ("", None) if is_complete else (keys.revision(complete_revision), complete_us)
    before = int(page.after or head + 1)
    place: dict[str, Value] = {"id": record_id, "before": before}
    versions: Iterable[Row] = transaction.rows(Query(history.select_versions, {**place, "limit": page.size + 1}))
    if not page.after:
        origins: list[Row] = transaction.run(history.select_current_origin, place)
        versions = chain([(*origins[0], *version_of(current).values)], versions)
    found = build_page(_with_text_key(versions), page, lambda row: _version(history, keys, row), keys.revision(head))
    return VersionPage(found.records, found.next_after, found.revision, *oldest)


def _are_all_kept(transaction: Transaction, history: History[R], current: R, complete_revision: int) -> bool:
    """Returns whether all versions since the creation are kept. If a clock was ahead then, the time does not show it.

    Args: complete_revision, after which each change kept a version.
    """
    rows = transaction.run(history.select_oldest, {"id": current[0]})
    if not rows:
        return current.updated_us == current.created_us
    to_revision, *columns = rows[0]
    return to_revision > complete_revision and _record(history, columns).updated_us == current.created_us


def _with_text_key(rows: Iterable[Row]) -> Iterator[Row]:
    return ((str(row[0]), *row[1:]) for row in rows)


def _version(history: History[R], keys: StoreKeys, row: Row) -> RecordVersion[R]:
    to_revision, to_us, revision, actor, on_behalf_of, previous, previous_us, *values = row
    record = _record(history, values)
    if revision is None and previous_us == record.updated_us:  # the log was pruned, and no instance of an older
        revision = previous  # release changed the record after that
    return RecordVersion(
        record,
        from_revision="" if revision is None else keys.revision(revision),
        from_us=record.updated_us,
        to_revision="" if to_us is None else keys.revision(int(to_revision)),
        to_us=to_us,
        actor=actor or "",
        on_behalf_of=on_behalf_of or "",
    )


def _record(history: History[R], columns: Sequence[Any]) -> R:
    """Returns the record of a version. Args: columns, as STORED_COLUMNS."""
    if history.table == "assignment":
        return history.record._make(columns)
    values = history.defaults | json.loads(columns[-1])
    return history.record(**{column: values[column] for column in history.record._fields})
