"""Several worker processes on one port: started, kept running, and stopped together.

Each is `caseload serve` once more, run by exec as the first process was: gRPC's C core does not survive a fork. That
first process serves nothing and loads no gRPC. It holds the port, and what it wants of a worker is all in `Place`; a
worker says that it answers as any server does, on its standard output, and learns from its standard input, which ends,
that the first process is gone.
"""

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Final, NamedTuple, Self

import structlog

from caseload_server.config import Config, SettingError

if TYPE_CHECKING:
    from caseload_server.observability.metrics import WorkersMetrics

ORPHANED: Final = signal.SIGHUP
"""What a worker gets when the process that started it is gone."""
_PLACE: Final = "_CASELOAD_WORKER"
_FIRST_PAUSE_SECONDS: Final = 0.1
_LONGEST_PAUSE_SECONDS: Final = 10.0
"""Before a worker that ended is started again: twice as long each time,"""
_LIVED_SECONDS: Final = 30.0
"""unless it lived so long."""
_PATIENCE_SECONDS: Final = 10.0
"""How much longer than they were told workers may take to stop."""
_log = structlog.get_logger()


class Place(NamedTuple):
    """What one worker of several is told, beside the settings of all."""

    number: int
    workers: int
    address: str
    """With the real port."""

    @classmethod
    def found(cls) -> Self | None:
        """That of this process, where it is a worker."""
        if not (told := os.environ.pop(_PLACE, None)):
            return None
        number, workers, address = told.split()
        return cls(int(number), int(workers), address)

    def variables(self) -> dict[str, str]:
        """The environment of a worker that is to take it."""
        return {**os.environ, _PLACE: " ".join(map(str, self))}

    def take(self, config: Config) -> Config:
        """Makes this process the worker, and ends it with the process that started it: the settings for it."""
        signal.pthread_sigmask(signal.SIG_BLOCK, {ORPHANED})
        counts = config.metrics_address is not None
        threading.Thread(target=_follow_the_first_process, args=(counts,), name="orphaned", daemon=True).start()
        cores = sorted(os.sched_getaffinity(0))
        if self.workers == len(cores):  # threads that wander between cores fight over the GIL
            os.sched_setaffinity(0, {cores[self.number]})
        return replace(config, address=self.address, workers=self.workers, worker=self.number)


def _follow_the_first_process(counts: bool) -> None:  # noqa: FBT001 - a thread's
    while os.read(0, 1):
        pass
    if counts:
        from caseload_server.observability.metrics import WorkersMetrics

        WorkersMetrics.close()
    os.kill(os.getpid(), ORPHANED)


class Supervisor:
    """The first process: starts the workers, starts those again that end, and stops all."""

    def __init__(self, config: Config, ready: Callable[[str], None]) -> None:
        """Takes the port, and starts nothing yet. Raises SettingError.

        Args: ready, is given the address once all answer.
        """
        self._config = config
        self._ready = ready
        self._held, self._address = _hold(*config.host_and_port())
        self._lock = threading.Lock()
        self._stopping = threading.Event()
        self._threads: list[threading.Thread] = []
        self._processes: dict[int, subprocess.Popen[str]] = {}
        self._answering: dict[int, subprocess.Popen[str]] = {}
        """The last process of each worker that said that it answers."""
        self._fault = 0
        self._metrics: WorkersMetrics | None = None
        self._page: str | None = None

    def run(self, stopping: set[signal.Signals]) -> int:
        """Serves until one of these signals, which are blocked: the exit code. Raises SettingError."""
        with ExitStack() as last:
            last.callback(self._held.close)
            if self._config.metrics_address:
                self._metrics, self._page = last.enter_context(_metrics_page(self._config.metrics_address))
            self._begin(0)  # the others once it answers: what no worker can start with is said by one
            signal.sigwait(stopping)
            clean = self._stop()
        return self._fault or int(not clean)

    def _begin(self, number: int) -> None:
        self._threads.append(threading.Thread(target=self._keep, args=(number,), name=f"worker-{number}"))
        self._threads[-1].start()

    def _keep(self, number: int) -> None:
        """Keeps one worker running until the stop."""
        pause = _FIRST_PAUSE_SECONDS
        while not self._stopping.is_set():
            began = time.monotonic()
            try:
                process = self._start(number)
            except OSError as error:
                process, code = None, 1
                _log.error("a worker cannot be started", worker=number, type=type(error).__qualname__)
            else:
                code = self._see_to_its_end(number, process)
            if len(self._answering) < self._config.workers and not self._stopping.is_set():
                self._give_up(code)
                return
            if time.monotonic() - began > _LIVED_SECONDS:
                pause = _FIRST_PAUSE_SECONDS
            if not self._stopping.wait(pause) and process:
                _log.warning("a worker ended, and is started again", worker=number, pid=process.pid, code=code)
            pause = min(pause * 2, _LONGEST_PAUSE_SECONDS)

    def _see_to_its_end(self, number: int, process: "subprocess.Popen[str] | None") -> int:
        """Its exit code; 0 where there is none, since all are to stop."""
        if not process:
            return 0
        if process.stdout and process.stdout.readline():
            self._answers(number, process)
        code = process.wait()
        if self._metrics:
            self._metrics.remove_worker(number)
        return code

    def _give_up(self, code: int) -> None:
        """Before all have answered: what ended one may be a setting, and then it has said so, and ended with 2."""
        if code < 0:
            _log.error("a worker ended before it answered", code=code)
        self._fault = code if code == 2 else 1
        os.kill(os.getpid(), signal.SIGTERM)

    def _start(self, number: int) -> "subprocess.Popen[str] | None":
        place = Place(number, self._config.workers, self._address)
        with self._lock:
            if self._stopping.is_set():
                return None
            command = [sys.executable, *sys.orig_argv[1:]]
            self._processes[number] = process = subprocess.Popen(  # noqa: S603 - what runs here, once more
                command, env=place.variables(), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
            )
        return process

    def _answers(self, number: int, process: "subprocess.Popen[str]") -> None:
        with self._lock:
            is_new = number not in self._answering
            self._answering[number] = process
            count = len(self._answering)
        if is_new and count == 1:
            for other in range(1, self._config.workers):
                self._begin(other)
        if is_new and count == self._config.workers:
            _log.info("all workers answer", workers=count, address=self._address, metrics_address=self._page)
            self._ready(self._address)

    def _stop(self) -> bool:
        """Whether every worker that answered calls has ended as it should.

        A worker that is still starting has no calls to lose, and may find that it cannot start: the stop is clean.
        """
        with self._lock:
            self._stopping.set()
            running = [process for process in self._processes.values() if process.poll() is None]
        for process in running:
            process.terminate()
        until = time.monotonic() + self._config.drain_seconds + self._config.grace_seconds + _PATIENCE_SECONDS
        for thread in self._threads:
            thread.join(max(0.0, until - time.monotonic()))
        for process in running:
            process.kill()  # does nothing to one that has ended
        for thread in self._threads:
            thread.join()
        return all(process.returncode == 0 for process in self._answering.values() if process in running)


@contextmanager
def _metrics_page(address: str) -> "Iterator[tuple[WorkersMetrics, str]]":
    """What the workers count, on one page, and its address. Raises SettingError."""
    from caseload_server.observability.metrics import WorkersMetrics
    from caseload_server.observability.metrics_page import (
        MetricsPage,  # here, since it is loaded by those who count only
    )

    with closing(WorkersMetrics()) as metrics, closing(MetricsPage(address, metrics.registry)) as page:
        page.start()
        yield metrics, page.address


def _hold(host: str, port: int) -> tuple[socket.socket, str]:
    """Takes the port for this process and its workers alone: what holds it, and the address. Raises SettingError.

    SO_REUSEPORT would let in any program of this user that asks for it too. So the port is first taken as by one that
    shares with nobody, and then kept by a socket that shares, listens to nothing, and stands in the way of all others
    who begin like that. Listeners without SO_REUSEPORT are kept out as well.
    """
    family = socket.AF_INET6 if host.startswith("[") else socket.AF_INET
    alone, held = socket.socket(family), socket.socket(family)
    try:
        with alone:
            alone.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # connections of a server before may linger
            alone.bind((host.strip("[]"), port))
            alone.listen()
            alone.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            held.bind(alone.getsockname())
    except OSError:
        held.close()
        raise SettingError("--address", "cannot be listened on: in use, or not of this machine") from None
    return held, f"{host}:{held.getsockname()[1]}"
