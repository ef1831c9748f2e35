"""The links, tables, settings and texts of README.md and docs/ are correct."""

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from caseload.v1 import change_service_pb2 as change_pb
from caseload_server.rpc.status_map import CODES
from caseload_server.store.portability.chain_check import CUT, HEAD, KEPT, LINKS
from google.protobuf import json_format
from google.rpc.code_pb2 import Code

from tests.docs import errors_page
from tests.docs.doc_blocks import OPERATIONS, ROOT, blocks
from tests.docs.page_checks import PAGES, name
from tests.support.waiting import HUNG_SECONDS

CHECKOUT_PAGES = [*PAGES, *(ROOT / name for name in ("CONTRIBUTING.md", "SECURITY.md", "client/README.md"))]


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


def described_modules(page: str) -> set[str]:
    """The modules of the server in the tables of a page, as paths. The heading of a table names the folder."""
    found = set()
    for folder, rows in re.findall(r"^\| in `([^`]+/)` \|.*\n\|---\|---\|\n((?:\|.*\n)+)", page, re.MULTILINE):
        cells = [row.split("|")[1] for row in rows.splitlines()]
        prefix = folder.removeprefix("service/caseload_server/")
        found |= {f"{prefix}{module}" for cell in cells for module in re.findall(r"`(\w+\.py)`", cell)}
    return found


@pytest.mark.checkout
def test_the_architecture_page_describes_every_module_of_the_server() -> None:
    package = ROOT / "service" / "caseload_server"
    modules = {str(path.relative_to(package)) for path in package.rglob("*.py") if not path.stem.startswith("__")}
    described = described_modules((ROOT / "docs" / "architecture.md").read_text())
    assert {path for path in described if not path.startswith("client/")} == modules


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


def test_the_page_on_the_change_log_lists_the_rules_of_the_chain() -> None:
    text = (OPERATIONS / "change-log.md").read_text()
    assert [rule for rule in (LINKS, HEAD, CUT, KEPT) if f"`broken: {rule}" not in text] == []
