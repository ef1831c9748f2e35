"""A server process that hangs: callers get the truth in bounded time, and later calls work again."""

import os
import signal
from collections.abc import Iterator
from contextlib import closing
from functools import partial
from typing import Any

import psycopg
import pytest
from caseload_server.domain import errors
from caseload_server.store import THERAPIST, RelationshipStore
from caseload_server.store.backends.group_commit import unchanged
from caseload_server.store.backends.postgres import driver_errors, pipeline, reads
from caseload_server.store.backends.postgres.database import PostgresDatabase
from caseload_server.store.backends.postgres.migrate import migrate
from caseload_server.store.backends.protocol import Query, Sharing, Transaction

from tests.store.backends.batches import batch
from tests.store.conftest import Clock
from tests.store.store_calls import head, ids, make
from tests.support.postgres.cluster import QUICK, Cluster
from tests.support.waiting import NEVER_SECONDS, eventually

SHORT_SECONDS = 0.2


class Hanging:
    """A store, and the processes of its server that hang."""

    def __init__(self, url: str, clock: Clock, patch: pytest.MonkeyPatch) -> None:
        self.url = url
        self.database = PostgresDatabase(f"{url}?options=-c%20lock_timeout%3D0")
        self.database._writer.commit_timeout_seconds = NEVER_SECONDS
        self.store = RelationshipStore(self.database, clock)
        self.patch = patch
        self.pids: list[int] = []

    def stop(self, transaction: Transaction) -> None:
        """Stops the server process of a transaction, and lets no later wait for it last."""
        [(pid,)] = transaction.run("SELECT pg_backend_pid()")
        self.patch.setattr(pipeline, "TIMEOUT_SECONDS", SHORT_SECONDS)
        self.database._writer.commit_timeout_seconds = SHORT_SECONDS
        for session in list(reads._SESSIONS.values()):
            session._timeout_seconds = SHORT_SECONDS
        os.kill(pid, signal.SIGSTOP)
        self.pids.append(pid)

    def resume(self) -> None:
        """Lets them run again, and waits until they have ended."""
        self.patch.setattr(pipeline, "TIMEOUT_SECONDS", NEVER_SECONDS)
        self.database._writer.commit_timeout_seconds = NEVER_SECONDS
        pids, self.pids = self.pids, []
        for pid in pids:
            os.kill(pid, signal.SIGCONT)
        with psycopg.connect(self.url, autocommit=True) as other:
            found = "SELECT FROM pg_stat_activity WHERE pid = ANY(%s)"
            eventually(lambda: not other.execute(found, [pids]).fetchall())


@pytest.fixture
def hanging(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hanging]:
    monkeypatch.setattr(pipeline, "TIMEOUT_SECONDS", NEVER_SECONDS)
    with Cluster(QUICK) as cluster:
        url = cluster.create_database("caseload")
        migrate(url)
        one = Hanging(url, clock, monkeypatch)
        with closing(one.database):
            yield one
            one.resume()


@pytest.mark.slow
@pytest.mark.parametrize("holding", ["nothing", "the counter"])
def test_writes_are_unavailable_and_not_done_when_their_server_process_hangs(hanging: Hanging, holding: str) -> None:
    def stop_and_go_on(transaction: Transaction, *_: Any) -> list[Any]:
        hanging.stop(transaction)
        return transaction.run("SELECT 1")

    def stop_early() -> Any:
        return hanging.database.write_with_tail(stop_and_go_on, unchanged, Sharing())

    def stop_late() -> Any:
        return hanging.database.write_with_tail(lambda _: None, stop_and_go_on, Sharing())

    make(hanging.store, THERAPIST, "before")
    make_one = partial(make, hanging.store, THERAPIST)
    stop = stop_early if holding == "nothing" else stop_late
    results = batch(hanging.database, [partial(make_one, "a"), stop, partial(make_one, "b")])
    assert [type(one) for one in results] == [errors.StoreUnavailable] * 3
    hanging.resume()
    assert ids(hanging.store, THERAPIST) == ["before"]
    make_one("a")
    assert head(hanging.store) == 2


@pytest.mark.slow
def test_a_write_alone_is_unavailable_when_its_server_process_hangs(hanging: Hanging) -> None:
    def stop_and_go_on(transaction: Transaction) -> Any:
        hanging.stop(transaction)
        return transaction.run("SELECT 1")

    hanging.patch.setattr(driver_errors, "_RETRY_TIMEOUT_SECONDS", 0.0)
    with pytest.raises(errors.StoreUnavailable):
        hanging.database.write(stop_and_go_on)
    hanging.resume()
    make(hanging.store, THERAPIST, "after")
    assert ids(hanging.store, THERAPIST) == ["after"]


@pytest.mark.slow
def test_a_commit_is_unknown_when_its_server_process_hangs_and_is_done_once(hanging: Hanging) -> None:
    def stop(transaction: Transaction, _: Any) -> list[Any]:
        transaction.run("UPDATE store SET head_revision = head_revision + 1 RETURNING 1")
        hanging.stop(transaction)
        return [None]

    with pytest.raises(errors.OutcomeUnknown):
        hanging.database.write_with_tail(lambda _: None, stop, Sharing())
    with pytest.raises(errors.StoreUnavailable):
        make(hanging.store, THERAPIST, "rejected")
    hanging.resume()
    hanging.store.check()
    assert ids(hanging.store, THERAPIST) == []
    assert head(hanging.store) == 1


@pytest.mark.slow
@pytest.mark.parametrize("way", ["run", "stream"])
def test_a_read_is_unavailable_when_its_server_process_hangs(hanging: Hanging, way: str) -> None:
    make(hanging.store, THERAPIST, "t")
    with hanging.database.snapshot() as transaction:
        hanging.stop(transaction)
        with pytest.raises(errors.StoreUnavailable):
            transaction.run("SELECT 1") if way == "run" else list(transaction.rows(Query("SELECT 1", {})))
    assert ids(hanging.store, THERAPIST) == ["t"]
