"""The commands of docs/operations/ do what the pages say."""

import re
import shutil
from pathlib import Path

import grpc
import psycopg
import pytest
from caseload.v1 import change_service_pb2 as change_pb
from caseload.v1 import therapist_service_pb2 as pb
from caseload.v1.change_service_pb2_grpc import ChangeServiceStub

from tests.conftest import serving
from tests.docs.doc_blocks import OPERATIONS, Block, blocks, run
from tests.docs.page_checks import check_block, tour
from tests.observability.shipped_rules import rules_text
from tests.process.command_runner import without_record
from tests.support.api_driver import ApiDriver, full_name
from tests.support.servers import Client, ServerProcess, refusal
from tests.support.waiting import HUNG_SECONDS, eventually


@pytest.mark.slow
def test_a_restored_backup_is_a_store_that_rejects_old_revisions(folder: Path) -> None:
    """Follows docs/operations/backup-and-restore.md: back up, restore, start on the restored file."""
    page = blocks(OPERATIONS / "backup-and-restore.md")
    backing_up, on_a_schedule = [block for block in page if block.text.startswith("caseload backup ")]
    [restoring] = [block for block in page if block.text.startswith("caseload restore ")]
    with ServerProcess(f"sqlite:///{folder}/data/caseload.db") as server:
        assert tour(server.address) == 0
        check_block(backing_up, folder)
        check_block(on_a_schedule, folder)
        before = newest_revision(server.address)
        assert tour(server.address) == 0
    check_block(restoring, folder)
    with ServerProcess(f"sqlite:///{folder}/data/restored.db") as server:
        after = newest_revision(server.address)
        assert after.partition(".")[2] == before.partition(".")[2]
        with pytest.raises(grpc.RpcError) as refused:
            list_changes(server.address, before)
        assert refusal(refused.value).reason == "REVISION_FOREIGN"
        assert list_changes(server.address, after).head_revision == after


@pytest.mark.slow
def test_a_purge_by_age_keeps_newer_records(folder: Path) -> None:
    """Runs the commands of docs/operations/purge.md while the server runs."""
    page = blocks(OPERATIONS / "purge.md")
    people, versions, all_versions, purging = [block for block in page if block.text.startswith("caseload purge ")]
    with ServerProcess(f"sqlite:///{folder}/data/caseload.db") as server:
        assert tour(server.address) == 0
        kept = list_changes(server.address)
        for block in (people, versions, purging):
            check_block(block, folder)
        assert list_changes(server.address) == kept
        everything = Block("sh", purging.text.replace("30d", "0d"), None)
        assert without_record(run(everything, folder).stdout) == f"{len(kept.change_sets)} change sets purged\n"
        purged = list_changes(server.address)
        assert purged.oldest_revision == kept.head_revision
        assert [one.actor for one in purged.change_sets] == ["cli:purge"]
        check_block(all_versions, folder)
        assert [one.actor for one in list_changes(server.address).change_sets] == ["cli:purge", "cli:purge"]


def test_each_alert_has_a_command_and_those_for_the_access_log_run(folder: Path) -> None:
    """The table of docs/operations/metrics-and-alerts.md, with its commands for jq on the log of a server."""
    if shutil.which("jq") is None:
        pytest.skip("needs jq: apt-get install jq")
    table = (OPERATIONS / "metrics-and-alerts.md").read_text().partition("## What to run")[2].partition("```sql")[0]
    rows = re.findall(r"^\| (`Caseload.*?) \| (.*) \|$", table, re.MULTILINE)
    named = [alert for alerts, _ in rows for alert in re.findall(r"`(\w+)`", alerts)]
    assert sorted(named) == sorted(re.findall(r"alert: (\w+)", rules_text()))
    commands = [command.strip("`").replace("\\|", "|") for _, command in rows if command.startswith("`jq")]
    log, database = folder / "access.log", f"sqlite:///{folder}/data/caseload.db"
    with serving(database, access_log=log) as server, ApiDriver(server.address) as api:
        api.patients("jane")
        with pytest.raises(grpc.RpcError):
            api.send("GetPatient", patient_id="john")
        with pytest.raises(grpc.RpcError):
            api.send("GetPatient", patient_id="jane", metadata=(("via", "1.1 proxy"),))
        watch = api.watch()
        eventually(lambda: "stream_opened" in log.read_text())
        watch.cancel()
    shown = [run(Block("sh", command, None), folder).stdout for command in commands]
    assert len(shown) == 4
    for text, expected in zip(shown, ("PATIENT_NOT_FOUND", "CreatePatient", "local", "forwarded"), strict=True):
        assert expected in text


@pytest.mark.slow
def test_the_queries_for_the_alerts_of_postgresql_run_and_name_who_waits_for_whom(postgres_url: str) -> None:
    """Runs the SQL of docs/operations/metrics-and-alerts.md while one session waits for another."""
    queries, granting = [one.text for one in blocks(OPERATIONS / "metrics-and-alerts.md") if one.language == "sql"]
    oldest, waiting, standbys, commits = queries.split(";")[:4]
    with (
        psycopg.connect(postgres_url, autocommit=True) as admin,
        psycopg.connect(postgres_url) as holder,
        psycopg.connect(postgres_url) as blocked,
    ):
        holder.execute("LOCK TABLE therapist")
        blocked.pgconn.send_query(b"BEGIN; LOCK TABLE therapist")
        pair = (blocked.info.backend_pid, [holder.info.backend_pid])
        eventually(lambda: pair in [row[:2] for row in admin.execute(waiting.encode()).fetchall()])
        assert admin.execute(oldest.encode()).fetchall()[0][0] == holder.info.backend_pid
        assert admin.execute(standbys.encode()).fetchall() == admin.execute(commits.encode()).fetchall() == []
        holder.rollback()
        while blocked.pgconn.get_result():
            pass
        admin.execute("BEGIN; CREATE ROLE caseload_documented")
        admin.execute(granting.replace("TO caseload", "TO caseload_documented").encode())
        admin.execute("ROLLBACK")


def test_the_documented_filter_of_the_access_log_finds_who_looked_at_a_patient(folder: Path) -> None:
    """Runs the command of docs/operations/logs.md on the log of a server."""
    if shutil.which("jq") is None:
        pytest.skip("needs jq: apt-get install jq")
    [command] = re.findall(r"^jq .*$", (OPERATIONS / "logs.md").read_text(), re.MULTILINE)
    log = folder / "access.log"
    with serving(f"sqlite:///{folder}/data/caseload.db", access_log=log) as server, ApiDriver(server.address) as api:
        api.patients("jane", "john")
        user = (("caseload-on-behalf-of", "jdoe"),)
        api.send("GetPatient", patient_id="john", metadata=user)
        api.send("GetPatient", patient_id="jane", metadata=user)
        api.send("ListPatients")
    found = [line.split("\t")[1:] for line in run(Block("sh", command, None), folder).stdout.splitlines()]
    assert found == [
        ["local", "-", full_name("CreatePatient"), "OK"],
        ["local", "jdoe", full_name("GetPatient"), "OK"],
        ["local", "-", full_name("ListPatients"), "OK"],
    ]


def list_changes(address: str, after: str = "") -> change_pb.ListChangesResponse:
    with grpc.insecure_channel(address) as channel:
        return ChangeServiceStub(channel).ListChanges(
            change_pb.ListChangesRequest(after_revision=after), timeout=HUNG_SECONDS
        )


def newest_revision(address: str) -> str:
    client = Client(address)
    revision = client.therapists.ListTherapists(pb.ListTherapistsRequest(), timeout=HUNG_SECONDS).revision
    client.close()
    return revision
