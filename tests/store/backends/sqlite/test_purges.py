"""A purge on SQLite shares its transaction with the writes that wait at the same time."""

import time

from caseload_server.store import THERAPIST, RelationshipStore
from caseload_server.store.backends.sqlite.database import SqliteDatabase
from caseload_server.store.purges import PurgedCount

from tests.store.backends.sqlite.writers import batch
from tests.store.store_calls import CALL, assign, broken, delete, make_pair, run


def test_a_purge_erases_the_version_that_a_write_before_it_in_its_transaction_keeps(database: SqliteDatabase) -> None:
    store = RelationshipStore(database, lambda: time.time_ns() // 1000)
    make_pair(store)
    period = assign(store).assignment_id
    delete(store, THERAPIST, "t", force=True)
    corrected, purged = batch(
        database,
        [
            lambda: store.correct(period, "", {"focus": "mended"}, CALL).record.focus,
            lambda: store.purger.purge_record(THERAPIST, "t"),
        ],
    )
    assert (corrected, purged) == ("mended", PurgedCount(1, 1))
    assert run(store, "SELECT COUNT(*) FROM assignment_version") == [(0,)]
    assert broken(store) == []
