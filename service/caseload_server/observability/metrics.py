"""What is counted, and the page that shows it.

A server of one process keeps its numbers in memory, and serves the page itself. Of several workers each keeps its
numbers in files of one folder (`WorkersMetrics`), and the process that started them serves the page.
https://prometheus.github.io/client_python/multiprocess/

No label has a value that a caller chose: methods are the registered ones, codes and reasons those of the contract.
"""

import os
import resource
import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final, Literal

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, disable_created_metrics, values
from prometheus_client.multiprocess import MultiProcessCollector, mark_process_dead

from caseload_server.domain.errors import DomainError
from caseload_server.observability.logs import LEVELS
from caseload_server.store.backends.protocol import StoreMetrics

Count = Callable[[str, str | None, float], None]
"""Counts a call that has ended, by its code, the reason where it was refused with one, and the seconds that it took."""

_FOLDER: Final = "PROMETHEUS_MULTIPROC_DIR"
_SAMPLE_SECONDS: Final = 1.0
_SECONDS: Final = (*(0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5), *(1, 2.5, 5, 10))
_WRITES: Final = (1, 2, 4, 8, 16, 32, 64, 128)

_GAUGES: Final[dict[str, tuple[str, Literal["livesum", "livemax", "livemin"]]]] = {
    "ready": ("1 where the store answers", "livemin"),
    "watches": ("Watches open", "livesum"),
    "watches_limit": ("Watches that may be open", "livesum"),
    "database_bytes": ("Size of the SQLite file", "livemax"),
    "wal_bytes": ("Size of SQLite's write-ahead log beside it", "livemax"),
    "pool_connections": ("Connections to PostgreSQL that calls hold", "livesum"),
    "pool_connections_limit": ("Connections to PostgreSQL that calls may hold", "livesum"),
    "pool_waiting": ("Calls that wait for a connection to PostgreSQL", "livesum"),
    "workers": ("Processes that serve", "livesum"),
    "start_time_seconds": ("When the youngest of them began, in seconds since 1970", "livemax"),
    "resident_memory_bytes": ("Memory that they hold", "livesum"),
    "build_info": ("1, of the version that its labels name", "livemax"),
    "in_flight": ("Calls that run", "livesum"),
    "waiting": ("Calls that wait for a thread", "livesum"),
}
"""What is looked at once a second: of each what it is, and what becomes of several workers' values."""

disable_created_metrics()  # type: ignore[no-untyped-call]  # two series for each, and none of them with several workers


class Metrics:
    """The numbers of one process."""

    def __init__(self, worker: int | None) -> None:
        """Args: worker, its number, where the process that started it has made a `WorkersMetrics`; only one a process.

        A worker's files go by that number: one that is started again counts on where the one before it ended.
        """
        shared: Any = values.MultiProcessValue
        values.ValueClass = values.MutexValue if worker is None else shared(lambda: worker)
        self.registry: Final = CollectorRegistry()
        self._calls = self._counter("calls", "Calls that have ended", "method", "code")
        self._refusals = self._counter("refusals", "Calls refused, by the reason of the contract", "reason")
        self._log_events = self._counter("log_events", "Events logged, but for the access log", "level")
        # From the start, since the first of a kind shows as a rise only where there was a zero before.
        for kind in DomainError.__subclasses__():
            self._refusals.labels(kind.reason)
        for level in LEVELS:
            self._log_events.labels(level)
        self._call_seconds = self._histogram(
            "call_seconds", "Time that the work of a call took, but for streams", "method"
        )
        waited = self._histogram("store_seconds", "Time that callers of the store waited for it", "operation")
        self._commit_writes = self._histogram("commit_writes", "Writes that shared a commit", buckets=_WRITES)
        self._commit_seconds = self._histogram("commit_seconds", "Time that a commit took")
        self.store: Final = StoreMetrics(waited.labels("read").observe, waited.labels("write").observe, self._committed)
        self._samplers: list[tuple[Gauge, Callable[[], float]]] = []
        self._gauges: dict[str, Gauge] = {}
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._sample_loop, name="metrics", daemon=True)
        self._add_process_gauges()

    def counter_for(self, method: str, *, is_stream: bool) -> Count:
        """What counts the calls of one method; a stream lasts as long as its caller likes, so its time says nothing."""
        observe = None if is_stream else self._call_seconds.labels(method).observe
        counted = {"OK": self._calls.labels(method, "OK").inc}

        def count(code: str, reason: str | None, seconds: float) -> None:
            inc = counted.get(code)
            if inc is None:
                inc = counted[code] = self._calls.labels(method, code).inc
            inc()
            if observe:
                observe(seconds)
            if reason:
                self._refusals.labels(reason).inc()

        return count

    def logged(self, level: str) -> None:
        """Counts an event of the log."""
        self._log_events.labels(level).inc()

    def add_gauge(self, name: str, sample: Callable[[], float], **labels: str) -> None:
        """Looks at a number of `_GAUGES` once a second, in a thread of its own; before `start`."""
        if name not in self._gauges:
            text, mode = _GAUGES[name]
            self._gauges[name] = Gauge(
                f"caseload_{name}", text, list(labels), registry=self.registry, multiprocess_mode=mode
            )
        gauge = self._gauges[name]
        self._samplers.append((gauge.labels(**labels) if labels else gauge, sample))

    def start(self) -> None:
        """Begins to look."""
        self._sample()
        self._thread.start()

    def stop(self) -> None:
        """Looks no more."""
        self._stopped.set()
        if self._thread.is_alive():
            self._thread.join(_SAMPLE_SECONDS)

    def _add_process_gauges(self) -> None:
        began = time.time()
        self.add_gauge("workers", lambda: 1)
        self.add_gauge("start_time_seconds", lambda: began)
        self.add_gauge("resident_memory_bytes", _resident_bytes)
        self.add_gauge("build_info", lambda: 1, version=version("caseload-server"))

    def _committed(self, writes: int, seconds: float) -> None:
        self._commit_writes.observe(writes)
        self._commit_seconds.observe(seconds)

    def _histogram(self, name: str, text: str, *labels: str, buckets: Sequence[float] = _SECONDS) -> Histogram:
        return Histogram(f"caseload_{name}", text, labels, registry=self.registry, buckets=buckets)

    def _counter(self, name: str, text: str, *labels: str) -> Counter:
        return Counter(f"caseload_{name}", text, labels, registry=self.registry)

    def _sample_loop(self) -> None:
        while not self._stopped.wait(_SAMPLE_SECONDS):
            self._sample()

    def _sample(self) -> None:
        for gauge, sample in self._samplers:
            with suppress(Exception):  # this thread must outlive whatever it looks at
                gauge.set(sample())


def _resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


class WorkersMetrics:
    """The numbers of several workers, for the process that starts them.

    Make one before the first worker is started, which finds its folder in the environment, and is told its number
    (`Config.worker`). Serve its `registry` with a `Page`. `forget` each worker that has ended, before it is started
    again. `close` it when all have.
    """

    def __init__(self) -> None:
        """Makes the folder: in memory, where there is one, since a full disk would end a worker that writes to it."""
        memory = "/dev/shm"  # noqa: S108 - the folder in it has a new name, and nobody else may look into it
        self._folder = tempfile.mkdtemp(prefix="caseload-", dir=memory if os.access(memory, os.W_OK) else None)
        os.environ[_FOLDER] = self._folder
        self.registry: Final = CollectorRegistry()
        MultiProcessCollector(self.registry, self._folder)  # type: ignore[no-untyped-call]

    def forget(self, worker: int) -> None:
        """Drops what a worker that has ended looked at; what it counted stays."""
        mark_process_dead(worker, self._folder)  # type: ignore[no-untyped-call]

    @staticmethod
    def close() -> None:
        """Removes the folder; of a worker too, where the process that has made it is gone."""
        shutil.rmtree(os.environ.pop(_FOLDER), ignore_errors=True)
