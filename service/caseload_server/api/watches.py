"""The open watches of one process: their places, what wakes them, and how slow ones are cut."""

import math
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final, TypeVar

import grpc
import structlog

from caseload_server.domain import errors, limits
from caseload_server.store import RelationshipStore

M = TypeVar("M")
_log = structlog.get_logger()

_CLOSE_SECONDS: Final = 2.0


class Watch:
    """One open watch, in the thread of its call."""

    def __init__(self, watches: "Watches", context: grpc.ServicerContext) -> None:
        self._watches = watches
        self.context = context
        self.sent_at = -math.inf  # so that the first message comes at once
        self.sending_since: float | None = None

    def sending(self, message: M) -> Iterator[M]:
        """The message, for the call to send. Raises WatchTooSlow once it took too long."""
        self._watches.check_open()
        began = self.sending_since = time.monotonic()
        yield message
        self.sending_since, self.sent_at = None, time.monotonic()
        if self.sent_at - began > limits.SLOW_READER_SECONDS:
            raise errors.WatchTooSlow

    def is_silent(self) -> bool:
        """Whether a heartbeat is due."""
        return time.monotonic() - self.sent_at >= limits.HEARTBEAT_SECONDS

    def wait_beyond(self, revision: int) -> bool:
        """Waits for a newer revision or the next heartbeat; False when the caller is gone. Raises ShuttingDown."""
        due = self.sent_at + limits.HEARTBEAT_SECONDS
        return self._watches.wait(lambda: not self.context.is_active(), revision, due)


class Watches:
    """Hands out a fixed number of places, and wakes the watches in them when the store moves on.

    One thread asks the store for its newest revision; the watches wait for what it finds, so that a hundred idle ones
    cost no more than one.
    """

    def __init__(self, store: RelationshipStore, places: int) -> None:
        """Args: store, which is followed while there are watches."""
        self._store = store
        self._places = places
        self._moved = threading.Condition()
        self._head = 0
        self._closed = False
        self._failing = False
        self._open: set[Watch] = set()
        self._thread = threading.Thread(target=self._follow, name="watches", daemon=True)
        self._thread.start()

    def count(self) -> int:
        """How many are open."""
        return len(self._open)

    @contextmanager
    def open(self, context: grpc.ServicerContext) -> Iterator[Watch]:
        """A place, for the length of a with block. Raises TooManyWatches, ShuttingDown."""
        watch = Watch(self, context)
        with self._moved:
            if self._closed:
                raise errors.ShuttingDown
            if len(self._open) >= self._places:
                raise errors.TooManyWatches(limit=self._places)
            self._open.add(watch)
            self._moved.notify_all()
        context.add_callback(self._wake)
        try:
            yield watch
        finally:
            with self._moved:
                self._open.discard(watch)
                self._moved.notify_all()

    def check_open(self) -> None:
        """Raises ShuttingDown: a watch that is far behind never waits."""
        if self._closed:
            raise errors.ShuttingDown

    def wait(self, is_gone: Callable[[], bool], revision: int, until: float) -> bool:
        """Waits for a revision beyond this one, or for a time.monotonic(); False when the caller is gone.

        Raises ShuttingDown.
        """
        with self._moved:
            while self._head <= revision and not self._closed and not is_gone():
                left = until - time.monotonic()
                if left <= 0:
                    break
                self._moved.wait(left)
            if self._closed:
                raise errors.ShuttingDown
        return not is_gone()

    def close(self) -> None:
        """Ends every watch, so that its caller resumes elsewhere; one whose reader is stuck is not waited for long."""
        with self._moved:
            self._closed = True
            self._moved.notify_all()
            self._moved.wait_for(lambda: not self._open, _CLOSE_SECONDS)
            stuck = list(self._open)
        for watch in stuck:
            watch.context.cancel()
        self._thread.join(_CLOSE_SECONDS)  # one that a hung database holds ends with the process

    def _wake(self) -> None:
        with self._moved:
            self._moved.notify_all()

    def _follow(self) -> None:
        while True:
            with self._moved:
                while not self._open and not self._closed:
                    self._moved.wait()
                if self._closed:
                    return
            head = self._newest()
            with self._moved:
                if head != self._head:
                    self._head = head
                    self._moved.notify_all()
            self._cut_stuck()
            self._store.wait_for_commit()

    def _newest(self) -> int:
        try:
            head = self._store.head()
        except Exception as error:  # noqa: BLE001 - this thread must outlive whatever the database has
            if not self._failing:  # once, and not with every poll
                _log.warning("the newest revision is not known", type=type(error).__qualname__)
            self._failing = True
            return self._head
        self._failing = False
        return head

    def _cut_stuck(self) -> None:
        now = time.monotonic()
        with self._moved:
            stuck = [one for one in self._open if now - (one.sending_since or now) > limits.STUCK_READER_SECONDS]
        for watch in stuck:
            watch.context.cancel()
