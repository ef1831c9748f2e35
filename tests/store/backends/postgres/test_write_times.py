"""A write that waited for a record has a time after the wait. So the times of versions have the order of revisions."""

from collections.abc import Callable
from typing import Any

import psycopg
import pytest
from caseload_server.domain.enums import PATIENT_DISCHARGED, THERAPIST_INACTIVE
from caseload_server.domain.requests import Delete, Merge, Transfer, Update
from caseload_server.store import PATIENT, THERAPIST, RelationshipStore

from tests.store.backends.postgres.record_locks import WAITING
from tests.store.backends.postgres.shared_transactions import starting
from tests.store.conftest import Clock
from tests.store.store_calls import CALL, assign, make, run
from tests.support.waiting import eventually, join

Work = Callable[[RelationshipStore], object]
EXPIRED = "UPDATE assignment SET expire_us = start_us"
WRITES: dict[str, Work] = {
    "delete": lambda store: store.delete(PATIENT, Delete("p", force=True), CALL),
    "discharge": lambda store: store.update(PATIENT, Update("p", {"status": PATIENT_DISCHARGED}, end_reason=1), CALL),
    "merge": lambda store: store.merge(Merge("p", "q"), CALL),
    "transfer": lambda store: store.transfer(Transfer("t", "u"), CALL),
    "delete therapist": lambda store: store.delete(THERAPIST, Delete("t", force=True), CALL),
    "inactive": lambda store: store.update(THERAPIST, Update("t", {"status": THERAPIST_INACTIVE}, end_reason=1), CALL),
    "expiry": lambda store: (run(store, EXPIRED), store.end_expired()),
}


@pytest.mark.parametrize("work", WRITES.values(), ids=WRITES.keys())
def test_a_write_that_waited_for_a_record_has_a_later_time(
    store: RelationshipStore, admin: "psycopg.Connection[Any]", clock: Clock, work: Work
) -> None:
    for name in "pq":
        make(store, PATIENT, name)
    for name in "tu":
        make(store, THERAPIST, name)
    assign(store, "t", "p")
    with admin.transaction(force_rollback=True):
        admin.execute("SELECT FROM patient WHERE patient_id = 'p' FOR UPDATE")
        running = starting(lambda: work(store))
        eventually(lambda: admin.execute(WAITING).rowcount > 0)
        clock.advance(10)
    join(running)
    assert run(store, "SELECT DISTINCT committed_us FROM change_set WHERE revision > 5") == [(clock(),)]
    for table in ("therapist", "patient", "assignment"):
        assert {us for (us,) in run(store, f"SELECT to_us FROM {table}_version")} <= {clock()}
