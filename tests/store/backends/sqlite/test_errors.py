"""Failures of the SQLite file and its disk as a client sees them."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import apsw
import pytest
from caseload_server.store.backends import factory, full_disk
from caseload_server.store.backends.sqlite import connection as sqlite
from grpc import StatusCode
from structlog.testing import capture_logs

from tests.api.client_calls import People, refused
from tests.api.error_scenarios import FAILURES, assert_error_matches
from tests.api.fault_injection import CANARY, FaultyServer, faulty_server
from tests.support.waiting import eventually
from tests.support.write_lock import holding_the_lock


class FailingDisk(apsw.VFS):
    """The default VFS, on which a test can make an operation ("sync", "read") fail."""

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


class Broken(NamedTuple):
    """A server, and access to its file and disk."""

    faulty: FaultyServer
    disk: FailingDisk
    file: Path

    @property
    def patients(self) -> People:
        return self.faulty.patients

    @property
    def writer(self) -> apsw.Connection:
        store: Any = self.faulty.server.store
        connection: apsw.Connection = store._database._writer
        return connection


@pytest.fixture
def broken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Broken]:
    monkeypatch.setattr(sqlite, "_BUSY_TIMEOUT_SECONDS", 0.05)
    disk = FailingDisk()
    file = tmp_path / "caseload.db"
    with faulty_server(f"sqlite:///{file}") as faulty:
        yield Broken(faulty, disk, file)
        disk.failing = ""
    disk.unregister()


def busy(broken: Broken) -> object:
    with holding_the_lock(f"sqlite:///{broken.file}"):
        return broken.patients.create("p2", display_name=CANARY)


def unavailable(broken: Broken) -> object:
    broken.writer.pragma("shrink_memory")  # without a cache it has to read
    broken.disk.failing = "read"
    return broken.patients.create("p2", display_name=CANARY)


def unavailable_to_watch(broken: Broken) -> object:
    broken.disk.failing = "read"
    return next(broken.faulty.api.watch())


def outcome_unknown(broken: Broken) -> object:
    broken.disk.failing = "sync"
    return broken.patients.create("p2", display_name=CANARY)


def full(broken: Broken) -> object:
    broken.writer.pragma("max_page_count", broken.writer.pragma("page_count"))
    return broken.patients.create("p2", annotations={str(n): CANARY * 90 for n in range(30)})


WAYS: dict[str, Callable[[Broken], object]] = {
    "STORE_BUSY": busy,
    "STORE_UNAVAILABLE": unavailable,
    "STORE_UNAVAILABLE by watch": unavailable_to_watch,
    "OUTCOME_UNKNOWN": outcome_unknown,
    "STORE_FULL": full,
}


@pytest.mark.parametrize("way", FAILURES)
def test_a_file_failure_returns_a_code_and_details_without_values(broken: Broken, way: str) -> None:
    assert_error_matches(way, lambda: WAYS[way](broken))


@pytest.mark.parametrize("failing", ["sync", "read"])
def test_calls_work_again_after_a_disk_failure_without_partial_writes(broken: Broken, failing: str) -> None:
    head = broken.patients.head()
    broken.writer.pragma("shrink_memory")
    broken.disk.failing = failing
    assert refused(broken.patients.create, "p2").code == StatusCode.UNAVAILABLE
    broken.disk.failing = ""
    assert refused(broken.patients.get, "p2").reason == "PATIENT_NOT_FOUND"
    assert broken.patients.head() == head
    broken.patients.create("p2")
    assert broken.patients.ids(broken.patients.call("List")) == ["p1", "p2"]


def test_a_full_disk_rejects_writes_but_not_reads_until_space_is_freed(
    broken: Broken, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(full_disk, "QUIET_SECONDS", 0.0)
    with capture_logs() as logged:
        for _ in range(2):
            assert refused(full, broken).reason == "STORE_FULL"
        assert broken.patients.ids(broken.patients.call("List")) == ["p1"]
        broken.writer.pragma("max_page_count", 2**30)
        assert broken.patients.create("p2").patient_id == "p2"
        eventually(lambda: len(logged) > 1)
    assert [line["event"] for line in logged] == ["database disk full", "database disk has space again"]


def test_reads_are_unavailable_when_the_file_cannot_be_opened(broken: Broken) -> None:
    away = broken.file.with_suffix(".away")
    broken.file.rename(away)
    try:
        reads = (lambda: broken.patients.get("p1"), lambda: broken.patients.call("List"))
        reasons = {refused(call).reason for call in reads}
    finally:
        away.rename(broken.file)
    assert reasons == {"STORE_UNAVAILABLE"}
    assert broken.patients.get("p1").patient_id == "p1"


def test_writes_are_unavailable_while_the_file_is_moved_or_replaced(broken: Broken, tmp_path: Path) -> None:
    away, other = tmp_path / "away.db", tmp_path / "other.db"
    broken.file.rename(away)
    assert refused(broken.patients.create, "p2").reason == "STORE_UNAVAILABLE"
    factory.migrate(f"sqlite:///{other}")
    other.rename(broken.file)
    assert refused(broken.patients.create, "p2").reason == "STORE_UNAVAILABLE"
    away.rename(broken.file)
    assert broken.patients.create("p2").patient_id == "p2"


def test_reads_are_unavailable_while_another_file_replaces_the_database(broken: Broken, tmp_path: Path) -> None:
    away, other = tmp_path / "away.db", tmp_path / "other.db"
    factory.migrate(f"sqlite:///{other}")
    broken.file.rename(away)
    other.rename(broken.file)
    reads = (lambda: broken.patients.get("p1"), lambda: broken.patients.call("List"))
    assert {refused(call).reason for call in reads} == {"STORE_UNAVAILABLE"}
    away.rename(broken.file)
    assert broken.patients.get("p1").patient_id == "p1"
