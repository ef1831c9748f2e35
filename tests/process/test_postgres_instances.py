"""Two instances on one PostgreSQL whose writes commit in another order than they begin."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import psycopg

from tests.support.api_driver import ApiDriver, number
from tests.support.servers import ServerProcess
from tests.support.waiting import eventually, join
from tests.support.watch_reader import WatchReader

LATE = ("late-1", "late-2", "late-3")
WAITING = """
CREATE FUNCTION wait() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN PERFORM pg_advisory_xact_lock(hashtext(NEW.patient_id)); RETURN NULL; END $$;
CREATE CONSTRAINT TRIGGER wait AFTER INSERT ON patient {} FOR EACH ROW
    WHEN (NEW.patient_id LIKE 'late-%') EXECUTE FUNCTION wait()"""
WAITERS = "SELECT count(*) FROM pg_locks WHERE NOT granted"


@contextmanager
def instances(url: str) -> Iterator[tuple[ApiDriver, ApiDriver]]:
    with (
        ServerProcess(url) as one,
        ServerProcess(url) as other,
        ApiDriver(one.address) as here,
        ApiDriver(other.address) as there,
    ):
        yield here, there


class Holder:
    """Blocks the late writers until each is released."""

    def __init__(self, url: str, when: str) -> None:
        """Args: when, the timing of the trigger: at the insert or at the commit."""
        self._connection = psycopg.connect(url, autocommit=True)
        self._connection.execute(WAITING.format(when).encode())
        for one in LATE:
            self._connection.execute("SELECT pg_advisory_lock(hashtext(%s))", [one])

    def wait_for(self, count: int) -> None:
        """Waits until count writers wait for a lock."""
        eventually(lambda: self._connection.execute(WAITERS).fetchone() == (count,))

    def release(self, one: str) -> None:
        self._connection.execute("SELECT pg_advisory_unlock(hashtext(%s))", [one])

    def close(self) -> None:
        self._connection.close()


def writing(api: ApiDriver, patient_id: str) -> threading.Thread:
    thread = threading.Thread(target=api.patients, args=(patient_id,))
    thread.start()
    return thread


def test_no_watch_misses_a_write_that_commits_late(postgres_url: str) -> None:
    holder = Holder(postgres_url, "")
    with instances(postgres_url) as (here, there), WatchReader(here) as first, WatchReader(there) as second:
        first.wait_for(1)
        second.wait_for(1)
        start = here.head()
        late = [writing(api, one) for api, one in zip((here, there, here), LATE, strict=True)]
        holder.wait_for(3)  # each has inserted its row and is about to commit
        for n, one in enumerate(("late-3", "late-1", "late-2")):
            here.patients(f"a-{n}")
            there.patients(f"b-{n}")
            for follower in (first, second):
                follower.wait_through(there.head())  # the watch has everything up to the writes still in flight
            holder.release(one)
            join(late[LATE.index(one)])
        for follower in (first, second):
            follower.wait_through(here.head())
        log = list(here.log(start))
    holder.close()
    order = ["a-0", "b-0", "late-3", "a-1", "b-1", "late-1", "a-2", "b-2", "late-2"]
    assert [one.changes[0].patient_id for one in log] == order
    assert [number(one.revision) for one in log] == list(range(number(start) + 1, number(start) + 10))
    assert first.sets == second.sets == log


def test_no_revision_is_visible_before_a_lower_one_still_committing(postgres_url: str) -> None:
    holder = Holder(postgres_url, "DEFERRABLE INITIALLY DEFERRED")
    with instances(postgres_url) as (here, there), WatchReader(here) as first, WatchReader(there) as second:
        first.wait_for(1)
        second.wait_for(1)
        start = here.head()
        writers = [writing(here, "late-1")]
        holder.wait_for(1)  # it has its revision and commits
        writers += [writing(here, "a"), writing(there, "b")]
        holder.wait_for(2)  # b waits for the next revision in the database, and a in its own instance
        assert here.head() == there.head() == start
        holder.release("late-1")
        join(*writers)
        for follower in (first, second):
            follower.wait_through(here.head())
        log = list(there.log(start))
    holder.close()
    assert log[0].changes[0].patient_id == "late-1"
    assert len(log) == 3
    assert first.sets == second.sets == log
