"""Runs several worker processes on one port: starts them, restarts them when they end, and stops them together.

Each worker is `caseload serve` again, started by exec with the command line of the first process: gRPC's C core does
not survive a fork. The first process, the supervisor, serves no calls and loads no gRPC. It reserves the port. A worker
gets its number, the number of workers and the address from an environment variable (`WorkerSpec`). Like any server, it
prints a line on its standard output when it is ready. Its standard input ends when the supervisor has died.
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
from caseload_server.listening import cannot_listen

if TYPE_CHECKING:
    from caseload_server.observability.metrics import WorkersMetrics

PARENT_DIED: Final = threading.Event()
"""Set in a worker when its supervisor has died. The worker then gets SIGTERM."""
_SPEC_VARIABLE: Final = "_CASELOAD_WORKER"
_MIN_RESTART_DELAY_SECONDS: Final = 0.1
"""Delay before a worker's first restart. It doubles with each restart."""
_MAX_RESTART_DELAY_SECONDS: Final = 10.0
_STABLE_SECONDS: Final = 30.0
"""A worker that ran for longer is restarted after the shortest delay again."""
_STOP_MARGIN_SECONDS: Final = 10.0
"""How long workers may take to stop beyond the drain and grace periods. Then they are killed."""
_log = structlog.get_logger()


class WorkerSpec(NamedTuple):
    """The settings of one worker, in addition to the settings that all workers share."""

    number: int
    """From 0."""
    workers: int
    address: str
    """HOST:PORT with the real port."""

    @classmethod
    def from_environment(cls) -> Self | None:
        """Returns the spec of this process and removes it from the environment. Returns None if it is no worker."""
        if not (spec := os.environ.pop(_SPEC_VARIABLE, None)):
            return None
        number, workers, address = spec.split()
        return cls(int(number), int(workers), address)

    def environment(self) -> dict[str, str]:
        """Returns the environment variables for the worker."""
        return {**os.environ, _SPEC_VARIABLE: " ".join(map(str, self))}

    def apply(self, config: Config) -> Config:
        """Makes this process the worker, which stops when the supervisor dies. Returns its settings."""
        has_metrics = config.metrics_address is not None
        threading.Thread(target=_watch_parent, args=(has_metrics,), name="parent-watch", daemon=True).start()
        cores = sorted(os.sched_getaffinity(0))
        if self.workers == len(cores):  # threads that move between cores contend for the GIL
            os.sched_setaffinity(0, {cores[self.number]})
        return replace(config, address=self.address, workers=self.workers, worker=self.number)


def _watch_parent(has_metrics: bool) -> None:  # noqa: FBT001 - the target of a thread
    """Waits until standard input ends, and then stops this process."""
    while os.read(0, 1):
        pass
    if has_metrics:
        from caseload_server.observability.metrics import WorkersMetrics

        WorkersMetrics.close()
    PARENT_DIED.set()
    os.kill(os.getpid(), signal.SIGTERM)


class Supervisor:
    """The first process: starts the workers, restarts those that end, and stops all of them."""

    def __init__(self, config: Config, report_ready: Callable[[str], None]) -> None:
        """Reserves the port, and starts no worker yet. Raises SettingError.

        Args: report_ready, is called with the address when all workers are ready.
        """
        self._config = config
        self._report_ready = report_ready
        self._reserved_port, self._address = _reserve_port(*config.host_and_port())
        self._lock = threading.Lock()
        self._stopping = threading.Event()
        self._threads: list[threading.Thread] = []
        self._processes: dict[int, subprocess.Popen[str]] = {}
        self._ready: dict[int, subprocess.Popen[str]] = {}
        """The last process of each worker that has become ready."""
        self._startup_exit_code = 0
        self._metrics: WorkersMetrics | None = None
        self._metrics_address: str | None = None

    def run(self, wait_for_stop: Callable[[Callable[[], object]], object]) -> int:
        """Serves until `wait_for_stop` returns. Returns the exit code. Raises SettingError.

        Args: wait_for_stop, takes the function that reloads the workers.
        """
        with ExitStack() as resources:
            resources.callback(self._reserved_port.close)
            if self._config.metrics_address:
                self._metrics, self._metrics_address = resources.enter_context(
                    _metrics_page(self._config.metrics_address)
                )
            self._spawn(0)  # the others start when it is ready, so that only one worker reports a bad setting
            wait_for_stop(self._reload_workers)
            clean = self._stop()
        return self._startup_exit_code or int(not clean)

    def _spawn(self, number: int) -> None:
        """Starts a thread that runs the worker."""
        self._threads.append(threading.Thread(target=self._supervise, args=(number,), name=f"worker-{number}"))
        self._threads[-1].start()

    def _supervise(self, number: int) -> None:
        """Keeps one worker running until the stop."""
        delay = _MIN_RESTART_DELAY_SECONDS
        while not self._stopping.is_set():
            start_time = time.monotonic()
            try:
                process = self._start_process(number)
            except OSError as error:
                process, code = None, 1
                _log.error("worker start failed", worker=number, type=type(error).__qualname__)
            else:
                code = self._wait_for_exit(number, process)
            if len(self._ready) < self._config.workers and not self._stopping.is_set():
                self._abort_startup(code)
                return
            if time.monotonic() - start_time > _STABLE_SECONDS:
                delay = _MIN_RESTART_DELAY_SECONDS
            if not self._stopping.wait(delay) and process:
                _log.warning("worker ended, restarting", worker=number, pid=process.pid, code=code)
            delay = min(delay * 2, _MAX_RESTART_DELAY_SECONDS)

    def _wait_for_exit(self, number: int, process: "subprocess.Popen[str] | None") -> int:
        """Returns the exit code of the process, or 0 when there is no process because of the stop."""
        if not process:
            return 0
        if process.stdout and process.stdout.readline():
            self._mark_ready(number, process)
        code = process.wait()
        if self._metrics:
            self._metrics.remove_worker(number)
        return code

    def _abort_startup(self, code: int) -> None:
        """Stops all workers, because one ended before all were ready.

        A worker with a bad setting has reported it, and ended with exit code 2.
        """
        if code < 0:
            _log.error("worker failed during startup", code=code)
        self._startup_exit_code = code if code == 2 else 1
        os.kill(os.getpid(), signal.SIGTERM)

    def _start_process(self, number: int) -> "subprocess.Popen[str] | None":
        """Starts the process of a worker. Returns None when the supervisor is stopping. Raises OSError."""
        spec = WorkerSpec(number, self._config.workers, self._address)
        with self._lock:
            if self._stopping.is_set():
                return None
            command = [sys.executable, *sys.orig_argv[1:]]
            self._processes[number] = process = subprocess.Popen(  # noqa: S603 - the command line of this process
                command, env=spec.environment(), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
            )
        return process

    def _mark_ready(self, number: int, process: "subprocess.Popen[str]") -> None:
        """Records that a worker is ready. Spawns the other workers after the first, and reports when all are ready."""
        with self._lock:
            is_new = number not in self._ready
            self._ready[number] = process
            count = len(self._ready)
        if is_new and count == 1:
            for other in range(1, self._config.workers):
                self._spawn(other)
        if is_new and count == self._config.workers:
            address, metrics_address = self._address, self._metrics_address
            _log.info("all workers are ready", workers=count, address=address, metrics_address=metrics_address)
            self._report_ready(address)

    def _reload_workers(self) -> None:
        """Passes SIGHUP on. A worker that is just starting inherits this process's signal mask, so it survives it."""
        with self._lock:
            for process in self._processes.values():
                process.send_signal(signal.SIGHUP)  # does nothing to a process that has ended

    def _stop(self) -> bool:
        """Stops all workers. Returns whether every worker that was ready has ended with exit code 0.

        The exit code of a worker that was still starting is ignored. It has no calls to lose, and may find that it
        cannot start.
        """
        with self._lock:
            self._stopping.set()
            running = [process for process in self._processes.values() if process.poll() is None]
        for process in running:
            process.terminate()
        deadline = time.monotonic() + self._config.drain_seconds + self._config.grace_seconds + _STOP_MARGIN_SECONDS
        for thread in self._threads:
            thread.join(max(0.0, deadline - time.monotonic()))
        for process in running:
            process.kill()  # does nothing to a process that has ended
        for thread in self._threads:
            thread.join()
        return all(process.returncode == 0 for process in self._ready.values() if process in running)


@contextmanager
def _metrics_page(address: str) -> "Iterator[tuple[WorkersMetrics, str]]":
    """Serves the workers' metrics in a with block. Yields them, and the address of the page. Raises SettingError."""
    from caseload_server.observability.metrics import WorkersMetrics  # loaded only by servers with metrics
    from caseload_server.observability.metrics_page import MetricsPage

    with closing(WorkersMetrics()) as metrics, closing(MetricsPage(address, metrics.registry)) as page:
        page.start()
        yield metrics, page.address


def _reserve_port(host: str, port: int) -> tuple[socket.socket, str]:
    """Reserves the port for this process and its workers. Raises SettingError.

    With SO_REUSEPORT alone, any other program of this user that sets it could listen on the port too. So this function
    first binds the port without SO_REUSEPORT, which proves that it is free. It then keeps a bound socket with
    SO_REUSEPORT that never listens. That socket makes the same exclusive bind fail in other supervisors, and keeps out
    programs without SO_REUSEPORT. https://man7.org/linux/man-pages/man7/socket.7.html

    Returns: the bound socket, and the address with the real port.
    """
    family = socket.AF_INET6 if host.startswith("[") else socket.AF_INET
    exclusive, reserved = socket.socket(family), socket.socket(family)
    try:
        with exclusive:
            exclusive.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # connections may be in TIME_WAIT
            exclusive.bind((host.strip("[]"), port))
            exclusive.listen()
            exclusive.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            reserved.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            reserved.bind(exclusive.getsockname())
    except OSError as error:
        reserved.close()
        raise SettingError("--address", cannot_listen(error)) from None
    return reserved, f"{host}:{reserved.getsockname()[1]}"
