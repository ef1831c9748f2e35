"""The open watches of one process: a limited number of slots, and the thread that wakes them."""

import math
import random
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final, TypeVar

import grpc
import structlog

from caseload_server.domain import errors, limits
from caseload_server.security.principal import check_authorization, current_principal
from caseload_server.store import RelationshipStore

M = TypeVar("M")
_log = structlog.get_logger()

_CLOSE_TIMEOUT_SECONDS: Final = 2.0
"""How long a stop waits for watches to end by themselves, and then for the polling thread."""
_AUTHORIZATION_CHECK_SECONDS: Final = 0.5
"""How often the polling thread authorizes open watches again, so that a quiet one ends long before its heartbeat."""
_AGE_SPREAD: Final = (0.8, 1.0)
"""The age of a watch at its end, as a part of the largest age."""


class Watch:
    """One open watch. Only the thread of its call uses it."""

    def __init__(self, watches: "Watches", context: grpc.ServicerContext) -> None:
        self._watches = watches
        self.context = context
        self.principal = current_principal.get().name
        self._check_authorization = check_authorization.get()
        self._rejection: errors.DomainError | None = None
        self._ends_at = watches.next_end()  # by time.monotonic()
        self.sent_at = -math.inf  # by time.monotonic(); so the first message is sent at once

    def send(self, message: M) -> Iterator[M]:
        """Yields the message for the call to send. Raises ShuttingDown, and WatchTooSlow when sending took too long."""
        self._check_open()
        started_at = time.monotonic()
        yield message
        self.sent_at = time.monotonic()
        if self.sent_at - started_at > limits.SLOW_READER_SECONDS:
            raise errors.WatchTooSlow

    def is_rejected(self) -> bool:
        """Returns whether the caller may no longer read the watch, which then ends. The polling thread calls it too."""
        try:
            self._check_authorization()
        except errors.DomainError as error:
            self._rejection = error
        except Exception:  # noqa: BLE001 - the polling thread must survive, and the watch must not
            self._rejection = errors.Unauthenticated("check_failed")
        return self._rejection is not None

    def has_ended(self) -> bool:
        """Returns whether the caller has disconnected, or may no longer read the watch."""
        return self._rejection is not None or not self.context.is_active()

    def heartbeat_due(self) -> bool:
        """Returns whether the last message was sent HEARTBEAT_SECONDS ago or longer."""
        return time.monotonic() - self.sent_at >= limits.HEARTBEAT_SECONDS

    def wait_for_newer(self, revision: int) -> bool:
        """Waits for a newer revision or until a heartbeat is due. Returns False when the caller has disconnected.

        Raises ShuttingDown, and the error of check_authorization.
        """
        until = min(self.sent_at + limits.HEARTBEAT_SECONDS, self._ends_at)
        is_active = self._watches.wait(self.has_ended, revision, until)
        self._check_open()
        return is_active

    def _check_open(self) -> None:
        """Raises ShuttingDown after a stop, and at the largest age. A watch that is far behind the head never waits."""
        self._watches.check_open()
        if self._rejection:
            raise self._rejection
        if time.monotonic() >= self._ends_at:
            raise errors.ShuttingDown(errors.ShuttingDown.aged)


class Watches:
    """Holds the open watches in a fixed number of slots, and wakes them when the store has a new revision.

    One thread polls the store for the head revision, and the watches wait for that thread. A hundred idle watches
    therefore cost no more than one.
    """

    def __init__(self, store: RelationshipStore, slots: int, share: float = 1, max_age_seconds: float = 0) -> None:
        """Starts the polling thread.

        Args: store, is polled while a watch is open; slots, the limit of open watches; share, the largest part of them
        that one principal may have, up to 1; max_age_seconds, after which a watch ends so that its caller can move to
        another instance, 0 for no limit.
        """
        self._store = store
        self._slots = slots
        self._slots_of_principal = math.ceil(slots * share)
        self._max_age_seconds = max_age_seconds or math.inf
        self._changed = threading.Condition()
        self._head = 0
        self._closed = False
        self._head_unavailable = False
        self._next_check = 0.0  # by time.monotonic()
        self._open: set[Watch] = set()
        self._thread = threading.Thread(target=self._poll_head, name="watches", daemon=True)
        self._thread.start()

    def next_end(self) -> float:
        """Returns when a watch that begins now must end, by time.monotonic(). Spread, so that not all end together."""
        return time.monotonic() + self._max_age_seconds * random.uniform(*_AGE_SPREAD)  # noqa: S311 - see above

    def count(self) -> int:
        """Returns the number of open watches."""
        return len(self._open)

    @contextmanager
    def open(self, context: grpc.ServicerContext) -> Iterator[Watch]:
        """Takes a slot for the length of a with block. Raises TooManyWatches, ShuttingDown."""
        watch = Watch(self, context)
        with self._changed:
            if self._closed:
                raise errors.ShuttingDown
            self._check_slots(watch.principal)
            self._open.add(watch)
            self._changed.notify_all()
        context.add_callback(self._wake_all)
        try:
            yield watch
        finally:
            with self._changed:
                self._open.discard(watch)
                self._changed.notify_all()

    def _check_slots(self, principal: str) -> None:
        """Raises TooManyWatches."""
        if len(self._open) >= self._slots:
            raise errors.TooManyWatches(limit=self._slots)
        if sum(watch.principal == principal for watch in self._open) >= self._slots_of_principal:
            raise errors.TooManyWatches(limit=self._slots_of_principal)

    def check_open(self) -> None:
        """Raises ShuttingDown after close()."""
        if self._closed:
            raise errors.ShuttingDown

    def wait(self, has_ended: Callable[[], bool], revision: int, until: float) -> bool:
        """Waits for a newer revision. Returns False when the watch has ended.

        Args: until, the time.monotonic() at which to stop waiting. Raises ShuttingDown.
        """
        with self._changed:
            while self._head <= revision and not self._closed and not has_ended():
                seconds_left = until - time.monotonic()
                if seconds_left <= 0:
                    break
                self._changed.wait(seconds_left)
            if self._closed:
                raise errors.ShuttingDown
        return not has_ended()

    def close(self) -> None:
        """Ends every watch, so that its caller resumes elsewhere. Cancels those that do not end in time."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
            self._changed.wait_for(lambda: not self._open, _CLOSE_TIMEOUT_SECONDS)
            stuck = list(self._open)
        for watch in stuck:
            watch.context.cancel()
        self._store.stop_waiting()
        self._thread.join(_CLOSE_TIMEOUT_SECONDS)  # when a hung database holds the thread, it ends with the process

    def _wake_all(self) -> None:
        with self._changed:
            self._changed.notify_all()

    def _poll_head(self) -> None:
        while True:
            with self._changed:
                while not self._open and not self._closed:
                    self._changed.wait()
                if self._closed:
                    return
            head = self._read_head()
            with self._changed:
                if head != self._head:
                    self._head = head
                    self._changed.notify_all()
            self._end_rejected()
            self._store.wait_for_commit()

    def _end_rejected(self) -> None:
        """Wakes the watches whose callers may no longer read them."""
        if time.monotonic() < self._next_check:
            return
        self._next_check = time.monotonic() + _AUTHORIZATION_CHECK_SECONDS
        with self._changed:
            watches = list(self._open)
        rejected = [watch for watch in watches if watch.is_rejected()]
        if rejected:
            self._wake_all()

    def _read_head(self) -> int:
        try:
            head = self._store.head_revision()
        except Exception as error:  # noqa: BLE001 - the thread must survive every error of the database
            if not self._head_unavailable:  # logged once, and not at every poll
                _log.warning("head revision unavailable", type=type(error).__qualname__)
            self._head_unavailable = True
            return self._head
        self._head_unavailable = False
        return head
