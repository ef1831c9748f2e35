"""Only its own user can read the server's files, whatever the umask."""

import stat
from pathlib import Path

from caseload.v1 import resources_pb2, therapist_service_pb2

from tests.process.command_runner import CASELOAD, caseload, url
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
