"""A server on a disk that can fail, with a defect planted in a call and in a stream."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import apsw
import grpc

from service.server import CaseloadServer
from service.servicers.change import ChangeServicer
from service.servicers.therapist import TherapistServicer
from tests.clinic import Clinic
from tests.services.calling import People, Side

CANARY = "Canary-Zq9"
"""What no refusal may say."""


class FailingDisk(apsw.VFS):
    """The file system of the machine, on which an operation ("sync", "read") fails while a test says so."""

    def __init__(self) -> None:
        super().__init__("failing", "unix", makedefault=True)
        self.failing = ""

    def xOpen(self, name: str | apsw.URIFilename | None, flags: list[int]) -> "FailingFile":
        return FailingFile(self, name, flags)


class FailingFile(apsw.VFSFile):
    def __init__(self, disk: FailingDisk, name: str | apsw.URIFilename | None, flags: list[int]) -> None:
        super().__init__("unix", name, flags)
        self._disk = disk

    def xSync(self, flags: int) -> None:
        self._fail("sync")
        super().xSync(flags)

    def xRead(self, amount: int, offset: int) -> bytes:
        self._fail("read")
        return super().xRead(amount, offset)

    def _fail(self, operation: str) -> None:
        if self._disk.failing == operation:
            raise apsw.IOError(CANARY)


class DefectiveTherapists(TherapistServicer):
    """With a defect as any of us could write it: its text quotes what was sent."""

    def GetTherapist(self, request: Any, context: grpc.ServicerContext) -> Any:
        if request.therapist_id == "broken":
            raise KeyError(f"{CANARY} {request}")
        return super().GetTherapist(request, context)


class DefectiveChanges(ChangeServicer):
    """As above, in a stream that has begun."""

    def WatchChanges(self, request: Any, context: grpc.ServicerContext) -> Any:
        for answer in super().WatchChanges(request, context):
            yield answer
            if request.filter.actor == CANARY:
                raise KeyError(f"{CANARY} {request}")


class World(NamedTuple):
    """A server with therapist t1, patient p1 and one place for a watch, and what is needed to make it fail."""

    server: CaseloadServer
    side: Side
    clinic: Clinic
    """Another caller of the same server."""
    disk: FailingDisk
    database: Path

    @property
    def therapists(self) -> People:
        return self.side.therapists

    @property
    def patients(self) -> People:
        return self.side.patients

    @property
    def writer(self) -> apsw.Connection:
        store: Any = self.server._store
        connection: apsw.Connection = store._database._writer
        return connection


@contextmanager
def holding_the_lock(database: Path) -> Iterator[None]:
    other = apsw.Connection(str(database))
    other.execute("BEGIN IMMEDIATE")
    try:
        yield
    finally:
        other.execute("ROLLBACK")
        other.close()
