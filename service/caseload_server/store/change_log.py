"""Reading the change log, as it was written with the changes, and pruning it."""

from collections.abc import Iterator

from caseload_server.domain import errors
from caseload_server.domain.limits import MAX_CHANGES_PER_SET
from caseload_server.domain.records import Change, ChangeSet
from caseload_server.domain.requests import ChangeQuery
from caseload_server.domain.results import ChangePage
from caseload_server.store.backends.protocol import Row, Transaction, Value
from caseload_server.store.store_keys import StoreKeys

_FLAT_CHANGE_BYTES = 64
_BOUNDS = "SELECT head_revision, oldest_revision FROM store"
_PAGE = """
SELECT one.revision, one.committed_us, one.actor, one.method, one.request_id,
    change.kind, change.changed_fields, change.therapist_id, change.patient_id, change.assignment_id
FROM ({wanted}) AS wanted
JOIN change_set AS one ON one.revision = wanted.revision
JOIN change ON change.revision = wanted.revision
ORDER BY wanted.revision, change.position
LIMIT :lines"""
LAST_BEFORE = """
SELECT COALESCE((SELECT MIN(revision) - 1 FROM change_set WHERE committed_us >= :before_us), head_revision)
FROM store"""
_PURGED_AT_ONCE = 1000


def page(
    transaction: Transaction, keys: StoreKeys, query: ChangeQuery, after: int | None, most: tuple[int, int]
) -> ChangePage:
    """Up to so many whole change sets, and fewer above so many bytes. Raises RevisionForeign, RevisionPruned."""
    [(head, oldest)] = transaction.run(_BOUNDS)
    after = oldest if after is None else after
    if after > head:
        raise errors.RevisionForeign
    if after < oldest:
        raise errors.RevisionPruned(oldest_revision=keys.revision(oldest))
    wanted, parameters = _wanted(query)
    # No more lines than can be taken: PostgreSQL sends them all at once.
    lines = most[1] // _FLAT_CHANGE_BYTES + MAX_CHANGES_PER_SET + 1
    parameters |= {"after": after, "limit": most[0] + 1, "lines": lines}
    numbered, more = _whole_sets(transaction.rows(_PAGE.format(wanted=wanted), parameters), *most)
    through = numbered[-1][0] if more else head
    sets = [one._replace(revision=keys.revision(number)) for number, one in numbered]
    return ChangePage(sets, keys.revision(through), keys.revision(head), keys.revision(oldest))


def _wanted(query: ChangeQuery) -> tuple[str, dict[str, Value]]:
    """The SELECT of the wanted revisions, which walks the narrowest index that the query allows."""
    parameters: dict[str, Value] = {name: value for name, value in query._asdict().items() if value}
    given = [name for name in ("patient_id", "therapist_id", "actor") if name in parameters]
    table = "change" if query.patient_id or query.therapist_id else "change_set"
    walked = [f"one.{name} = :{name}" for name in given[:1]]
    where = " AND ".join(["one.revision > :after", *walked, *map(_also, given[1:])])
    sql = f"SELECT DISTINCT one.revision FROM {table} AS one WHERE {where} ORDER BY one.revision LIMIT :limit"
    return sql, parameters


def _also(name: str) -> str:
    table = "change_set" if name == "actor" else "change"
    return f"EXISTS (SELECT 1 FROM {table} WHERE revision = one.revision AND {name} = :{name})"


def _whole_sets(rows: Iterator[Row], size: int, size_bytes: int) -> tuple[list[tuple[int, ChangeSet]], bool]:
    """The sets that fit, by their number, and whether there are more. A set is never split."""
    sets: list[tuple[int, ChangeSet]] = []
    taken = 0
    for revision, committed_us, actor, method, request_id, *change in rows:
        if not sets or sets[-1][0] != revision:
            if len(sets) == size or taken > size_bytes:
                return sets, True
            sets.append((revision, ChangeSet("", committed_us, actor, method, request_id, [])))
        sets[-1][1].changes.append(Change(*change))
        taken += _FLAT_CHANGE_BYTES + sum(len(value) for value in change[1:] if value)
    return sets, False


def purge(transaction: Transaction, last: int) -> int:
    """Erases the oldest change sets up to a revision, so many that writers wait little: how many; 0 at the end."""
    [(_, oldest)] = transaction.run(_BOUNDS)
    span: dict[str, Value] = {"through": max(oldest, min(last, oldest + _PURGED_AT_ONCE))}
    transaction.run("DELETE FROM change WHERE revision <= :through", span)
    gone = transaction.run("DELETE FROM change_set WHERE revision <= :through RETURNING 1", span)
    transaction.run("UPDATE store SET oldest_revision = :through WHERE oldest_revision < :through", span)
    return len(gone)
