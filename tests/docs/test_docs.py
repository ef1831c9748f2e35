"""The commands and snippets of README.md and docs/ do what the pages show."""

import fcntl
import os
import secrets
import shutil
import signal
import socket
import subprocess
import tempfile
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
from caseload_server.config import Config

from tests.docs.doc_blocks import ROOT, Block, artifacts, blocks, masked, run, search_path
from tests.docs.page_checks import PAGES, check_block, name, tour
from tests.support.gateway import gateway
from tests.support.postgres.cluster import Server
from tests.support.postgres.pgbouncer import pgbouncer
from tests.support.servers import ServerProcess, free_address
from tests.support.waiting import HUNG_SECONDS

ADDRESS = Config.address
METRICS_ADDRESS = "127.0.0.1:9464"
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


def skip_if_taken(address: str) -> None:
    host, port = address.split(":")
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, int(port)))
        except OSError:
            pytest.skip(f"{address} is taken, and the pages' commands name it: stop the server there")


@contextmanager
def pages_addresses() -> Iterator[None]:
    """Reserves the addresses that the pages use. Waits while another test run uses them."""
    folder = os.open(tempfile.gettempdir(), os.O_RDONLY)
    try:
        fcntl.flock(folder, fcntl.LOCK_EX)
        yield
    finally:
        os.close(folder)


@pytest.fixture
def documented_server(folder: Path) -> Iterator[ServerProcess]:
    """The server of `make run` on an empty store, at the address that the pages use."""
    arguments = ("--address", ADDRESS, "--metrics-address", METRICS_ADDRESS)
    with pages_addresses():
        for address in (ADDRESS, METRICS_ADDRESS):
            skip_if_taken(address)
        with ServerProcess(f"sqlite:///{folder}/data/caseload.db", *arguments) as started:
            yield started


@pytest.fixture
def grpcurl() -> str:
    found = shutil.which("grpcurl", path=search_path())
    if found is None:
        pytest.skip("needs grpcurl: make grpcurl, which needs Go")
    return found


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
def test_every_command_of_the_postgresql_page_does_what_it_shows(
    folder: Path, postgres: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    with ServerProcess(f"sqlite:///{folder}/data/caseload.db") as server:
        assert tour(server.address) == 0
    database = f"caseload_documented_{secrets.token_hex(4)}"
    with_password = urlsplit(postgres.create_database(database))
    userinfo, _, host = with_password.netloc.rpartition("@")
    url = with_password._replace(netloc=f"{userinfo.partition(':')[0]}@{host}").geturl()
    if with_password.password:  # a command line must not contain it
        monkeypatch.setenv("PGPASSWORD", unquote(with_password.password))
    try:
        for block in blocks(ROOT / "docs" / "postgresql.md"):
            text = block.text.replace("postgresql://caseload@127.0.0.1:5432/caseload", url)
            if block.language == "sh":
                check_block(block._replace(text=text), folder)
            elif block.language == "ini":
                with pgbouncer(with_password.geturl(), "session", block.text.partition("[pgbouncer]")[2]) as pooled:
                    run(
                        Block("sh", f"caseload migrate --dry-run --database '{pooled}?options=-cjit%3Doff'", None),
                        folder,
                    )
            else:
                with postgres.connect(database) as connection:
                    assert connection.execute(text.encode()).rowcount == 1
        verified = [
            run(Block("sh", f"caseload verify --database {one}", None), folder).stdout.splitlines()[-1]
            for one in (url, "sqlite:///data/caseload.db")
        ]
        assert verified[0] == verified[1]
        assert verified[0].startswith("digest: sha256:")
    finally:
        postgres.drop_database(database)


@pytest.mark.slow
@pytest.mark.checkout
@pytest.mark.usefixtures("documented_server")
def test_every_snippet_of_the_stubs_readme_does_what_it_shows(folder: Path) -> None:
    snippets = blocks(ROOT / "client" / "README.md")
    assert {snippet.language for snippet in snippets} == {"python", "sh"}
    for snippet in snippets:
        if snippet.language == "python":  # tests/packaging/test_wheels.py runs the commands
            check_block(snippet, folder)


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


@pytest.mark.slow
@pytest.mark.checkout
@pytest.mark.usefixtures("grpcurl")
def test_make_run_prints_a_grpcurl_line_that_works_when_pasted(tmp_path: Path) -> None:
    address = free_address()
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
    command = ["make", "run", f"ADDRESS={address}", f"DATABASE=sqlite:///{folder}/Ann's case & load.db"]
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
