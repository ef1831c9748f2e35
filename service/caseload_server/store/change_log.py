"""The change log: appends to it, in the transaction of the changes, reads it and prunes it."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from caseload_server.domain import enums, errors
from caseload_server.domain.limits import MAX_CHANGES_PER_SET
from caseload_server.domain.records import Change, ChangeSet
from caseload_server.domain.requests import ChangeQuery
from caseload_server.domain.results import ChangePage, LogHead
from caseload_server.store import version_images
from caseload_server.store.backends.protocol import Query, Row, SerializationConflict, Transaction, Value
from caseload_server.store.hash_chain import FORMAT, HASH_BYTES, START, canonical_json, next_hash
from caseload_server.store.store_identity import StoreKeys
from caseload_server.store.version_images import Version

_CHANGE_OVERHEAD_BYTES = 64
"""Approximate size of a change without its texts, in bytes."""
_SELECT_HEAD = "SELECT head_revision, head_hash FROM store"
_MOVE_HEAD = """
UPDATE store SET head_revision = :revision, head_hash = :hash
WHERE head_revision = :head_revision AND head_hash = :head_hash"""
_INSERT_CHANGE_SETS = f"""
INSERT INTO change_set (revision, committed_us, actor, on_behalf_of, method, request_id, hash_version, hash)
SELECT :head_revision + 1 + key, CAST(value ->> 0 AS BIGINT), value ->> 1, value ->> 2, value ->> 3, value ->> 4,
    {FORMAT}, substr(:hashes, CAST(key * {HASH_BYTES} + 1 AS INTEGER), {HASH_BYTES})
FROM json_each(:change_sets) WHERE (SELECT head_hash FROM store) = :hash"""
_INSERT_CHANGES = """
INSERT INTO change (
    revision, position, kind, changed_fields, therapist_id, patient_id, assignment_id, through_revision, version_hash)
SELECT :head_revision + 1 + CAST(value ->> 0 AS BIGINT), CAST(value ->> 1 AS BIGINT), CAST(value ->> 2 AS BIGINT),
    value ->> 3, value ->> 4, value ->> 5, value ->> 6, CAST(value ->> 7 AS BIGINT), value ->> 8
FROM json_each(:changes) WHERE (SELECT head_hash FROM store) = :hash"""
_SELECT_BOUNDS = "SELECT head_revision, oldest_revision FROM store"
_SELECT_PAGE = """
SELECT change_set.revision, committed_us, actor, method, request_id, on_behalf_of,
    change.kind, change.changed_fields, change.therapist_id, change.patient_id, change.assignment_id,
    change.through_revision
FROM ({revisions}) AS matching
JOIN change_set ON change_set.revision = matching.revision
JOIN change ON change.revision = matching.revision
ORDER BY matching.revision, change.position
LIMIT :max_rows"""
LAST_REVISION_BEFORE = """
SELECT COALESCE(MAX(revision), 0) FROM change_set WHERE committed_us < :before_us AND revision < COALESCE(
    (SELECT MIN(revision) FROM change_set WHERE committed_us >= :before_us AND committed_us <= :now_us),
    (SELECT head_revision + 1 FROM store))"""
"""A change set with a time after :now_us is from a clock that was ahead. It is at least as old as later ones."""
_MOVE_CUT = """
UPDATE store SET oldest_revision = :through, oldest_hash = :hash WHERE oldest_revision < :through"""
_PURGE_BATCH_SIZE = 1000
"""Change sets that one transaction purges, so that writers wait briefly."""


class NewChangeSet(NamedTuple):
    """A change set without its revision."""

    committed_us: int
    """In microseconds since 1970 (UTC)."""
    actor: str
    on_behalf_of: str
    method: str
    request_id: str
    changes: Sequence[tuple[Value, ...]]
    """Kind, changed fields, therapist_id, patient_id, assignment_id, through_revision and version_hash of each."""
    versions: Sequence[Version] = ()
    """What the records were before."""

    @property
    def columns(self) -> tuple[Value, ...]:
        """Returns the columns of the change set from committed_us to request_id."""
        return self[:5]


def append(transaction: Transaction, change_sets: Sequence[NewChangeSet], head: LogHead) -> LogHead:
    """Appends change sets after a head. Returns the new head.

    If the log has another head, nothing is appended, and `read_head` returns the other one. If it has this one, every
    other writer waits from here until the commit. So no two transactions continue the chain from the same head.
    """
    revision, head_hash = head
    hashes = b""
    for change_set in change_sets:
        revision += 1
        head_hash = next_hash(head_hash, revision, change_set.columns, change_set.changes)
        hashes += head_hash
    changes = [
        (number, position, *change)
        for number, change_set in enumerate(change_sets)
        for position, change in enumerate(change_set.changes)
    ]
    parameters: dict[str, Value] = {
        "head_revision": head.revision,
        "head_hash": head.hash,
        "revision": revision,
        "hash": head_hash,
        "hashes": hashes,
        "change_sets": canonical_json([change_set.columns for change_set in change_sets]),
        "changes": canonical_json(changes),
    }
    for statement in (_MOVE_HEAD, _INSERT_CHANGE_SETS, _INSERT_CHANGES):
        transaction.run(statement, parameters)
    _insert_versions(transaction, change_sets, parameters)
    return LogHead(revision, head_hash)


def _insert_versions(
    transaction: Transaction, change_sets: Sequence[NewChangeSet], parameters: dict[str, Value]
) -> None:
    versions = (
        (number, change_set.committed_us, version)
        for number, change_set in enumerate(change_sets)
        for version in change_set.versions
    )
    for insert, own in version_images.inserts(versions):
        transaction.run(insert, {**parameters, **own})


def append_purge(transaction: Transaction, purge: NewChangeSet, kind: int, through: int, lock_clause: str) -> None:
    """Appends the change set of a purge.

    Args: purge and lock_clause, as purge_batch; kind, a CHANGE_ enum; through, number of the last revision erased.
    """
    change = (kind, "", None, None, None, through, None)
    append(transaction, [purge._replace(changes=[change])], read_head(transaction, lock_clause))


def read_head(transaction: Transaction, lock_clause: str = "") -> LogHead:
    """Returns the newest revision and its hash. Args: lock_clause, as Database.lock_clause, to lock it for `append`."""
    return LogHead(*transaction.run(f"{_SELECT_HEAD}{lock_clause}")[0])


def read_page(
    transaction: Transaction, keys: StoreKeys, query: ChangeQuery, after: int | None, max_size: tuple[int, int]
) -> ChangePage:
    """Returns the change sets after a revision, oldest first.

    Args: after, None for the oldest kept; max_size, the number of change sets and their approximate size in bytes. A
    change set is never split. Raises RevisionForeign, RevisionPruned.
    """
    max_sets, max_bytes = max_size
    [(head, oldest)] = transaction.run(_SELECT_BOUNDS)
    after = oldest if after is None else after
    if after > head:
        raise errors.RevisionForeign
    if after < oldest:
        raise errors.RevisionPruned(oldest_revision=keys.revision(oldest))
    revisions, parameters = _select_revisions(query)
    # No more rows than fit on a page: PostgreSQL sends them all at once.
    max_rows = max_bytes // _CHANGE_OVERHEAD_BYTES + MAX_CHANGES_PER_SET + 1
    parameters |= {"after": after, "limit": max_sets + 1, "max_rows": max_rows}
    rows = transaction.rows(Query(_SELECT_PAGE.format(revisions=revisions), parameters))
    numbered, has_more = _take_whole_sets(rows, keys, max_sets, max_bytes)
    through = numbered[-1][0] if has_more else head
    sets = [change_set._replace(revision=keys.revision(number)) for number, change_set in numbered]
    return ChangePage(sets, keys.revision(through), keys.revision(head), keys.revision(oldest))


def _select_revisions(query: ChangeQuery) -> tuple[str, dict[str, Value]]:
    """Returns the SELECT of the matching revisions, which scans the narrowest index that the query allows."""
    parameters: dict[str, Value] = {name: value for name, value in query._asdict().items() if value}
    given = [name for name in ("patient_id", "therapist_id", "on_behalf_of", "actor") if name in parameters]
    table = "change" if query.patient_id or query.therapist_id else "change_set"
    scanned = [f"entry.{name} = :{name}" for name in given[:1]]
    if given[:1] == ["on_behalf_of"]:  # whose index is partial
        scanned.append("entry.on_behalf_of <> ''")
    where = " AND ".join(["entry.revision > :after", *scanned, *map(_exists, given[1:])])
    sql = f"SELECT DISTINCT entry.revision FROM {table} AS entry WHERE {where} ORDER BY entry.revision LIMIT :limit"
    return sql, parameters


def _exists(name: str) -> str:
    table = "change" if name == "therapist_id" else "change_set"
    return f"EXISTS (SELECT 1 FROM {table} WHERE revision = entry.revision AND {name} = :{name})"


def _take_whole_sets(
    rows: Iterator[Row], keys: StoreKeys, max_sets: int, max_bytes: int
) -> tuple[list[tuple[int, ChangeSet]], bool]:
    """Returns the change sets that fit on a page, each with its number, and whether there are more."""
    sets: list[tuple[int, ChangeSet]] = []
    size = 0
    for revision, committed_us, actor, method, request_id, on_behalf_of, *change in rows:
        if not sets or sets[-1][0] != revision:
            if len(sets) == max_sets or size > max_bytes:
                return sets, True
            sets.append((revision, ChangeSet("", committed_us, actor, method, request_id, on_behalf_of, [])))
        change[-1] = "" if change[-1] is None else keys.revision(change[-1])
        sets[-1][1].changes.append(Change(*change))
        size += _CHANGE_OVERHEAD_BYTES + sum(len(value) for value in change[1:] if value)
    return sets, False


def purge_batch(transaction: Transaction, last: int, purge: NewChangeSet, lock_clause: str) -> int:
    """Erases the oldest change sets, up to a revision. Returns how many, 0 when none is left.

    Args: last, number of the last revision to erase; purge, the change set that records the purge, without its change;
    lock_clause, as Database.lock_clause.
    """
    [(_, oldest)] = transaction.run(_SELECT_BOUNDS)
    through = max(oldest, min(last, oldest + _PURGE_BATCH_SIZE))
    transaction.run("DELETE FROM change WHERE revision <= :through", {"through": through})
    sql = "DELETE FROM change_set WHERE revision <= :through RETURNING revision, hash"
    erased: dict[int, bytes] = dict(transaction.run(sql, {"through": through}))
    if not erased and transaction.run(_SELECT_BOUNDS)[0][1] != oldest:
        raise SerializationConflict  # another purge took them, and later ones may be left
    if erased:
        append_purge(transaction, purge, enums.CHANGE_LOG_PURGED, through, lock_clause)
        # The hash at the cut: the chain of what is left continues from it.
        transaction.run(_MOVE_CUT, {"through": through, "hash": erased.get(through) or START})
    return len(erased)
