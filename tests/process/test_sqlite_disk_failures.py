"""A disk that refuses or has no space for writes, under a running server."""

import json
import resource
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from tests.observability.metrics_client import wait_for_metrics
from tests.process.command_runner import caseload, url
from tests.support.api_driver import ApiDriver, refused
from tests.support.disks import CannotMount, limit_files, loop_disk
from tests.support.servers import ServerProcess, free_address


class Scene(NamedTuple):
    """A server whose disk fails, and recovers if it can."""

    server: ServerProcess
    api: ApiDriver
    fail: Callable[[], object]
    recover: Callable[[], object]


def events(log: str, *names: str) -> list[dict[str, Any]]:
    """The events of a log with these names, in order."""
    return [event for line in log.splitlines() if (event := json.loads(line))["event"] in names]


@pytest.fixture
def metrics() -> str:
    return free_address()


@pytest.fixture
def limited(tmp_path: Path, metrics: str) -> Iterator[Scene]:
    """The kernel refuses to let the write-ahead log grow, as a file system that became read-only does."""
    file = tmp_path / "caseload.db"
    with (
        ServerProcess(url(file), "--metrics-address", metrics) as server,
        ApiDriver(server.address) as api,
    ):
        log = tmp_path / "caseload.db-wal"
        yield Scene(
            server,
            api,
            lambda: limit_files(server, log.stat().st_size),
            lambda: limit_files(server, resource.RLIM_INFINITY),
        )


def test_a_disk_that_refuses_writes_takes_readiness_until_it_accepts_them(limited: Scene, metrics: str) -> None:
    server, api, fail, recover = limited
    api.therapists("t1")
    fail()
    for name in ("t2", "t3"):
        assert refused(api.therapists, name).reason == "STORE_UNAVAILABLE"  # nothing can have been written
    assert refused(api.send, "DeleteTherapist", therapist_id="none").reason == "STORE_UNAVAILABLE"  # none is tried
    assert api.send("GetTherapist", therapist_id="t1").therapist.therapist_id == "t1"
    wait_for_metrics(metrics, lambda seen: seen("ready") == 0)
    recover()
    wait_for_metrics(metrics, lambda seen: seen("ready") == 1)  # without a call
    api.therapists("t2")
    found = events(server.stop()[1], "database rejects writes", "database accepts writes again", "not ready")
    assert [(event["event"], event.get("error"), event.get("system_error")) for event in found] == [
        ("database rejects writes", "SQLITE_IOERR_WRITE", "EFBIG"),
        ("not ready", None, None),
        ("database accepts writes again", None, None),
    ]
    assert found[1]["detail"] == "it rejects writes: SQLITE_IOERR_WRITE EFBIG"


def test_a_file_system_that_turns_read_only_is_named_and_loses_no_write(tmp_path: Path, metrics: str) -> None:
    """Where nothing can be mounted, a limit of the process takes its place: the test above."""
    with ExitStack() as opened:
        try:
            disk = opened.enter_context(loop_disk())
        except CannotMount:
            disk = None
        file = (disk.folder if disk else tmp_path) / "caseload.db"
        server = opened.enter_context(ServerProcess(url(file), "--metrics-address", metrics))
        api = opened.enter_context(ApiDriver(server.address))
        api.therapists("t1")
        if disk:
            disk.turn_read_only()
        else:
            limit_files(server, 0)
        reasons = {refused(api.therapists, f"t{number}").reason for number in range(2, 200)}
        assert reasons == {"STORE_UNAVAILABLE"}
        wait_for_metrics(metrics, lambda seen: seen("ready") == 0)
        if disk:  # what was acknowledged can still be read and copied
            copied = caseload(tmp_path, "backup", "copy.db", "--database", url(file))
            assert (copied.returncode, copied.stdout) == (0, "revision 1\n"), copied.stderr
            verified = caseload(tmp_path, "verify", "--database", url(file))
            assert verified.stdout.startswith("1 store, 1 therapist,"), verified.stderr
        [said] = events(server.stop()[1], "database rejects writes")
    assert said["system_error"] == ("EROFS" if disk else "EFBIG")
