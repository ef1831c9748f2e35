"""Group commit: writes that wait at the same time share one transaction and one commit."""

import threading
import time
from collections.abc import Callable, Iterable
from typing import Any, Final, Generic

from caseload_server.domain import errors
from caseload_server.store.backends.protocol import S, Sharing, T, Tail, Transaction

_MAX_CONFLICTS: Final = 3
"""How often a write finds a row locked by another transaction before it leads a batch that waits for the lock."""


class Job(Generic[S, T]):
    """A write in the queue of a group commit."""

    def __init__(self, work: Callable[[Transaction], S], tail: Tail[S, T], sharing: Sharing) -> None:
        """Args: those of Database.write_with_tail."""
        self.work = work
        self.tail = tail
        self.sharing = sharing
        self.outcome: S
        """The value that `work` returned."""
        self.result: T
        """The value that `tail` returned for it."""
        self.error: BaseException | None = None
        """The error that `work` raised, or the reason why the commit failed."""
        self.done = False
        """Whether `result` or `error` is final."""
        self.runs_alone = False
        """Whether its caller must run it in a transaction of its own."""
        self.commit_unconfirmed = False
        """Whether an earlier run may have committed."""
        self.batch: Batch | None = None
        """The batch that its caller leads."""
        self.conflicts = 0
        """How often it found a row locked by another transaction."""
        self._wakeup = threading.Lock()
        self._wakeup.acquire()

    def run(self, transaction: Transaction) -> None:
        """Runs the work and sets `outcome`. Clears the error of an earlier run."""
        self.error = None
        self.outcome = self.work(transaction)

    @property
    def must_wait_for_lock(self) -> bool:
        """Whether it found locks so often that it must now wait for one, as the first job of a batch."""
        return self.conflicts >= _MAX_CONFLICTS

    @property
    def left_queue(self) -> bool:
        """Whether no batch will run it again."""
        return self.done or self.runs_alone

    def fail(self, error: BaseException) -> None:
        """Ends the job with an error."""
        self.error = error
        self.done = True

    def fail_commit(self, failure: BaseException) -> None:
        """Ends the job with the failure of its commit. So a refusal fails too: it may rest on a write of the batch.

        A job that was refused wrote nothing, so its outcome is not unknown.
        """
        is_refused = self.error is not None
        self.fail(errors.StoreUnavailable() if is_refused and isinstance(failure, errors.OutcomeUnknown) else failure)

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
    """Returns the outcomes unchanged. It is the tail of a write that needs none."""
    return outcomes


def run_tails(transaction: Transaction, jobs: Iterable[Job[Any, Any]]) -> list[Job[Any, Any]]:
    """Runs the tails of all jobs without an error, and sets their `result`. Returns these jobs."""
    succeeded = [job for job in jobs if job.error is None]
    for tail in dict.fromkeys(job.tail for job in succeeded):
        sharing = [job for job in succeeded if job.tail == tail]
        for job, result in zip(sharing, tail(transaction, [job.outcome for job in sharing]), strict=True):
            job.result = result
    return succeeded


class Batch:
    """Jobs that share a transaction."""

    def __init__(self, leader: Job[Any, Any], group_commit: "GroupCommit", *, waits_for_lock: bool) -> None:
        """Args: leader, the first job; waits_for_lock, whether the leader waits for locks up to lock_timeout."""
        self.jobs = [leader]
        self.waits_for_lock = waits_for_lock
        self.records: set[str] = set()
        """The records that the jobs lock, as in Sharing.records."""
        self._group_commit = group_commit

    @property
    def leader(self) -> Job[Any, Any]:
        """The job whose caller runs the batch."""
        return self.jobs[0]

    @property
    def is_full(self) -> bool:
        """Whether `take_more` can add no job."""
        return len(self.jobs) >= self._group_commit.max_batch

    def take_more(self, *, sharing: bool = False) -> list[Job[Any, Any]]:
        """Moves as many jobs as fit from the queue to this batch. Returns them.

        Args: sharing, whether to take only jobs that lock a record which this batch also locks.
        """
        return self._group_commit.take(self, sharing=sharing)


class GroupCommit:
    """Runs queued writes in shared transactions, each led by one of the calling threads. There is no writer thread.

    A caller becomes a leader when there are fewer leaders than allowed. It commits the writes of all callers in the
    queue, and wakes them. Then it makes the first caller that has arrived meanwhile a leader. Two transactions of this
    process never write the same record at once, because one would wait for the locks of the other.
    """

    def __init__(self, commit: Callable[[Batch], None], max_batch: int, max_leaders: int = 1) -> None:
        """Args: commit, runs the jobs of a batch in one transaction, and sets `done` or `runs_alone` of each, or counts
        a conflict of a job that another batch will run; max_batch, the most jobs in a batch; max_leaders, the most
        batches at once, apart from those that wait for a lock.
        """
        self._commit = commit
        self.max_batch: Final = max_batch
        """Largest number of jobs in a batch."""
        self._max_leaders = max_leaders
        self._lock = threading.Lock()
        self._queue: list[Job[Any, Any]] = []
        self._keys: set[tuple[str, str] | None] = set()
        """The keys of all jobs in batches."""
        self._records: set[str] = set()
        """The records that batches lock."""
        self._leaders = 0
        self._batches = 0
        """Those of the leaders, and those that wait for a lock."""
        self._closed = False

    def run(self, job: Job[Any, Any]) -> None:
        """Runs a job in shared transactions until it is done or must run alone. Raises ShuttingDown after `close`."""
        with self._lock:
            if self._closed:
                raise errors.ShuttingDown
            self._queue.append(job)
            leader = self._appoint()
        if leader is not None:
            leader.wake()
        while not job.left_queue:
            job.wait()
            if job.batch is not None:
                self._lead(job.batch)

    def _appoint(self) -> Job[Any, Any] | None:
        """Makes the first job that may run a leader, if another leader is allowed. The caller must hold the lock."""
        if self._leaders >= self._max_leaders:
            return None
        for number, job in enumerate(self._queue):
            if self._may_run(job, set()):
                del self._queue[number]
                self._leaders += 1
                self._begin(job)
                return job
        return None

    def _begin(self, leader: Job[Any, Any], *, waits_for_lock: bool = False) -> None:
        self._batches += 1
        leader.batch = Batch(leader, self, waits_for_lock=waits_for_lock)
        self._reserve(leader.batch, leader)

    def _may_run(self, job: Job[Any, Any], own_records: set[str]) -> bool:
        """Returns whether no other batch has the job's key or one of its records."""
        key, records, _ = job.sharing
        return (key is None or key not in self._keys) and (records - own_records).isdisjoint(self._records)

    def _reserve(self, batch: Batch, job: Job[Any, Any]) -> None:
        self._keys.add(job.sharing.key)
        self._records |= job.sharing.records
        batch.records |= job.sharing.records

    def take(self, batch: Batch, *, sharing: bool) -> list[Job[Any, Any]]:
        """Implements Batch.take_more."""
        taken: list[Job[Any, Any]] = []
        with self._lock:
            queue, self._queue = self._queue, []
            for job in queue:
                wanted = not sharing or not job.sharing.records.isdisjoint(batch.records)
                if wanted and not batch.is_full and self._may_run(job, batch.records):
                    self._reserve(batch, job)
                    batch.jobs.append(job)
                    taken.append(job)
                else:
                    self._queue.append(job)
        return taken

    def _lead(self, batch: Batch) -> None:
        if not batch.waits_for_lock:
            batch.take_more()
        try:
            self._commit(batch)
        except BaseException as error:  # noqa: BLE001 - a job that never ends would block its caller for ever
            for job in batch.jobs:
                job.fail(error)
        self._end(batch)

    def _end(self, batch: Batch) -> None:
        batch.leader.batch = None
        with self._lock:
            self._batches -= 1
            if not batch.waits_for_lock:
                self._leaders -= 1
            self._keys.difference_update(job.sharing.key for job in batch.jobs)
            self._records -= batch.records
            awake = self._return(batch.jobs)
            if next_leader := self._appoint():
                awake.append(next_leader)
        for job in awake:
            job.wake()

    def _return(self, jobs: list[Job[Any, Any]]) -> list[Job[Any, Any]]:
        """Queues the jobs that another batch will run. Returns the others. The caller must hold the lock."""
        queued = [job for job in jobs if not (job.left_queue or job.must_wait_for_lock)]
        self._queue[:0] = [job for job in queued if not job.conflicts]
        self._queue += [job for job in queued if job.conflicts]
        for job in jobs:
            if job.must_wait_for_lock and not job.left_queue:
                self._begin(job, waits_for_lock=True)
        return [job for job in jobs if job not in queued]

    def close(self) -> None:
        """Rejects new writes, and waits for those in progress."""
        with self._lock:
            self._closed = True
        while self._is_writing():
            time.sleep(0.001)

    def _is_writing(self) -> bool:
        with self._lock:
            return self._batches > 0
