"""Prometheus metrics.

A server with one process keeps its metrics in memory and serves the metrics page itself. With several workers, each
keeps its metrics in files of a shared folder (`WorkersMetrics`), and the supervisor serves the page.
https://prometheus.github.io/client_python/multiprocess/

Callers choose no label value: methods are the registered ones, and codes and reasons are those of the contract.
"""

import fcntl
import os
import resource
import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final, Literal

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, disable_created_metrics, values
from prometheus_client.multiprocess import MultiProcessCollector, mark_process_dead

from caseload_server.domain import errors
from caseload_server.domain.errors import DomainError
from caseload_server.observability.logs import LEVELS
from caseload_server.store.backends.protocol import DEFECT, StoreMetrics

CallCounter = Callable[[str, DomainError | None, float], None]
"""Counts an ended call, by its code, its error (None when it has none) and its duration in seconds."""

_FOLDER_VARIABLE: Final = "PROMETHEUS_MULTIPROC_DIR"
_FOLDER_PREFIX: Final = "caseload-metrics-"
_NEW_SECONDS: Final = 60
_SAMPLE_INTERVAL_SECONDS: Final = 1.0
_LATENCY_BUCKETS_SECONDS: Final = (
    *(0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5),
    *(1, 2.5, 5, 10),
)
_BATCH_SIZE_BUCKETS: Final = (1, 2, 4, 8, 16, 32, 64, 128)

_GAUGES: Final[dict[str, tuple[str, Literal["livesum", "livemax", "livemin"]]]] = {
    "ready": ("Whether the server is ready for calls (1) or not (0)", "livemin"),
    "keys_file_ok": ("Whether the whole keys file is in use, without a fault (1), or not (0)", "livemin"),
    "issuer_keys_age_seconds": ("Time since the identity provider last gave its keys, in seconds", "livemax"),
    "expiry_lag_seconds": ("Time since the oldest expire_time of an assignment that has not ended", "livemax"),
    "connections": ("Open connections of clients", "livesum"),
    "connections_limit": ("Maximum number of connections of clients", "livesum"),
    "connections_waiting": ("Connections that are not accepted yet", "livesum"),
    "open_files": ("Open files", "livemax"),
    "open_files_limit": ("Limit on open files of one process", "livemin"),
    "watches": ("Open watches", "livesum"),
    "watches_limit": ("Maximum number of open watches", "livesum"),
    "database_bytes": ("Size of the SQLite file in bytes", "livemax"),
    "wal_bytes": ("Size of SQLite's write-ahead log in bytes", "livemax"),
    "database_free_bytes": ("Free space of the file system of the SQLite file in bytes", "livemin"),
    "pool_connections": ("PostgreSQL connections that calls are using", "livesum"),
    "pool_connections_limit": ("Maximum number of PostgreSQL connections for calls", "livesum"),
    "pool_waiting": ("Calls waiting for a PostgreSQL connection", "livesum"),
    "postgres_oldest_transaction_seconds": ("Age of the oldest transaction in the PostgreSQL database", "livemax"),
    "postgres_lock_waits": ("PostgreSQL sessions of the database that wait for a lock", "livemax"),
    "postgres_commits_waiting": ("Commits in the PostgreSQL database that wait for a standby", "livemax"),
    "postgres_standbys": ("Standbys that are connected to PostgreSQL", "livemax"),
    "postgres_replication_lag_bytes": ("Bytes of the write-ahead log that the slowest standby lacks", "livemax"),
    "certificate_expiry_time_seconds": ("Time when the certificate expires, in seconds since 1970", "livemin"),
    "workers": ("Running server processes", "livesum"),
    "start_time_seconds": ("Start time of the youngest server process, in seconds since 1970", "livemax"),
    "resident_memory_bytes": ("Resident memory of all server processes in bytes", "livesum"),
    "build_info": ("Always 1; the label is the server's version", "livemax"),
    "in_flight": ("Calls being executed", "livesum"),
    "queue_depth": ("Calls queued for a thread", "livesum"),
}
"""Gauges that are sampled: the help text, and how the values of several workers are combined."""
_FAILURE_CAUSES: Final = (
    *errors.StoreBusy.texts,
    *(kind.cause for kind in (errors.StoreUnavailable, errors.StoreFull, errors.OutcomeUnknown)),
    DEFECT,
)

disable_created_metrics()  # type: ignore[no-untyped-call]  # two series per metric, and missing with several workers


class Metrics:
    """The metrics of one process. A process has at most one instance."""

    def __init__(self, worker: int | None) -> None:
        """Args: worker, the number of this worker when a supervisor has created a `WorkersMetrics`, else None.

        A worker's files are named by its number, so a restarted worker continues the counts of the previous one.
        """
        multiprocess_value: Any = values.MultiProcessValue
        values.ValueClass = values.MutexValue if worker is None else multiprocess_value(lambda: worker)
        self.registry: Final = CollectorRegistry()
        self._calls = self._counter("calls", "Ended calls by method and status code", "method", "code")
        self._call_errors = self._counter("call_errors", "Failed calls by error reason", "reason")
        self._log_events = self._counter("log_events", "Logged events by level, without the access log", "level")
        self._lost_lines = self._counter("access_log_lost_lines", "Lines of the access log that could not be written")
        self._lost_events = self._counter("log_lost_events", "Logged events that could not be written")
        self._unauthenticated = self._counter("unauthenticated", "Unauthenticated calls by cause", "cause")
        # Every series starts at zero, because an increase shows only after a first sample of zero.
        for error_class in errors.DomainError.__subclasses__():
            self._call_errors.labels(error_class.reason)
        for cause in errors.Unauthenticated.causes:
            self._unauthenticated.labels(cause)
        for level in LEVELS:
            self._log_events.labels(level)
        self._call_seconds = self._histogram("call_seconds", "Duration of calls, except streams, in seconds", "method")
        store_seconds = self._histogram("store_seconds", "Duration of store operations in seconds", "operation")
        self._commit_writes = self._histogram("commit_writes", "Writes per commit", buckets=_BATCH_SIZE_BUCKETS)
        self._commit_seconds = self._histogram("commit_seconds", "Duration of commits in seconds")
        store_failures = self._counter("store_failures", "Failures of the database by cause", "cause")
        for cause in _FAILURE_CAUSES:
            store_failures.labels(cause)
        self.store: Final = StoreMetrics(
            read=store_seconds.labels("read").observe,
            write=store_seconds.labels("write").observe,
            commit=self._record_commit,
            failure=lambda cause: store_failures.labels(cause).inc(),
        )
        self._samplers: list[tuple[Gauge, Callable[[], float]]] = []
        self._gauges: dict[str, Gauge] = {}
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._sample_loop, name="metrics", daemon=True)
        self._add_process_gauges()

    def counter_for(self, method: str, *, is_stream: bool) -> CallCounter:
        """Returns the counter for the calls of one method.

        The duration of a stream is not recorded, because the caller decides how long it lasts.
        """
        observe = None if is_stream else self._call_seconds.labels(method).observe
        increments = {"OK": self._calls.labels(method, "OK").inc}

        def count(code: str, error: DomainError | None, seconds: float) -> None:
            increment = increments.get(code)
            if increment is None:
                increment = increments[code] = self._calls.labels(method, code).inc
            increment()
            if observe:
                observe(seconds)
            if error:
                self._call_errors.labels(error.reason).inc()
            if isinstance(error, errors.Unauthenticated):
                self._unauthenticated.labels(error.cause).inc()

        return count

    def count_lost_line(self) -> None:
        """Counts a line of the access log that could not be written."""
        self._lost_lines.inc()

    def count_log_event(self, level: str) -> None:
        """Counts a logged event."""
        self._log_events.labels(level).inc()

    def count_lost_event(self) -> None:
        """Counts an event that could not be written."""
        self._lost_events.inc()

    def add_gauge(self, name: str, sample: Callable[[], float], **labels: str) -> None:
        """Adds a gauge of `_GAUGES` that a thread samples once a second. Call it before `start`."""
        if name not in self._gauges:
            text, mode = _GAUGES[name]
            self._gauges[name] = Gauge(
                f"caseload_{name}", text, list(labels), registry=self.registry, multiprocess_mode=mode
            )
        gauge = self._gauges[name]
        self._samplers.append((gauge.labels(**labels) if labels else gauge, sample))

    def start(self) -> None:
        """Starts to sample the gauges."""
        self._sample()
        self._thread.start()

    def stop(self) -> None:
        """Stops sampling."""
        self._stopped.set()
        if self._thread.is_alive():
            self._thread.join(_SAMPLE_INTERVAL_SECONDS)

    def _add_process_gauges(self) -> None:
        start_time = time.time()
        self.add_gauge("workers", lambda: 1)
        self.add_gauge("start_time_seconds", lambda: start_time)
        self.add_gauge("resident_memory_bytes", _resident_bytes)
        self.add_gauge("build_info", lambda: 1, version=version("caseload-server"))

    def _record_commit(self, writes: int, seconds: float) -> None:
        self._commit_writes.observe(writes)
        self._commit_seconds.observe(seconds)

    def _histogram(
        self, name: str, text: str, *labels: str, buckets: Sequence[float] = _LATENCY_BUCKETS_SECONDS
    ) -> Histogram:
        return Histogram(f"caseload_{name}", text, labels, registry=self.registry, buckets=buckets)

    def _counter(self, name: str, text: str, *labels: str) -> Counter:
        return Counter(f"caseload_{name}", text, labels, registry=self.registry)

    def _sample_loop(self) -> None:
        while not self._stopped.wait(_SAMPLE_INTERVAL_SECONDS):
            self._sample()

    def _sample(self) -> None:
        for gauge, sample in self._samplers:
            with suppress(Exception):  # the thread must survive any failure of a sample
                gauge.set(sample())


def _resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def _remove_abandoned(parent: Path) -> None:
    """Removes the folders of supervisors that were killed together with their workers.

    A supervisor locks its folder. One that was changed in the last minute may be about to be locked.
    """
    for folder in parent.glob(f"{_FOLDER_PREFIX}*"):
        with suppress(OSError), _opened(folder) as descriptor:  # another user's, or a running supervisor's
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if time.time() - os.fstat(descriptor).st_mtime > _NEW_SECONDS:
                shutil.rmtree(folder)


@contextmanager
def _opened(folder: Path) -> Iterator[int]:
    """Yields a descriptor of a folder. Raises OSError."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


class WorkersMetrics:
    """The combined metrics of several workers, for the supervisor.

    Create it before the first worker starts: workers find its folder in the environment, and their number in
    `Config.worker`. Serve its `registry` with a `MetricsPage`. Call `remove_worker` when a worker has ended, before it
    is restarted. Call `close` after all workers have ended.
    """

    def __init__(self) -> None:
        """Creates the folder, in memory if possible: a full disk would kill a worker that writes to it."""
        memory = "/dev/shm"  # noqa: S108 - the folder has a unique name, and other users have no access to it
        parent = memory if os.access(memory, os.W_OK) else tempfile.gettempdir()
        _remove_abandoned(Path(parent))
        self._folder = tempfile.mkdtemp(prefix=_FOLDER_PREFIX, dir=parent)
        fcntl.flock(os.open(self._folder, os.O_RDONLY), fcntl.LOCK_EX)  # until this process ends
        os.environ[_FOLDER_VARIABLE] = self._folder
        self.registry: Final = CollectorRegistry()
        MultiProcessCollector(self.registry, self._folder)  # type: ignore[no-untyped-call]

    def remove_worker(self, worker: int) -> None:
        """Removes the gauges of an ended worker. Its counters stay."""
        mark_process_dead(worker, self._folder)  # type: ignore[no-untyped-call]

    @staticmethod
    def close() -> None:
        """Removes the folder. A worker calls it too, when its supervisor has died."""
        shutil.rmtree(os.environ.pop(_FOLDER_VARIABLE), ignore_errors=True)
