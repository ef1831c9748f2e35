"""Servers as separate processes, each pinned to one core."""

import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from subprocess import DEVNULL, PIPE
from types import TracebackType
from typing import Final, Self
from urllib.parse import urlsplit

CORES: Final = sorted(os.sched_getaffinity(0))
SERVER_CORE, LOAD_CORE = CORES[0], CORES[-1]
TOOLS: Final = Path(__file__).parents[1] / ".tools" / "bench" / "bin" / "python"
"""The Python of the environment with FastAPI and matplotlib."""
_HERE: Final = Path(__file__).parent
_ADDRESS: Final = re.compile(r"127\.0\.0\.1:\d+")
_FREE_PORTS: Final = ("--address", "127.0.0.1:0", "--metrics-address", "127.0.0.1:0")
"""With a metrics address, because a server without one collects no metrics."""
_TICKS_A_SECOND = os.sysconf("SC_CLK_TCK")
_USER_TICKS, _SYSTEM_TICKS, _GROUP = 11, 12, 2  # in /proc/PID/stat, counted after the command's name


class NotStarted(Exception):
    """A server ended before it was ready."""


class Server:
    """A server that prints its address when ready. The end of the with block kills its process group."""

    def __init__(self, cores: int | str, *arguments: str, stdin: bytes = b"", python: str = sys.executable) -> None:
        """Args: cores, for taskset; arguments, of Python; stdin, the bytes on its standard input."""
        self._command = ["taskset", "--cpu-list", str(cores), python, *arguments]
        self._stdin = stdin
        self.address_on_stderr = False

    def __enter__(self) -> Self:
        # The benchmark ignores settings of the user's environment.
        environment = {name: value for name, value in os.environ.items() if not name.startswith("CASELOAD_")}
        outputs = (DEVNULL, PIPE) if self.address_on_stderr else (PIPE, DEVNULL)
        self._process = subprocess.Popen(
            self._command, env=environment, stdin=PIPE, stdout=outputs[0], stderr=outputs[1], start_new_session=True
        )
        output = self._process.stderr or self._process.stdout
        if not (self._process.stdin and output):
            raise NotStarted
        self._process.stdin.write(self._stdin)
        self._process.stdin.close()
        address = next(filter(None, (_ADDRESS.search(line.decode()) for line in output)), None)
        if address is None:
            self._end()
            raise NotStarted(f"{' '.join(self._command)} does not serve")
        self.address = address[0]
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end()

    def _end(self) -> None:
        os.killpg(self._process.pid, signal.SIGKILL)  # it leads its process group and is not reaped yet
        self._process.wait()
        for output in (self._process.stdout, self._process.stderr):
            if output:
                output.close()

    @property
    def pid(self) -> int:
        """The id of its first process."""
        return self._process.pid

    def cpu_seconds(self) -> float:
        """User and system CPU seconds so far, including workers."""
        ticks = 0
        for stat in Path("/proc").glob("[0-9]*/stat"):
            try:
                fields = stat.read_text().rpartition(") ")[2].split()
            except OSError:  # the process has ended
                continue
            if int(fields[_GROUP]) == self._process.pid:
                ticks += int(fields[_USER_TICKS]) + int(fields[_SYSTEM_TICKS])
        return ticks / _TICKS_A_SECOND


def caseload(cores: int | str, database: Path, *options: str) -> Server:
    """A Caseload server on SQLite, with defaults except the addresses, the database and the options."""
    return caseload_at(cores, f"sqlite:///{database}", *options)


def caseload_at(cores: int | str, url: str, *options: str) -> Server:
    """A Caseload server on an existing database."""
    return Server(cores, "-m", "caseload_server", "serve", *_FREE_PORTS, "--database", url, *options)


def ablation(core: int, database: Path, *changes: str) -> Server:
    """A Caseload server on SQLite with a feature changed: see ablation_server.py."""
    return ablation_at(core, f"sqlite:///{database}", *changes)


def ablation_at(core: int, url: str, *changes: str) -> Server:
    """A Caseload server on an existing database with a feature changed: see ablation_server.py."""
    arguments = ("serve", *_FREE_PORTS, "--database", url)
    return Server(core, str(_HERE / "ablation_server.py"), *changes, *arguments)


def slow_network(core: int, url: str, round_trip_ms: float) -> Server:
    """A proxy of the server in a URL that adds a round trip: see slow_network.py."""
    return Server(core, str(_HERE / "slow_network.py"), urlsplit(url).netloc.rpartition("@")[2], str(round_trip_ms))


def noop(core: int, threads: int, answer: bytes) -> Server:
    """The no-op server. Args: answer, its serialized response."""
    return Server(core, str(_HERE / "bare_server.py"), str(threads), stdin=answer)


def fastapi_baseline(core: int, *options: str) -> Server:
    """The REST server. Args: options, of uvicorn."""
    arguments = ("-m", "uvicorn", "--app-dir", str(_HERE), "fastapi_baseline:app", "--port", "0", *options)
    server = Server(core, *arguments, python=str(TOOLS))
    server.address_on_stderr = True
    return server
