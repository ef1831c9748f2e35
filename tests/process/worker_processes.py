"""A server with several workers: its processes, and a client of each worker."""

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from types import TracebackType

from tests.support.api_driver import ApiDriver
from tests.support.servers import ServerProcess
from tests.support.waiting import eventually

_ESTABLISHED, _LISTENS = "01", "0A"


def children(pid: int) -> set[int]:
    """The running child processes."""
    started = (file.read_text().split() for file in Path(f"/proc/{pid}/task").glob("*/children"))
    return {int(child) for some in started for child in some if is_running(int(child))}


def is_running(pid: int) -> bool:
    with suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2][0] not in "ZX"
    return False


def _open_files(pid: int) -> set[str]:
    """The targets of its open files; empty if the process has ended."""
    found: set[str] = set()
    with suppress(OSError):
        for file in Path(f"/proc/{pid}/fd").iterdir():
            with suppress(OSError):
                found.add(str(file.readlink()))
    return found


def _sockets(pid: int, port: int, state: str) -> set[str]:
    """The inodes of its sockets on a port."""
    rows = [line.split() for name in ("tcp", "tcp6") for line in Path(f"/proc/net/{name}").read_text().splitlines()[1:]]
    of_port = {f"socket:[{row[9]}]" for row in rows if row[3] == state and row[1].endswith(f":{port:04X}")}
    return of_port & _open_files(pid)


def listens(pid: int, address: str) -> bool:
    """Whether a process listens on an address."""
    return bool(_sockets(pid, int(address.rpartition(":")[2]), _LISTENS))


class WorkersServer(ServerProcess):
    """`caseload serve --workers N` on a free port; ends with the with block."""

    def __init__(self, database: str, *arguments: str, workers: int = 2, **others: object) -> None:
        super().__init__(database, "--workers", str(workers), *arguments, **others)  # type: ignore[arg-type]
        self._count = workers
        self._seen: set[int] = set()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for pid in filter(is_running, self._seen | self.workers):  # a failed test leaves no process behind
            os.kill(pid, signal.SIGKILL)
        super().__exit__(kind, error, trace)

    @property
    def workers(self) -> set[int]:
        """The process ids of the workers."""
        found = children(self.process.pid)
        self._seen |= found
        return found

    @contextmanager
    def caller_of_each(
        self, asks: Callable[[ApiDriver], object] = lambda api: api.send("ListTherapists")
    ) -> Iterator[dict[int, ApiDriver]]:
        """A client of each worker, by process id. No other client may call at the same time.

        Args: asks, makes a call that is let in.
        """
        port = int(self.address.rpartition(":")[2])
        eventually(lambda: sum(listens(pid, self.address) for pid in self.workers) == self._count)
        with ExitStack() as open_callers:
            callers: dict[int, ApiDriver] = {}
            for _ in range(200):
                before = {pid: _sockets(pid, port, _ESTABLISHED) for pid in self.workers}
                api = open_callers.enter_context(ApiDriver(self.address, alone=True))
                asks(api)
                [pid] = [pid for pid in before if _sockets(pid, port, _ESTABLISHED) - before[pid]]
                callers.setdefault(pid, api)
                if callers.keys() == before.keys():
                    break
            assert callers.keys() == self.workers, "some worker is given no connection"
            yield callers
