"""When the log says that the disk of the database is full, and that it has space again."""

from caseload_server.store.backends.full_disk import QUIET_SECONDS, FullDisk
from structlog.testing import capture_logs

from tests.support.waiting import FakeClock

FULL, RECOVERED = "database disk full", "database disk has space again"


def test_a_disk_that_takes_some_writes_and_not_others_stays_full() -> None:
    clock = FakeClock()
    disk = FullDisk(clock)
    with capture_logs() as logged:
        disk.record_success()
        disk.report_recovery()
        for _ in range(5):
            disk.record_failure()
            disk.record_success()
            clock.advance(QUIET_SECONDS / 2)
            disk.report_recovery()
        assert [line["event"] for line in logged] == [FULL]
        clock.advance(QUIET_SECONDS)
        for _ in range(2):
            disk.report_recovery()
    assert [line["event"] for line in logged] == [FULL, RECOVERED]


def test_a_disk_without_a_write_stays_full() -> None:
    clock = FakeClock()
    disk = FullDisk(clock)
    with capture_logs() as logged:
        disk.record_failure()
        clock.advance(QUIET_SECONDS)
        disk.report_recovery()
    assert [line["event"] for line in logged] == [FULL]
