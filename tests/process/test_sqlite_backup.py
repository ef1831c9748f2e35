"""A backup while several server processes write to the file."""

import re
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tests.process.acknowledged import Writers, lost, stored_after_restart
from tests.process.starting import caseload, url
from tests.process.test_interrupts import PATIENTS, fill
from tests.running import ServerProcess

HALF_BYTES = PATIENTS * 2000
"""Of what is copied."""


def test_a_backup_under_load_holds_what_was_acknowledged_before_it_and_is_its_revision(tmp_path: Path) -> None:
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
        with ThreadPoolExecutor() as pool:
            copying = pool.submit(caseload, tmp_path, "backup", "copy.db", "--database", database)
            part = tmp_path / ".copy.db.part" / "copy.db"
            while not copying.done() and not (part.exists() and part.stat().st_size):
                time.sleep(0.001)
            begun = sum((first.acknowledged | second.acknowledged).values())
            while part.exists() and part.stat().st_size < HALF_BYTES:
                time.sleep(0.001)
            assert sum((first.acknowledged | second.acknowledged).values()) > begun  # others wrote while it was copied
            ended = copying.result()
        one.kill()
        other.kill()
    assert (ended.returncode, ended.stderr) == (0, "")
    again = caseload(tmp_path, "restore", "copy.db", "--database", restored)
    assert (again.returncode, again.stdout) == (0, ended.stdout)
    verified = caseload(tmp_path, "verify", "--database", restored)
    assert (verified.returncode, verified.stderr) == (0, ""), verified.stdout
    [revision] = re.findall(r"^revision (\d+)$", ended.stdout)
    assert f" {revision} change_set," in verified.stdout  # one for each revision
    assert lost(before, stored_after_restart(restored)) == []
