"""Erases old versions of records. The store says since when its versions are complete."""

from typing import Final

from caseload_server.domain import enums
from caseload_server.store import change_log
from caseload_server.store.backends.protocol import Row, SerializationConflict, Transaction, Value
from caseload_server.store.change_log import NewChangeSet
from caseload_server.store.version_images import STORED_COLUMNS

_BATCH_SIZE: Final = 1000
"""Versions that one transaction erases, unless a single change set has more, so that writers wait briefly."""
_OLDEST: Final = " UNION ALL ".join(
    f"SELECT to_revision FROM (SELECT to_revision FROM {table}_version WHERE to_revision <= :last"
    f" ORDER BY to_revision LIMIT {_BATCH_SIZE}) AS {table}"
    for table in STORED_COLUMNS
)
_SELECT_THROUGH: Final = (
    f"SELECT MAX(to_revision) FROM (SELECT to_revision FROM ({_OLDEST}) AS oldest"
    f" ORDER BY to_revision LIMIT {_BATCH_SIZE}) AS batch"
)
_VERSIONS_OF_PRUNED_LOG: Final = " UNION ALL ".join(
    f"SELECT to_revision FROM {table}_version, store WHERE to_revision <= oldest_revision AND to_us < :before_us"
    for table in STORED_COLUMNS
)
_SELECT_LAST_PRUNED: Final = f"SELECT COALESCE(MAX(to_revision), 0) FROM ({_VERSIONS_OF_PRUNED_LOG}) AS pruned"
_MOVE_START: Final = """
UPDATE store SET
    versions_revision = CASE WHEN versions_revision > :through THEN versions_revision ELSE :through END,
    versions_us = CASE WHEN versions_us > :to_us THEN versions_us ELSE :to_us END"""
"""Neither goes back: clocks differ, and an instance that keeps no versions may have moved both."""


def last_revision_before(transaction: Transaction, before_us: int, now_us: int) -> int:
    """Returns the last revision before a time, also where the change log was pruned past it; 0 if there is none.

    Args: before_us and now_us, in microseconds since 1970 (UTC).
    """
    times: dict[str, Value] = {"before_us": before_us, "now_us": max(before_us, now_us)}
    [(last,)] = transaction.run(change_log.LAST_REVISION_BEFORE, times)
    return int(last or transaction.run(_SELECT_LAST_PRUNED, {"before_us": before_us})[0][0])


def purge_batch(transaction: Transaction, last: int, purge: NewChangeSet, lock_clause: str) -> int:
    """Erases the oldest versions that ended at a revision or before. Returns how many, 0 when none is left.

    Args: last, number of that revision; purge, the change set that records the purge, without its change; lock_clause,
    as Database.lock_clause.
    """
    [(through,)] = transaction.run(_SELECT_THROUGH, {"last": last})
    erased: list[Row] = []
    for table in STORED_COLUMNS if through else ():
        sql = f"DELETE FROM {table}_version WHERE to_revision <= :through RETURNING to_revision, to_us"
        erased += transaction.run(sql, {"through": through})
    if through and not erased:
        raise SerializationConflict  # another purge took them, and later ones may be left
    if erased:
        change_log.append_purge(transaction, purge, enums.CHANGE_VERSIONS_PURGED, through, lock_clause)
        transaction.run(_MOVE_START, {"through": through, "to_us": max(to_us for _, to_us in erased)})
    return len(erased)
