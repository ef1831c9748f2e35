"""The pages of docs/clients/ are correct: each is run as written, and its connection survives restarts."""

import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Final, NamedTuple

import pytest

from tests.docs.doc_blocks import ROOT, Block, artifacts, blocks, masked, search_path
from tests.support.missing_tool import NoTool
from tests.support.secure_server import SecureServer
from tests.support.waiting import HUNG_SECONDS

pytestmark = [pytest.mark.slow, pytest.mark.checkout, pytest.mark.usefixtures("proxies")]

PAGES: Final = ROOT / "docs" / "clients"
DRIVERS: Final = Path(__file__).parent / "recipes"
ADDRESS: Final = "caseload.example.org:50051"
"""The address on the pages."""
RESET: Final = "\x1b[0m"
"""Maven prints this even if its output is no terminal."""
CRASHES: Final = (False, True, False, False)
"""For each restart of the server, whether it is killed."""


class Recipe(NamedTuple):
    """A page, and the program of ours that calls until its standard input ends."""

    page: str
    tools: tuple[str, ...]
    driver: tuple[str, str]
    """The file of the program, below tests/docs/recipes/, and its name beside the files of the page."""
    run_driver: str


RECIPES: Final = (
    Recipe("go.md", ("go",), ("go/main.go", "main.go"), "go run ."),
    Recipe("node.md", ("node", "npm"), ("node/main.mjs", "restarts.mjs"), "node restarts.mjs"),
    Recipe(
        "java.md",
        ("java", "mvn"),
        ("java/Restarts.java", "src/main/java/org/example/rota/Restarts.java"),
        "mvn -q -B compile exec:java -Dexec.mainClass=org.example.rota.Restarts",
    ),
)


class Project:
    """A folder in which a page is run."""

    def __init__(self, folder: Path, server: SecureServer) -> None:
        self.folder = folder
        self.server = server
        shutil.copy(server.folder / "ca.pem", folder)
        for artifact in artifacts():
            shutil.copy(artifact, folder)

    def write(self, name: str, text: str) -> None:
        """Writes a file of the page, with the server's address."""
        file = self.folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text.replace(ADDRESS, self.server.address))

    def environment(self) -> dict[str, str]:
        """The environment of the commands: a protoc, and the caller's key."""
        return os.environ | {"PATH": search_path(), "CASELOAD_KEY": self.server.key}

    def shell(self, text: str) -> subprocess.Popen[str]:
        """Starts commands in the folder."""
        return subprocess.Popen(
            ["bash", "-e", "-c", text.replace(ADDRESS, self.server.address)],
            cwd=self.folder,
            env=self.environment(),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )


@pytest.fixture
def project(tmp_path: Path) -> Iterator[Project]:
    """A project of a caller, with the artifact, before a server with TLS and keys."""
    (tmp_path / "server").mkdir()
    (tmp_path / "project").mkdir()
    with SecureServer(tmp_path / "server") as server:
        yield Project(tmp_path / "project", server)


def files(page: Path) -> Iterator[tuple[str, str]]:
    """Yields the files of a page: a block is one if the paragraph above begins with its name."""
    text = page.read_text()
    for block in blocks(page):
        above = text[: text.index(f"```{block.language}\n{block.text}")].rstrip().rpartition("\n\n")[2]
        named = re.match(r"`([\w./-]+\.\w+)`", above)
        if named and block.language != "sh":
            yield named[1], block.text


def commands(page: Path) -> list[Block]:
    return [block for block in blocks(page) if block.language == "sh"]


def run_page(page: Path, project: Project) -> None:
    """Runs the commands of a page in one shell, and compares the output of each block that shows one."""
    for name, text in files(page):
        project.write(name, text)
    shown = commands(page)
    script = "".join(f"echo '<{number}>'\n{block.text}\n" for number, block in enumerate(shown)) + "echo '<end>'\n"
    output, errors = project.shell(script).communicate(timeout=600)
    output = output.replace(RESET, "")
    for number, block in enumerate(shown):
        _, begun, rest = output.partition(f"<{number}>\n")
        assert begun, output + errors
        if block.output is not None:
            assert masked(rest.partition("\n<")[0]) == masked(block.output), output + errors
    assert output.endswith("<end>\n"), output + errors


def check_restarts(recipe: Recipe, project: Project) -> None:
    """Starts the server after the driver, and restarts it while the driver calls: no call may fail."""
    source, name = recipe.driver
    project.write(name, (DRIVERS / source).read_text())
    project.server.stop()
    with project.shell(recipe.run_driver) as driver:
        assert driver.stdin is not None
        assert driver.stdout is not None
        driver.stdout.readline()  # it begins a call that is not retried
        project.server.start()
        for crash in CRASHES:
            if driver.stdout.readline() == "calling\n":  # it prints this after each 20 calls
                project.server.restart(crash=crash)
        driver.stdout.readline()
        output, errors = driver.communicate(timeout=HUNG_SECONDS)
    assert driver.returncode == 0, output + errors
    assert re.search(r"^0 of \d{2,} failed\n", output, re.MULTILINE), output + errors


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda recipe: recipe.page)
def test_a_page_works_as_written_and_no_call_fails_over_restarts(recipe: Recipe, project: Project) -> None:
    for tool in recipe.tools:
        if shutil.which(tool) is None:
            raise NoTool(f"needs {tool}, to run docs/clients/{recipe.page}")
    run_page(PAGES / recipe.page, project)
    check_restarts(recipe, project)
