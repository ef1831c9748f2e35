"""Servers as processes of their own, each kept on one core."""

import os
import subprocess
import sys
from pathlib import Path
from types import TracebackType
from typing import Self

BARE = Path(__file__).with_name("bare_server.py")
_TICKS_A_SECOND = os.sysconf("SC_CLK_TCK")
_USER_TICKS, _SYSTEM_TICKS = 11, 12  # in /proc/PID/stat, counted from behind the command's name


class NotStarted(Exception):
    """A server ended before it served; its last words."""


class Server:
    """A server that prints one line ending in its address when it answers; it ends with the with block."""

    def __init__(self, core: int, *arguments: str, given: bytes = b"") -> None:
        """Args: core, the one it runs on; arguments, to Python; given, what it reads from its standard input."""
        self._command = ["taskset", "--cpu-list", str(core), sys.executable, *arguments]
        self._given = given

    def __enter__(self) -> Self:
        # Settings of whoever runs the benchmark are not what it measures.
        environment = {name: value for name, value in os.environ.items() if not name.startswith("CASELOAD_")}
        self._process = subprocess.Popen(
            self._command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
        )
        if not (self._process.stdin and self._process.stdout):
            raise NotStarted
        self._process.stdin.write(self._given)
        self._process.stdin.close()
        line = self._process.stdout.readline().decode()
        if " serving on " not in line:
            self._end()
            raise NotStarted(f"{' '.join(self._command)} does not serve")
        self.address = line.split()[-1]
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end()

    def _end(self) -> None:
        self._process.kill()
        self._process.wait()
        if self._process.stdout:
            self._process.stdout.close()

    def cpu_seconds(self) -> float:
        """What it has used so far, user and system."""
        fields = Path(f"/proc/{self._process.pid}/stat").read_text().rpartition(") ")[2].split()
        return (int(fields[_USER_TICKS]) + int(fields[_SYSTEM_TICKS])) / _TICKS_A_SECOND


def caseload(core: int, database: Path) -> Server:
    """Our server, with every default but the address and the database."""
    return caseload_at(core, f"sqlite:///{database}")


def caseload_at(core: int, url: str) -> Server:
    """Our server on an existing database."""
    return Server(core, "-m", "service", "serve", "--address", "127.0.0.1:0", "--database", url)


def bare(core: int, threads: int, answer: bytes) -> Server:
    """The no-op servicer; answer, its one message in bytes."""
    return Server(core, str(BARE), str(threads), given=answer)
