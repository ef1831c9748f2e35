"""A server process whose log is read continuously, because a full pipe would block it."""

import json
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Final, Self

from tests.process.command_runner import CASELOAD
from tests.support.servers import ServerProcess
from tests.support.waiting import HUNG_SECONDS, join

MOST_COMPLAINTS: Final = 20


class Serving(ServerProcess):
    """`caseload serve` on a new SQLite file in the folder, or on the database at a URL."""

    def __init__(self, folder: Path, database: str = "", command: Sequence[str] = CASELOAD) -> None:
        super().__init__(database or f"sqlite:///{folder}/caseload.db", access_log=None, command=command)
        self._complaints: list[str] = []
        self._reader = threading.Thread(target=self._read, daemon=True)

    def __enter__(self) -> Self:
        super().__enter__()
        self._reader.start()
        return self

    def end(self) -> list[str]:
        """Stops the server; returns the complaints: a crash, an error in the log, a line outside the log format."""
        died = self.process.poll()
        self.process.terminate()
        code = self.process.wait(HUNG_SECONDS)
        join(self._reader)
        if died is not None or code != 0:
            self._complaints.append(f"the server died: {died}" if died is not None else f"it ended with code {code}")
        return self._complaints

    def _read(self) -> None:
        assert self.process.stderr
        for line in self.process.stderr:
            if is_bad(line) and len(self._complaints) < MOST_COMPLAINTS:
                self._complaints.append(line.rstrip())


def is_bad(line: str) -> bool:
    """Whether a line on standard error is not a log line, or reports a defect."""
    try:
        entry = json.loads(line)
    except ValueError:
        return True
    return not isinstance(entry, dict) or entry.get("level") in ("error", "critical")
