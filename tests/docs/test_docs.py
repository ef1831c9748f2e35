"""The commands, snippets, outputs, links and tables of README.md and docs/ are correct."""

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tomllib
from collections.abc import Generator, Iterator
from pathlib import Path

import grpc
import pytest
from caseload.v1 import change_service_pb2 as change_pb
from caseload.v1 import therapist_service_pb2 as pb
from caseload.v1.change_service_pb2_grpc import ChangeServiceStub
from caseload_server.config import Config
from caseload_server.rpc.status_map import CODES
from caseload_server.store.portability.chain_check import CUT, HEAD, KEPT, LINKS
from google.protobuf import json_format
from google.rpc.code_pb2 import Code

from tests.conftest import serving
from tests.docs import errors_page
from tests.docs.doc_blocks import OPERATIONS, ROOT, Block, artifacts, blocks, is_only_named, masked, run, search_path
from tests.process.command_runner import without_record
from tests.support.api_driver import ApiDriver, full_name
from tests.support.gateway import gateway
from tests.support.postgres.cluster import Server
from tests.support.postgres.pgbouncer import pgbouncer
from tests.support.servers import Client, ServerProcess, refusal
from tests.support.waiting import HUNG_SECONDS

ADDRESS = Config.address
GATEWAY_ADDRESS = "127.0.0.1:8080"
GATEWAY_PAGES = [ROOT / "docs" / "from-rest.md", ROOT / "docs" / "http.md"]
CALLERS = ROOT / "docs" / "clients.md"
TESTING = ROOT / "docs" / "testing.md"
OTHER_TESTS = {
    *(ROOT / "docs" / "postgresql.md", CALLERS, TESTING),
    *GATEWAY_PAGES,
    *(ROOT / "docs" / "clients").glob("*.md"),
}
"""Pages whose commands need more than a server, or another environment."""
PAGES = [path for path in (ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))) if path.exists()]
CHECKOUT_PAGES = [*PAGES, *(ROOT / name for name in ("CONTRIBUTING.md", "SECURITY.md", "client/README.md"))]


def name(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with the files of a checkout that the commands of the pages need."""
    shutil.copy(ROOT / "client_example.py", tmp_path)
    (tmp_path / "data").mkdir()
    return tmp_path


def skip_if_taken(address: str) -> None:
    host, port = address.split(":")
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, int(port)))
        except OSError:
            pytest.skip(f"{address} is taken, and the pages' commands name it: stop the server there")


@pytest.fixture
def documented_server(folder: Path) -> Iterator[ServerProcess]:
    """The server of `make run` on an empty store, at the address that the pages use."""
    skip_if_taken(ADDRESS)
    arguments = ("--address", ADDRESS, "--metrics-address", "127.0.0.1:9464")
    with ServerProcess(f"sqlite:///{folder}/data/caseload.db", *arguments) as started:
        yield started


@pytest.fixture
def grpcurl() -> str:
    found = shutil.which("grpcurl", path=search_path())
    if found is None:
        pytest.skip("needs grpcurl: make grpcurl, which needs Go")
    return found


def check_block(block: Block, folder: Path) -> None:
    if all(map(is_only_named, block.lines)):
        return
    done = run(block, folder)
    refused = block.output is not None and "ERROR:" in block.output.splitlines()
    assert (done.returncode != 0) == refused, f"{block.text}{done.stdout}"
    if block.output is not None:
        assert masked(done.stdout) == masked(block.output), f"{block.text}{done.stdout}"


@pytest.mark.slow
@pytest.mark.usefixtures("documented_server", "grpcurl")
@pytest.mark.parametrize("page", [page for page in PAGES if page not in OTHER_TESTS], ids=name)
def test_every_command_and_snippet_of_a_page_does_what_the_page_shows(page: Path, folder: Path) -> None:
    for block in blocks(page):
        if block.language in ("sh", "python"):
            check_block(block, folder)


@pytest.mark.slow
@pytest.mark.checkout
@pytest.mark.usefixtures("documented_server", "grpcurl")
def test_every_command_of_the_callers_page_works_with_the_artifacts(folder: Path) -> None:
    for artifact in artifacts():
        shutil.copy(artifact, folder)
    for block in blocks(CALLERS):
        if block.language in ("sh", "python"):
            check_block(block, folder)


@pytest.mark.slow
@pytest.mark.checkout
@pytest.mark.usefixtures("documented_server", "grpcurl")
@pytest.mark.parametrize("page", GATEWAY_PAGES, ids=name)
def test_every_call_over_http_does_what_the_page_shows(page: Path, folder: Path) -> None:
    skip_if_taken(GATEWAY_ADDRESS)
    with gateway("-backend-plaintext", listen=GATEWAY_ADDRESS):
        for block in blocks(page):
            if block.language == "sh":
                check_block(block, folder)


@pytest.mark.slow
def test_every_command_of_the_postgresql_page_does_what_it_shows(folder: Path, postgres: Server) -> None:
    with ServerProcess(f"sqlite:///{folder}/data/caseload.db") as server:
        assert tour(server.address) == 0
    url = postgres.create_database("caseload_documented")
    try:
        for block in blocks(ROOT / "docs" / "postgresql.md"):
            text = block.text.replace("postgresql://caseload@127.0.0.1:5432/caseload", url)
            if block.language == "sh":
                check_block(block._replace(text=text), folder)
            elif block.language == "ini":
                with pgbouncer(url, "session", block.text.partition("[pgbouncer]")[2]) as pooled:
                    run(
                        Block("sh", f"caseload migrate --dry-run --database '{pooled}?options=-cjit%3Doff'", None),
                        folder,
                    )
            else:
                with postgres.connect("caseload_documented") as connection:
                    assert connection.execute(text.encode()).rowcount == 1
        verified = [
            run(Block("sh", f"caseload verify --database {one}", None), folder).stdout.splitlines()[-1]
            for one in (url, "sqlite:///data/caseload.db")
        ]
        assert verified[0] == verified[1]
        assert verified[0].startswith("digest: sha256:")
    finally:
        postgres.drop_database("caseload_documented")


@pytest.mark.slow
@pytest.mark.checkout
@pytest.mark.usefixtures("documented_server")
def test_every_snippet_of_the_stubs_readme_does_what_it_shows(folder: Path) -> None:
    snippets = blocks(ROOT / "client" / "README.md")
    assert {snippet.language for snippet in snippets} == {"python", "sh"}
    for snippet in snippets:
        if snippet.language == "python":  # tests/packaging/test_wheels.py runs the commands
            check_block(snippet, folder)


def test_every_change_set_that_a_page_shows_is_one_of_the_contract() -> None:
    shown = [block.text for page in PAGES for block in blocks(page) if block.language == "json"]
    assert len(shown) == 1
    for text in shown:
        assert json_format.Parse(text, change_pb.ChangeSet()).changes  # rejects unknown fields and kinds


ENDPOINTS = (
    *("POST /therapists", "GET /therapists/{id}", "GET /therapists", "PATCH /therapists/{id}/name/{name}"),
    *(
        "GET /therapists/{id}/patients",
        "POST /therapists/{id}/patients/{pid}",
        "DELETE /therapists/{id}/patients/{pid}",
    ),
    *("POST /patients", "GET /patients/{id}", "GET /patients", "PATCH /patients/{id}/name/{name}"),
)


def test_every_endpoint_of_the_rest_api_is_mapped() -> None:
    text = (ROOT / "docs" / "from-rest.md").read_text()
    mapped = re.findall(
        r"^`([A-Z]+ /[^`]+)`: (\w+)[^`]*(?:`[^`]+`[^`]*)*?\n```sh\ngrpcurl .*/(\w+)\n```\n\n```sh\ncurl -f .*\n```$",
        text,
        re.MULTILINE,
    )
    assert {endpoint for endpoint, _, _ in mapped} == set(ENDPOINTS)
    assert [(said, run) for _, said, run in mapped if said != run] == []


@pytest.mark.slow
@pytest.mark.parametrize(
    ("language", "text", "output"),
    [
        ("sh", "false\ntrue\n", None),
        ("sh", "echo ready\n", "readier\n"),
        ("sh", "echo ready\n", "ERROR: refused\n"),
        ("sh", "no-such-command\n", None),
        ("python", "print(undefined)\n", None),
    ],
)
def test_the_test_detects_a_block_with_wrong_output(language: str, text: str, output: str | None, folder: Path) -> None:
    with pytest.raises(AssertionError):
        check_block(Block(language, text, output), folder)


def test_only_output_that_differs_between_runs_is_masked() -> None:
    ours = '"etag": "563955ee87606ab4", "revision":  "7786bd60d25b.120", "create_time": "2026-11-22T20:33:24.867740Z"'
    theirs = '"etag": "0123456789abcdef", "revision": "0123456789ab.7",\n"create_time": "2027-01-02T03:04:05Z"'
    assert masked(ours) == masked(theirs)
    assert masked("revision 1\n") == masked("revision 23\n")
    assert masked("revision 1 of 2\n") != masked("revision 1 of 3\n")
    assert masked('"missing": "1"') != masked('"missing": "2"')


@pytest.mark.checkout
def test_every_make_target_named_on_a_page_exists() -> None:
    targets = set(re.findall(r"^([a-z-]+):.*## ", (ROOT / "Makefile").read_text(), re.MULTILINE))
    command = re.compile(r"(?:^|`)make ([a-z-]+)", re.MULTILINE)
    named = {target for page in CHECKOUT_PAGES for target in command.findall(page.read_text())}
    assert {"run", "test", "install", "check"} <= named
    assert named - targets == set()


@pytest.mark.checkout
@pytest.mark.parametrize("page", CHECKOUT_PAGES, ids=name)
def test_every_link_and_file_named_on_a_page_exists(page: Path) -> None:
    text = page.read_text()
    links = {link.partition("#")[0] for link in re.findall(r"\]\((?!https?:)([^)\s]+)\)", text)}
    missing = {link for link in links if link and not (page.parent / link).exists()}
    files = re.findall(r"`((?:[\w.-]+/)+[\w.-]*|[\w-]+\.(?:py|md|toml|proto|sql))`", text)
    made = ("data/", "dist/", "caseload/", ".tools/", "google/", "src/main/", "example.org/")
    folders = [ROOT, ROOT / "protos/caseload/v1", ROOT / "client/caseload/client", ROOT / "service"]
    folders += [folder for folder in (ROOT / "service").rglob("*") if folder.is_dir()]
    missing |= {
        file for file in files if not (file.startswith(made) or any((folder / file).exists() for folder in folders))
    }
    assert missing == set()


@pytest.mark.checkout
def test_every_link_into_a_page_points_to_an_existing_heading() -> None:
    lost = []
    for page in CHECKOUT_PAGES:
        for target, anchor in re.findall(r"\]\((?!https?:)([^)#\s]*)#([^)\s]+)\)", page.read_text()):
            headings = re.findall(r"^#+ (.*)$", (page.parent / target if target else page).read_text(), re.MULTILINE)
            if anchor not in {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}:
                lost.append((name(page), target, anchor))
    assert lost == []


def test_the_readme_is_short() -> None:
    assert 90 <= len((ROOT / "README.md").read_text().splitlines()) <= 110


def test_the_errors_page_is_current() -> None:
    assert errors_page.PAGE.read_text() == errors_page.page(), "run make errors-doc"


def test_the_errors_page_lists_an_action_and_the_code_of_each_reason() -> None:
    assert errors_page.WHAT_TO_DO.keys() == CODES.keys()
    said = errors_page.comments()
    assert {reason: said[reason][0] for reason in CODES} == {reason: Code.Name(code) for reason, code in CODES.items()}


OPTION = re.compile(r"(--[a-z-]+) (?:(?!\[env var).)*\[env var: (\w+)(?:; default: ([^;\]]+))?")
ROW = re.compile(r"^\| `(--[a-z-]+)` \| `(\w+)` \| (?:`([^`]+)`)? *\|", re.MULTILINE)


def test_the_settings_tables_match_the_help_of_the_commands() -> None:
    shown = [
        subprocess.run(
            [sys.executable, "-m", "caseload_server", command, "--help"],
            capture_output=True,
            text=True,
            timeout=HUNG_SECONDS,
            check=True,
        ).stdout
        for command in ("serve", "check")
    ]
    pages = (OPERATIONS / "start-and-stop.md", OPERATIONS / "health.md")
    rows = [row for page in pages for row in ROW.findall(page.read_text())]
    assert rows == [option for text in shown for option in OPTION.findall(" ".join(text.split()))]
    assert len(rows) >= 5


@pytest.mark.checkout
def test_the_dependencies_page_lists_exactly_the_dependencies() -> None:
    server = tomllib.loads((ROOT / "service" / "pyproject.toml").read_text())["project"]
    groups = tomllib.loads((ROOT / "pyproject.toml").read_text())["dependency-groups"]
    extras = [package for extra in server["optional-dependencies"].values() for package in extra]
    wanted = [*server["dependencies"], *extras, *groups["test"]]
    wanted += [one for one in groups["dev"] if isinstance(one, str)]
    names = {re.split(r"[<>=[]", one)[0] for one in wanted} - {"caseload-client"}
    used, _, _ = (ROOT / "docs" / "dependencies.md").read_text().partition("## Looked at and left out")
    said = {name for cell in re.findall(r"^\| ([^|]+) \|", used, re.MULTILINE) for name in cell.split(", ")}
    assert said - {"package", "---"} == names


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
    people, purging = [block for block in page if block.text.startswith("caseload purge ")]
    with ServerProcess(f"sqlite:///{folder}/data/caseload.db") as server:
        assert tour(server.address) == 0
        kept = list_changes(server.address)
        check_block(people, folder)
        check_block(purging, folder)
        assert list_changes(server.address) == kept
        everything = Block("sh", purging.text.replace("30d", "0d"), None)
        assert without_record(run(everything, folder).stdout) == f"{len(kept.change_sets)} change sets purged\n"
        purged = list_changes(server.address)
        assert purged.oldest_revision == kept.head_revision
        assert [one.actor for one in purged.change_sets] == ["cli:purge"]


def test_the_page_on_the_change_log_lists_the_rules_of_the_chain() -> None:
    text = (OPERATIONS / "change-log.md").read_text()
    assert [rule for rule in (LINKS, HEAD, CUT, KEPT) if f"`broken: {rule}" not in text] == []


def test_the_documented_filter_of_the_access_log_finds_who_looked_at_a_patient(folder: Path) -> None:
    """Runs the command of docs/operations/logs.md on the log of a server."""
    if shutil.which("jq") is None:
        pytest.skip("needs jq (Debian: jq)")
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


def tour(address: str) -> int:
    command = [sys.executable, str(ROOT / "client_example.py"), address]
    return subprocess.run(command, stdout=subprocess.DEVNULL, timeout=HUNG_SECONDS, check=False).returncode


def newest_revision(address: str) -> str:
    client = Client(address)
    revision = client.therapists.ListTherapists(pb.ListTherapistsRequest(), timeout=HUNG_SECONDS).revision
    client.close()
    return revision


@pytest.mark.slow
@pytest.mark.checkout
@pytest.mark.usefixtures("grpcurl")
def test_make_run_prints_a_grpcurl_line_that_works_when_pasted(tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    lines = lines_of_make_run(address, tmp_path)
    tried = next(lines).removeprefix("try: ")
    assert next(lines) == f"caseload: serving on {address}"
    pasted = subprocess.run(
        tried, shell=True, cwd=ROOT, capture_output=True, text=True, timeout=HUNG_SECONDS, check=False,
        env=os.environ | {"PATH": search_path()},
    )  # fmt: skip
    assert '"displayName": "Ada Roe"' in pasted.stdout, pasted.stderr
    [shown] = [block.output for block in blocks(ROOT / "README.md") if block.text == "make run\n"]
    expected = f"try: {tried}\ncaseload: serving on {address}".replace(address, ADDRESS).replace(".tools/bin/", "")
    assert shown is not None
    assert shown.strip() == expected
    lines.close()


def lines_of_make_run(address: str, folder: Path) -> Generator[str, None, None]:
    """Yields the printed lines; closing the generator ends make and all its processes."""
    command = ["make", "run", f"ADDRESS={address}", f"DATABASE=sqlite:///{folder}/caseload.db"]
    alone = {name: value for name, value in os.environ.items() if not name.startswith(("MAKE", "MFLAGS"))}
    with subprocess.Popen(
        command, cwd=ROOT, env=alone, stdout=subprocess.PIPE, text=True, start_new_session=True
    ) as running:
        try:
            assert running.stdout is not None
            yield from (line.rstrip("\n") for line in running.stdout)
        finally:
            os.killpg(running.pid, signal.SIGTERM)
            running.wait(HUNG_SECONDS)
