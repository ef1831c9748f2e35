"""A power cut loses nothing that was acknowledged: every commit is synced before it is answered."""

import os
import sys
from pathlib import Path

import pytest
from caseload_server.store.backends.sqlite import connection as sqlite

from tests.process.acknowledged_writes import Writers, invented, lost, stored_after_restart
from tests.process.command_runner import url
from tests.process.sqlite_integrity import damage
from tests.support.servers import ServerProcess

POWER_LOSS = (sys.executable, str(Path(__file__).with_name("sqlite_power_loss_command.py")))


def write_until_power_loss(database: Path, name: str, **variables: str) -> dict[str, int]:
    """Writes until a kill. Returns the last acknowledged write of each patient."""
    environment = {f"CASELOAD_TEST_{variable}": value for variable, value in variables.items()}
    with (
        ServerProcess(url(database), command=POWER_LOSS, environment=environment) as server,
        Writers(server.address, name, threads=4) as writers,
    ):
        writers.wait_for(patients=20)
        server.kill()
    os.utime(f"{database}-shm", (0, 0))  # the next start is after a boot of the machine
    return writers.acknowledged


@pytest.mark.parametrize("disk", [{}, {"REORDER": "1"}], ids=["in order", "in an order of its own"])
def test_no_acknowledged_write_is_lost_by_a_power_cut(tmp_path: Path, disk: dict[str, str]) -> None:
    database = tmp_path / "caseload.db"
    acknowledged: dict[str, int] = {}
    for attempt in range(2):
        acknowledged |= write_until_power_loss(database, f"round-{attempt}", **disk)
        found = stored_after_restart(url(database))
        assert lost(acknowledged, found) == []
        assert invented(acknowledged, found) == []
        assert damage(database) == []


@pytest.mark.parametrize("synchronous", ["NORMAL", "OFF"])
def test_a_store_that_syncs_less_loses_acknowledged_writes(tmp_path: Path, synchronous: str) -> None:
    database = tmp_path / "caseload.db"
    stored_after_restart(url(database))  # the schema is on the disk
    for attempt in range(10):  # nothing is lost if the power fails right after a checkpoint
        acknowledged = write_until_power_loss(database, f"unsafe-{attempt}", SYNCHRONOUS=synchronous)
        if lost(acknowledged, stored_after_restart(url(database))):
            return
    pytest.fail("no attempt lost a write")


def test_the_store_syncs_every_commit() -> None:
    assert sqlite.SYNCHRONOUS in {"FULL", "EXTRA"}
