"""Only its own user can read the server's files, whatever the umask."""

import stat
from pathlib import Path

import pytest
from caseload.v1 import resources_pb2, therapist_service_pb2

from tests.process.command_runner import CASELOAD, caseload, refusal, url
from tests.support.servers import Client, ServerProcess
from tests.support.waiting import HUNG_SECONDS

OPEN_TO_ALL = ("sh", "-c", 'umask 0 && exec "$0" "$@"', *CASELOAD)


def modes(folder: Path) -> dict[str, int]:
    return {path.name: stat.S_IMODE(path.stat().st_mode) for path in folder.iterdir()}


def test_only_its_user_can_read_the_files_of_a_running_server(tmp_path: Path) -> None:
    with ServerProcess(url(tmp_path / "caseload.db"), command=OPEN_TO_ALL) as server:
        client = Client(server.address)
        therapist = resources_pb2.Therapist(display_name="Therapist")
        client.therapists.CreateTherapist(
            therapist_service_pb2.CreateTherapistRequest(therapist=therapist), timeout=HUNG_SECONDS
        )
        client.close()
        assert modes(tmp_path) == {"caseload.db": 0o600, "caseload.db-wal": 0o600, "caseload.db-shm": 0o600}


def test_only_its_user_can_read_a_migrated_file(tmp_path: Path) -> None:
    path = tmp_path / "caseload.db"
    assert caseload(tmp_path, "migrate", "--database", url(path), command=OPEN_TO_ALL).returncode == 0
    assert modes(tmp_path) == {"caseload.db": 0o600}


@pytest.mark.parametrize("name", ["caseload.db", "caseload.db-wal"])
def test_a_server_does_not_start_on_a_file_that_others_can_read(tmp_path: Path, name: str) -> None:
    """The group may read and write: Kubernetes gives it a volume with fsGroup."""
    path = tmp_path / "caseload.db"
    caseload(tmp_path, "migrate", "--database", url(path))
    with (tmp_path / name).open("ab"):  # a killed server leaves a -wal file
        (tmp_path / name).chmod(0o664)
    line = refusal(tmp_path, "serve", "--address", "127.0.0.1:0", "--database", url(path))
    assert line == f"--database: is accessible to other users: run chmod o= on {name}"
    (tmp_path / name).chmod(0o660)
    with ServerProcess(url(path)):
        pass
