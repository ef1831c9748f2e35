"""Group commit: writes that wait at the same time share one transaction and one commit."""

import threading
import time
from collections.abc import Callable, Iterable
from typing import Any, Final, Generic

from caseload_server.domain import errors
from caseload_server.store.backends.protocol import Key, S, T, Tail, Transaction

_MAX_CONFLICTS: Final = 3
"""How often a write meets a lock of another transaction in a batch before it runs alone."""


class Job(Generic[S, T]):
    """A write in the queue of a group commit."""

    def __init__(self, work: Callable[[Transaction], S], tail: Tail[S, T], key: Key = None) -> None:
        """Args: as Database.write_with_tail."""
        self.work = work
        self.tail = tail
        self.key = key
        self.outcome: S
        """What the work returned."""
        self.result: T
        """What the tail made of it."""
        self.error: BaseException | None = None
        """What the work raised, or why its commit failed."""
        self.done = False
        """Whether `result` or `error` is final."""
        self.runs_alone = False
        """Whether its caller must run it in a transaction of its own."""
        self.commit_unconfirmed = False
        """Whether an earlier run may have committed."""
        self.leads = False
        """Whether its caller leads the next batch."""
        self.conflicts = 0
        """How often it met a lock of another transaction."""
        self._wakeup = threading.Lock()
        self._wakeup.acquire()

    def run(self, transaction: Transaction) -> None:
        """Runs the work, which sets `outcome`, and clears what an earlier run left."""
        self.error = None
        self.outcome = self.work(transaction)

    def conflict(self) -> None:
        """Sends the job back to the queue, because it met a lock of another transaction, or to run alone."""
        self.conflicts += 1
        self.runs_alone = self.conflicts >= _MAX_CONFLICTS

    def fail(self, error: BaseException) -> None:
        """Ends the job with an error."""
        self.error = error
        self.done = True

    def answer(self) -> T:
        """Returns the result of a job that is done, or raises its error."""
        if self.error is not None:
            raise self.error
        return self.result

    def wait(self) -> None:
        """Waits until `wake`."""
        self._wakeup.acquire()

    def wake(self) -> None:
        """Lets the job's caller continue."""
        self._wakeup.release()


def unchanged(_: Transaction, outcomes: list[T]) -> list[T]:
    """Returns what each work returned. It is the tail of a write that needs none."""
    return outcomes


def run_tails(transaction: Transaction, jobs: Iterable[Job[Any, Any]]) -> list[Job[Any, Any]]:
    """Runs the tail of all jobs that were not refused, which sets their `result`. Returns these jobs."""
    succeeded = [job for job in jobs if job.error is None]
    for tail in dict.fromkeys(job.tail for job in succeeded):
        sharing = [job for job in succeeded if job.tail == tail]
        for job, result in zip(sharing, tail(transaction, [job.outcome for job in sharing]), strict=True):
            job.result = result
    return succeeded


class GroupCommit:
    """Runs queued writes in shared transactions, each led by one of the calling threads. There is no writer thread.

    A caller that finds less than the allowed number of leaders becomes one: it commits for all callers in the queue.
    Then it wakes them, and makes the first caller that arrived meanwhile a leader.
    """

    def __init__(self, commit: Callable[[list[Job[Any, Any]]], None], max_batch: int, max_leaders: int = 1) -> None:
        """Args: commit, runs jobs in one transaction, sets `done` or `runs_alone` of each, or leaves it for the next
        batch; max_batch, jobs in one; max_leaders, batches at once.
        """
        self._commit = commit
        self._max_batch = max_batch
        self._max_leaders = max_leaders
        self._lock = threading.Lock()
        self._queue: list[Job[Any, Any]] = []
        self._keys: set[Key] = set()
        """The keys of the jobs in a batch."""
        self._leaders = 0
        self._closed = False

    def run(self, job: Job[Any, Any]) -> None:
        """Runs a job in shared transactions until it is done or must run alone. Raises ShuttingDown after `close`."""
        with self._lock:
            if self._closed:
                raise errors.ShuttingDown
            self._queue.append(job)
            leader = self._appoint()
        if leader is not None and leader is not job:
            leader.wake()
        if leader is job:
            self._lead(job)
        while not (job.done or job.runs_alone):
            job.wait()
            if job.leads:
                self._lead(job)

    def _appoint(self) -> Job[Any, Any] | None:
        """Makes the first job that may run now a leader, if there may be another. Call it with the lock."""
        if self._leaders < self._max_leaders:
            for leader in self._take(1):
                leader.leads = True
                self._leaders += 1
                return leader
        return None

    def _take(self, count: int) -> list[Job[Any, Any]]:
        """Takes jobs out of the queue whose keys are not in a batch, in order. Call it with the lock."""
        taken: list[Job[Any, Any]] = []
        left: list[Job[Any, Any]] = []
        for job in self._queue:
            if len(taken) == count or job.key in self._keys:
                left.append(job)
                continue
            taken.append(job)
            if job.key is not None:
                self._keys.add(job.key)
        self._queue = left
        return taken

    def _lead(self, leader: Job[Any, Any]) -> None:
        with self._lock:
            batch = [leader, *self._take(self._max_batch - 1)]
        try:
            self._commit(batch)
        except BaseException as error:  # noqa: BLE001 - a job without an end would block its caller for ever
            for job in batch:
                job.fail(error)
        self._end(leader, batch)

    def _end(self, leader: Job[Any, Any], batch: list[Job[Any, Any]]) -> None:
        leader.leads = False
        with self._lock:
            self._leaders -= 1
            self._keys.difference_update(job.key for job in batch)
            returned = [job for job in batch if not (job.done or job.runs_alone)]
            self._queue[:0] = [job for job in returned if not job.conflicts]
            self._queue += [job for job in returned if job.conflicts]
            next_leader = self._appoint()
        for job in batch:
            if (job.done or job.runs_alone) and job is not leader:
                job.wake()
        if next_leader is not None:
            next_leader.wake()

    def close(self) -> None:
        """Rejects new writes, and waits for those in progress."""
        with self._lock:
            self._closed = True
        while self._is_writing():
            time.sleep(0.001)

    def _is_writing(self) -> bool:
        with self._lock:
            return self._leaders > 0
