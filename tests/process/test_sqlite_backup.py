"""A backup while several server processes write to the file."""

import re
import signal
import stat
import time
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.process.acknowledged_writes import Writers, lost, stored_after_restart
from tests.process.command_runner import caseload, url
from tests.process.test_interrupts import fill, is_half_done, stopped
from tests.support.servers import ServerProcess
from tests.support.waiting import HUNG_SECONDS

pytestmark = pytest.mark.usefixtures("unrecorded")


def test_a_backup_under_load_holds_every_write_acknowledged_before_it(tmp_path: Path) -> None:
    database, restored = url(tmp_path / "caseload.db"), url(tmp_path / "restored.db")
    fill(database)  # far more than the copy takes in one step
    with (
        ServerProcess(database) as one,
        ServerProcess(database) as other,
        Writers(one.address, "one", threads=4) as first,
        Writers(other.address, "other", threads=4) as second,
    ):
        for writers in (first, second):
            writers.wait_for(patients=2)
        before = first.acknowledged | second.acknowledged
        part, undo = tmp_path / ".copy.db.part" / "copy.db", (tmp_path / "copy.db").unlink
        copying = stopped(tmp_path, lambda: is_half_done(part), "backup", "copy.db", "--database", database, undo=undo)
        for writers in (first, second):  # writes continue during the copy
            writers.wait_for_more(patients=10)
        copying.send_signal(signal.SIGCONT)
        printed, log = copying.communicate(timeout=HUNG_SECONDS)
        one.kill()
        other.kill()
    assert (copying.returncode, log) == (0, "")
    again = caseload(tmp_path, "restore", "copy.db", "--database", restored)
    assert (again.returncode, again.stdout) == (0, printed)
    verified = caseload(tmp_path, "verify", "--database", restored)
    assert (verified.returncode, verified.stderr) == (0, ""), verified.stdout
    [revision] = re.findall(r"^revision (\d+)$", printed)
    assert f" {revision} change_set," in verified.stdout  # one for each revision
    assert lost(before, stored_after_restart(restored)) == []


def test_a_backup_writes_its_time_for_node_exporter_only_after_it_has_succeeded(tmp_path: Path) -> None:
    database = url(tmp_path / "caseload.db")
    fill(database, 1)
    shown = tmp_path / "backup.prom"
    before = int(time.time())
    backup = ("backup", "copy.db", "--database", database, "--metrics-file", str(shown))
    assert caseload(tmp_path, *backup).returncode == 0
    [family] = text_string_to_metric_families(shown.read_text())
    [sample] = family.samples
    assert (family.type, sample.name) == ("gauge", "caseload_last_backup_time_seconds")
    assert before - 1 <= sample.value <= time.time() + 1
    assert stat.S_IMODE(shown.stat().st_mode) == 0o644
    shown.write_text("the last one")
    again = caseload(tmp_path, *backup)  # copy.db exists
    assert (again.returncode, shown.read_text()) == (2, "the last one")
    unwritable = ("backup", "other.db", "--database", database, "--metrics-file", str(tmp_path / "no" / "backup.prom"))
    refused = caseload(tmp_path, *unwritable)
    assert refused.returncode == 2
    text = "--metrics-file: cannot be written: No such file or directory; the backup is complete"
    assert text in refused.stderr
    assert (tmp_path / "other.db").exists()
    assert sorted(path.name for path in tmp_path.glob("backup.prom*")) == ["backup.prom"]


def test_metrics_of_a_backup_that_cannot_be_written_leave_no_file(tmp_path: Path, database: str) -> None:
    shown = tmp_path / "shown"
    shown.mkdir()
    ended = caseload(tmp_path, "backup", "copy.db", "--database", database, "--metrics-file", str(shown))
    assert (ended.returncode, ended.stderr.endswith("; the backup is complete\n")) == (2, True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["copy.db", "shown", "source.db"]
