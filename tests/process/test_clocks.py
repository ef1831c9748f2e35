"""A machine's clock that is wrong, and is then corrected."""

import json
import sys
import time
from pathlib import Path

import pytest
from caseload.v1 import therapist_service_pb2 as pb
from caseload.v1.resources_pb2 import Therapist
from caseload_server.config import Config
from caseload_server.store import PATIENT
from caseload_server.store.backends.factory import open_store

from tests.process.command_runner import caseload
from tests.store.store_calls import delete, make
from tests.support.servers import Client, ServerProcess
from tests.support.waiting import HUNG_SECONDS

COMMAND = (sys.executable, str(Path(__file__).with_name("stepped_clock_command.py")))
DAY = 86_400
REQUEST_ID = "3b241101-e2bb-4255-8caf-4136c566a962"


class WrongClock:
    """The clock of a server process."""

    def __init__(self, folder: Path) -> None:
        self._file = folder / "clock"
        self.environment = {"CASELOAD_TEST_CLOCK": str(self._file)}
        self.set(0)

    def set(self, seconds: int) -> None:
        new = self._file.with_suffix(".new")
        new.write_text(str(seconds))
        new.rename(self._file)


@pytest.fixture
def wrong_clock(tmp_path: Path) -> WrongClock:
    return WrongClock(tmp_path)


def create(server: ServerProcess) -> str:
    """The id of the therapist that the request with REQUEST_ID created."""
    client = Client(server.address, alone=True)
    request = pb.CreateTherapistRequest(therapist=Therapist(display_name="Ada"), request_id=REQUEST_ID)
    made = client.therapists.CreateTherapist(request, timeout=HUNG_SECONDS).therapist.therapist_id
    client.close()
    return made


@pytest.mark.parametrize("days", [-2, 2])
@pytest.mark.parametrize("restarts", [False, True], ids=["running", "restarted"])
def test_a_repeat_after_the_clock_was_corrected_writes_nothing(
    database_url: str, wrong_clock: WrongClock, days: int, *, restarts: bool
) -> None:
    wrong_clock.set(days * DAY)
    with ServerProcess(database_url, command=COMMAND, environment=wrong_clock.environment) as server:
        first = create(server)
        wrong_clock.set(0)
        if not restarts:
            assert create(server) == first
    with ServerProcess(database_url) as server:
        assert create(server) == first


def test_a_step_of_the_clock_is_logged_once(tmp_path: Path, wrong_clock: WrongClock) -> None:
    steps: list[tuple[str, int]] = []
    database = f"sqlite:///{tmp_path}/caseload.db"
    with ServerProcess(database, command=COMMAND, environment=wrong_clock.environment) as server:
        assert server.process.stderr is not None
        for seconds in (-2 * DAY, 5, 5):
            wrong_clock.set(seconds)
            while len(steps) < (1 if seconds < 0 else 2):
                event = json.loads(server.process.stderr.readline())
                if event["event"] == "clock stepped":
                    steps.append((event["level"], round(event["seconds"])))
        _, log = server.stop()
    assert steps == [("warning", -2 * DAY), ("warning", 2 * DAY + 5)]
    assert "clock stepped" not in log


def test_a_purge_says_that_records_stay_that_a_clock_ahead_deleted(tmp_path: Path, database_url: str) -> None:
    ahead = open_store(Config(database=database_url), lambda: time.time_ns() // 1000 + 400 * DAY * 1_000_000)
    make(ahead, PATIENT, "p")
    delete(ahead, PATIENT, "p")
    ahead.close()
    ended = caseload(tmp_path, "purge", "--deleted-before", "0d", CASELOAD_DATABASE=database_url)
    assert ended.returncode == 0
    assert ended.stdout == "0 patients, 0 therapists, 0 assignments purged\n"
    assert "1 deleted records stay: their time of deletion is in the future" in ended.stderr
