"""Checks the hash chain over the change log, and compares it with heads that were kept elsewhere."""

from collections.abc import Iterable, Iterator
from itertools import groupby
from operator import itemgetter
from typing import Final, NamedTuple

from caseload_server.domain import enums
from caseload_server.domain.results import LogHead
from caseload_server.store.backends.protocol import Query, Row, Transaction
from caseload_server.store.hash_chain import FORMAT, FORMAT_WITHOUT_VERSIONS, NO_HASH, START, next_hash
from caseload_server.store.portability.verify import MAX_LISTED_IDS, BrokenRule, unreadable

LINKS: Final = "each change set has the hash of its content and of the change set before it"
HEAD: Final = "the head hash is the hash of the newest change set"
CUT: Final = "the log begins after the last revision that a recorded purge erased"
KEPT: Final = "the log contains each head that was kept elsewhere"
_SELECT_STORE: Final = "SELECT head_revision, oldest_revision, chain_revision, head_hash, oldest_hash FROM store"
_SELECT_LOG: Final = """
SELECT change_set.revision, hash_version, hash, committed_us, actor, on_behalf_of, method, request_id,
    position, kind, changed_fields, therapist_id, patient_id, assignment_id, through_revision, version_hash
FROM change_set LEFT JOIN change ON change.revision = change_set.revision
ORDER BY change_set.revision, position"""
_SET_COLUMNS: Final = itemgetter(*range(8))


class PrunedHead(Exception):
    """The log was pruned past a head that was kept elsewhere, so the head cannot be compared. The text says how far."""

    def __init__(self, oldest_revision: int) -> None:
        super().__init__(f"the log was pruned up to revision {oldest_revision}: give a later head")
        self.oldest_revision = oldest_revision


class _Bounds(NamedTuple):
    """The row of `store`."""

    head_revision: int
    oldest_revision: int
    chain_revision: int
    head_hash: bytes
    oldest_hash: bytes

    @property
    def start(self) -> LogHead:
        """Returns the revision that the chain starts after, with the hash that it continues from."""
        if self.oldest_revision > self.chain_revision:
            return LogHead(self.oldest_revision, self.oldest_hash)
        return LogHead(self.chain_revision, START)


def broken_chain(transaction: Transaction, kept: Iterable[LogHead] = ()) -> Iterator[BrokenRule]:
    """Reads the whole log, and yields each broken rule with the revisions that break it. Raises PrunedHead.

    Args: kept, heads that were kept elsewhere.
    """
    bounds = [_Bounds(*row) for row in transaction.run(_SELECT_STORE)]
    if not bounds:  # verify.RULES has a rule for it
        return
    check = _ChainCheck(bounds[0], set(kept))
    try:
        for columns, rows in groupby(transaction.rows(Query(_SELECT_LOG, {})), _SET_COLUMNS):
            check.add(columns, [row[8:] for row in rows])
    except UnicodeDecodeError:
        yield unreadable("the change log")
        return
    for rule, revisions in check.finish().items():
        yield BrokenRule(rule, len(revisions), [str(revision) for revision in revisions[:MAX_LISTED_IDS]])


class _ChainCheck:
    """Checks the chain from its start, one change set after the other."""

    def __init__(self, bounds: _Bounds, kept: set[LogHead]) -> None:
        """Args: kept, heads that were kept elsewhere. Raises PrunedHead."""
        if any(head.revision < bounds.oldest_revision for head in kept):
            raise PrunedHead(bounds.oldest_revision)
        self._bounds = bounds
        self._hash = bounds.start.hash
        self._purged_through: int | None = None
        self._broken: dict[str, list[int]] = {}
        self._missing = kept - {bounds.start}
        """Kept heads that were not found yet."""

    def add(self, columns: Row, changes: list[Row]) -> None:
        """Checks one change set. Args: changes, the columns of each of its changes, the position first."""
        revision, hash_format, stored, *_ = columns
        for _position, kind, *_, through, _version_hash in changes:
            if kind == enums.CHANGE_LOG_PURGED:
                self._purged_through = through
        if revision <= self._bounds.chain_revision:
            is_intact = (hash_format, stored) == (NO_HASH, b"")
        else:
            is_intact = _is_linked(self._hash, columns, changes)
            self._hash = stored  # so that one change set is reported, and not all that follow it
            self._missing.discard(LogHead(revision, stored))
        if not is_intact:
            self._add(LINKS, revision)

    def finish(self) -> dict[str, list[int]]:
        """Checks the ends of the chain. Returns the revisions that break each rule."""
        bounds = self._bounds
        if self._hash != bounds.head_hash:
            self._add(HEAD, bounds.head_revision)
        if not self._is_cut_recorded():
            self._add(CUT, bounds.oldest_revision)
        for head in sorted(self._missing):
            self._add(KEPT, head.revision)
        return self._broken

    def _is_cut_recorded(self) -> bool:
        bounds = self._bounds
        if bounds.oldest_revision <= bounds.chain_revision and bounds.oldest_hash != START:
            return False
        if self._purged_through is None:  # an older version left no record
            return bounds.oldest_revision <= bounds.chain_revision
        return bounds.oldest_revision == self._purged_through

    def _add(self, rule: str, revision: int) -> None:
        self._broken.setdefault(rule, []).append(revision)


def _is_linked(previous: bytes, columns: Row, changes: list[Row]) -> bool:
    """Returns whether a change set has the hash of its content and of the change set before it."""
    revision, hash_format, stored, *content = columns
    if hash_format == FORMAT_WITHOUT_VERSIONS and all(change[-1] is None for change in changes):
        hashed = [change[1:-1] for change in changes]
    elif hash_format == FORMAT:
        hashed = [change[1:] for change in changes]
    else:
        return False
    positions = [change[0] for change in changes]
    expected = next_hash(previous, revision, content, hashed, hash_format)
    return (stored, positions) == (expected, list(range(len(changes))))
