"""Metrics of each database backend."""

import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final

import grpc
import pytest
from caseload_server.store.backends.postgres import connection as postgres
from caseload_server.store.backends.sqlite import connection as sqlite

from tests.conftest import serving
from tests.observability.metrics_client import numbers, wait_for_metrics
from tests.process.command_runner import url
from tests.support.api_driver import ApiDriver
from tests.support.servers import refusal
from tests.support.write_lock import holding_the_lock, wait_for_locks

MASK: Final = {"update_mask": {"paths": ["display_name"]}}


@pytest.mark.slow
@pytest.mark.parametrize("name", ["caseload.db", "link.db", "folder/caseload.db"])
def test_metrics_report_the_sizes_of_the_sqlite_file_and_its_wal(tmp_path: Path, name: str) -> None:
    (tmp_path / "caseload.db").touch(0o600)
    (tmp_path / "link.db").symlink_to("caseload.db")
    (tmp_path / "folder").symlink_to(".")
    with (
        serving(url(tmp_path / name), metrics_address="127.0.0.1:0") as server,
        ApiDriver(server.address) as api,
    ):
        api.therapists("t1")
        log = (tmp_path / "caseload.db-wal").stat().st_size
        assert log > 4096
        wait_for_metrics(server.metrics_address, lambda seen: seen("wal_bytes") == log)
        assert numbers(server.metrics_address)("database_bytes") == (tmp_path / "caseload.db").stat().st_size
        assert "caseload_pool_connections" not in numbers(server.metrics_address).families


def test_metrics_report_the_free_space_of_the_file_system_of_the_sqlite_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    free = {str(tmp_path): 4711}
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10_000, 5_000, free[str(path)]))
    with serving(url(tmp_path / "caseload.db"), metrics_address="127.0.0.1:0") as server:
        wait_for_metrics(server.metrics_address, lambda seen: seen("database_free_bytes") == 4711)


def test_metrics_count_the_failures_of_the_database_by_cause(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sqlite, "_BUSY_TIMEOUT_SECONDS", 0.05)
    monkeypatch.setitem(postgres.WRITES.defaults, "lock_timeout", "50ms")
    with serving(database_url, metrics_address="127.0.0.1:0") as server, ApiDriver(server.address) as api:
        with holding_the_lock(database_url), pytest.raises(grpc.RpcError) as caught:
            api.therapists("t1")
        refused = refusal(caught.value)
        assert (refused.reason, refused.metadata) == ("STORE_BUSY", {"cause": "lock_wait"})
        seen = numbers(server.metrics_address)
        assert seen("store_failures_total", cause="lock_wait") == 1
        assert seen("store_failures_total", cause="collision") == 0


@pytest.mark.slow
def test_metrics_report_postgresql_connections_in_use_and_waited_for(
    postgres_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    import psycopg

    wait_for_locks(monkeypatch)

    def writing(number: int) -> None:
        with ApiDriver(server.address) as caller:
            caller.send("UpdateTherapist", therapist={"therapist_id": f"t{number}", "display_name": "Bob"}, **MASK)

    with serving(postgres_url, metrics_address="127.0.0.1:0", pool_size=2) as server, ApiDriver(server.address) as api:
        api.therapists(*(f"t{number}" for number in range(5)))
        address = server.metrics_address
        with ThreadPoolExecutor() as callers, psycopg.connect(postgres_url) as other:
            other.execute("SELECT FROM therapist FOR UPDATE")  # every write has to wait for it
            done = callers.map(writing, range(5))
            held = wait_for_metrics(address, lambda seen: seen("pool_waiting", pool="write") >= 1)
            assert held("pool_connections", pool="write") == held("pool_connections_limit", pool="write") == 2
            assert held("pool_connections", pool="read") == 0
            other.rollback()
            list(done)
        wait_for_metrics(address, lambda seen: seen("pool_connections") == seen("pool_waiting") == 0)
        assert "caseload_wal_bytes" not in numbers(address).families
