"""Group commit: writes that wait at the same time share one transaction and one fsync."""

import threading
import time
from collections.abc import Callable
from typing import Any, Generic

from caseload_server.domain import errors
from caseload_server.store.backends.protocol import T, Transaction


class Job(Generic[T]):
    """A write in the queue of a group commit."""

    __slots__ = ("done", "error", "result", "wakeup", "work")

    def __init__(self, work: Callable[[Transaction], T]) -> None:
        """Args: work, runs in the shared transaction."""
        self.work = work
        self.result: T
        self.error: BaseException | None = None
        self.done = False
        self.wakeup = threading.Lock()
        self.wakeup.acquire()


class GroupCommit:
    """Runs queued writes in shared commits, led by one of the calling threads. There is no writer thread.

    A caller that finds no commit in progress becomes the leader: it commits for all callers in the queue. Then it
    wakes them, and makes the first caller that arrived meanwhile the next leader.
    """

    def __init__(self, commit: Callable[[list[Job[Any]]], None], max_batch: int) -> None:
        """Args: commit, runs jobs in one transaction and sets `result` or `error` of each; max_batch, jobs in one."""
        self._commit = commit
        self._max_batch = max_batch
        self._lock = threading.Lock()
        self._queue: list[Job[Any]] = []
        self._writing = False
        self._closed = False

    def write(self, work: Callable[[Transaction], T]) -> T:
        """Runs work in a shared transaction and returns its result once that is durable.

        Raises ShuttingDown after `close`, and whatever the work or the commit raised.
        """
        job = Job(work)
        with self._lock:
            if self._closed:
                raise errors.ShuttingDown
            self._queue.append(job)
            leads, self._writing = not self._writing, True
        if not leads:
            job.wakeup.acquire()  # until the job is done, or its thread is the next leader
        if not job.done:
            self._lead(job)
        if job.error is not None:
            raise job.error
        return job.result

    def _lead(self, leader: Job[Any]) -> None:
        with self._lock:
            batch, self._queue = self._queue[: self._max_batch], self._queue[self._max_batch :]
        try:
            self._commit(batch)
        finally:
            with self._lock:
                next_leader = self._queue[0] if self._queue else None
                self._writing = next_leader is not None
            for job in batch:
                job.done = True
                if job is not leader:
                    job.wakeup.release()
            if next_leader is not None:
                next_leader.wakeup.release()

    def close(self) -> None:
        """Rejects new writes, and waits for those in progress."""
        with self._lock:
            self._closed = True
            writing = self._writing
        while writing:
            time.sleep(0.001)
            with self._lock:
                writing = self._writing
