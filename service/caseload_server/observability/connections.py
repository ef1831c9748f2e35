"""The client connections and open files of this process, from /proc. gRPC tells neither.

https://man7.org/linux/man-pages/man5/proc_pid_fd.5.html, https://docs.kernel.org/networking/proc_net_tcp.html
"""

import os
import resource
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Final, NamedTuple

import structlog

_FILES: Final = "/proc/self/fd"
_TABLES: Final = (Path("/proc/self/net/tcp"), Path("/proc/self/net/tcp6"))
_ESTABLISHED, _CLOSE_WAIT, _LISTEN = "01", "08", "0A"
_INTERVAL_SECONDS: Final = 1.0
_STOP_SECONDS: Final = 1.0
_RECOVERED: Final = 0.9
"""The part of the limit below which a process is no longer at its limit."""
_log = structlog.get_logger()


class _Socket(NamedTuple):
    port: int
    state: str
    queued: int
    """Of a listening socket: the connections that wait to be accepted."""
    inode: str


def open_files() -> int:
    """Returns the number of open files of this process."""
    with os.scandir(_FILES) as found:
        return sum(1 for _ in found) - 1  # without that of the scan


def open_files_limit() -> int:
    """Returns the limit on open files of this process."""
    return resource.getrlimit(resource.RLIMIT_NOFILE)[0]


class Connections:
    """Counts the connections that clients have to a port, and logs when they reach their limit."""

    def __init__(self, port: int, limit: int) -> None:
        """Args: port, on which this process listens; limit, the most connections that it accepts."""
        self.limit: Final = limit
        self._port = port
        self._at_limit = False
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="connections", daemon=True)

    def count(self) -> int:
        """Returns the number of open connections."""
        return sum(one.state in {_ESTABLISHED, _CLOSE_WAIT} for one in self._sockets())

    def waiting(self) -> int:
        """Returns the number of connections that are not accepted yet, because the process lacks open files, say."""
        return sum(one.queued for one in self._sockets() if one.state == _LISTEN)

    def gauges(self) -> list[tuple[str, Callable[[], float]]]:
        """Returns the gauges of connections and open files, as name and sampling function."""
        return [
            ("connections", self.count),
            ("connections_limit", lambda: self.limit),
            ("connections_waiting", self.waiting),
            ("open_files", open_files),
            ("open_files_limit", open_files_limit),
        ]

    def start(self) -> None:
        """Starts the thread that logs."""
        self._thread.start()

    def stop(self) -> None:
        """Stops the thread."""
        self._stopped.set()
        if self._thread.is_alive():
            self._thread.join(_STOP_SECONDS)

    def check(self) -> None:
        """Logs when the connections have reached the limit, and when there are fewer again. Raises OSError."""
        # The open files are counted faster, and are more than the connections.
        count = self.count() if self._at_limit or open_files() >= self.limit else 0
        if count >= self.limit and not self._at_limit:
            self._at_limit = True
            _log.warning("connection limit reached", connections=count, max_connections=self.limit)
        elif self._at_limit and count < self.limit * _RECOVERED:
            self._at_limit = False
            _log.warning("connections below the limit again", connections=count, max_connections=self.limit)

    def _sockets(self) -> Iterator[_Socket]:
        """Yields the sockets of this process on the port. Other workers have sockets on the same port."""
        own = set(_own_inodes())
        return (one for one in _tcp_sockets() if one.port == self._port and one.inode in own)

    def _run(self) -> None:
        while not self._stopped.wait(_INTERVAL_SECONDS):
            with suppress(OSError):  # without /proc, say
                self.check()


def _own_inodes() -> Iterator[str]:
    with os.scandir(_FILES) as found:
        for file in found:
            with suppress(OSError):  # it was closed meanwhile
                kind, _, inode = os.readlink(file.path).partition(":")  # noqa: PTH115 - a Path takes three times as long
                if kind == "socket":
                    yield inode.strip("[]")


def _tcp_sockets() -> Iterator[_Socket]:
    for table in _TABLES:
        with suppress(FileNotFoundError), table.open() as lines:  # a kernel without IPv6 has one table
            next(lines)
            yield from map(_parse, lines)


def _parse(line: str) -> _Socket:
    _, local, _, state, queues, _, _, _, _, inode, *_ = line.split()
    return _Socket(int(local.rpartition(":")[2], 16), state, int(queues.partition(":")[2], 16), inode)
