"""Servers as processes of their own, each kept on one core."""

import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from subprocess import DEVNULL, PIPE
from types import TracebackType
from typing import Final, Self

CORES: Final = sorted(os.sched_getaffinity(0))
SERVER_CORE, LOAD_CORE = CORES[0], CORES[-1]
TOOLS: Final = Path(__file__).parents[1] / ".tools" / "bench" / "bin" / "python"
"""Of the environment that has FastAPI, and what draws the plot."""
_HERE: Final = Path(__file__).parent
_ADDRESS: Final = re.compile(r"127\.0\.0\.1:\d+")
_FREE_PORTS: Final = ("--address", "127.0.0.1:0", "--metrics-address", "127.0.0.1:0")
"""Nothing is counted where nobody can ask for it."""
_TICKS_A_SECOND = os.sysconf("SC_CLK_TCK")
_USER_TICKS, _SYSTEM_TICKS, _GROUP = 11, 12, 2  # in /proc/PID/stat, counted from behind the command's name


class NotStarted(Exception):
    """A server ended before it served."""


class Server:
    """A server that says its address when it answers; it ends with the with block, and so does all that it started."""

    def __init__(self, cores: int | str, *arguments: str, given: bytes = b"", python: str = sys.executable) -> None:
        """Args: cores, those it runs on; arguments, to Python; given, what it reads from its standard input."""
        self._command = ["taskset", "--cpu-list", str(cores), python, *arguments]
        self._given = given
        self.says_on_stderr = False

    def __enter__(self) -> Self:
        # Settings of whoever runs the benchmark are not what it measures.
        environment = {name: value for name, value in os.environ.items() if not name.startswith("CASELOAD_")}
        outputs = (DEVNULL, PIPE) if self.says_on_stderr else (PIPE, DEVNULL)
        self._process = subprocess.Popen(
            self._command, env=environment, stdin=PIPE, stdout=outputs[0], stderr=outputs[1], start_new_session=True
        )
        said = self._process.stderr or self._process.stdout
        if not (self._process.stdin and said):
            raise NotStarted
        self._process.stdin.write(self._given)
        self._process.stdin.close()
        address = next(filter(None, (_ADDRESS.search(line.decode()) for line in said)), None)
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
        os.killpg(self._process.pid, signal.SIGKILL)  # it is the first of its group, and not waited for yet
        self._process.wait()
        for said in (self._process.stdout, self._process.stderr):
            if said:
                said.close()

    @property
    def pid(self) -> int:
        """Of its first process."""
        return self._process.pid

    def cpu_seconds(self) -> float:
        """What it has used so far with its workers, user and system."""
        ticks = 0
        for stat in Path("/proc").glob("[0-9]*/stat"):
            try:
                fields = stat.read_text().rpartition(") ")[2].split()
            except OSError:  # ended meanwhile
                continue
            if int(fields[_GROUP]) == self._process.pid:
                ticks += int(fields[_USER_TICKS]) + int(fields[_SYSTEM_TICKS])
        return ticks / _TICKS_A_SECOND


def caseload(cores: int | str, database: Path, *options: str) -> Server:
    """Our server, with every default but the addresses, the database and the options."""
    return caseload_at(cores, f"sqlite:///{database}", *options)


def caseload_at(cores: int | str, url: str, *options: str) -> Server:
    """Our server on an existing database."""
    return Server(cores, "-m", "caseload_server", "serve", *_FREE_PORTS, "--database", url, *options)


def changed(core: int, database: Path, *changes: str) -> Server:
    """Our server with something of it otherwise: see ablation_server.py."""
    arguments = ("serve", *_FREE_PORTS, "--database", f"sqlite:///{database}")
    return Server(core, str(_HERE / "ablation_server.py"), *changes, *arguments)


def bare(core: int, threads: int, answer: bytes) -> Server:
    """The no-op servicer; answer, its one message in bytes."""
    return Server(core, str(_HERE / "bare_server.py"), str(threads), given=answer)


def fastapi_baseline(core: int, *options: str) -> Server:
    """The REST server; options, of uvicorn."""
    arguments = ("-m", "uvicorn", "--app-dir", str(_HERE), "fastapi_baseline:app", "--port", "0", *options)
    server = Server(core, *arguments, python=str(TOOLS))
    server.says_on_stderr = True
    return server
