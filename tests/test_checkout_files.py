"""What files may be called, and what no file may hold."""

import os
import re
from pathlib import Path

import pytest

pytestmark = pytest.mark.checkout

ROOT = Path(__file__).parents[1]
VAGUE_NAMES = re.compile(r"(^|_)(utils?|helpers?|common|managers?|base|misc)(_|$)")
REGISTRY_OR_HOME = re.compile(
    r"py[p]i\.org|pythonho[s]ted\.org|(?:proxy|sum)\.go[l]ang\.org|registry\.npm[j]s\.org"
    r"|(?<!no-emit-)index[-]url|find[-]links[ =]+https?:|(?<![\w.])/(?:home|root|Users|work)/"
)


def test_no_file_has_a_name_that_says_nothing() -> None:
    assert [path for path in checkout_files() if VAGUE_NAMES.search(path.stem)] == []


@pytest.mark.parametrize("name", ["utils", "test_helpers", "common", "store_manager", "base", "base_servicer"])
def test_a_name_that_says_nothing_is_found(name: str) -> None:
    assert VAGUE_NAMES.search(name)


def test_no_file_names_a_registry_or_a_home_folder() -> None:
    found = [(path, REGISTRY_OR_HOME.search(path.read_text(errors="replace"))) for path in checkout_files()]
    assert [f"{path}: {match[0]}" for path, match in found if match] == []


@pytest.mark.parametrize(
    "text",
    [
        "https://" + "pypi" + ".org/simple",
        "--extra-" + "index" + "-url https://example.com",
        "--find" + "-links https://example.com/wheels",
        "GOPROXY=https://" + "proxy" + ".golang.org",
        "cd " + "/home" + "/ann/caseload",
        "file://" + "/root" + "/caseload",
    ],
)
def test_a_registry_or_a_home_folder_is_found(text: str) -> None:
    assert REGISTRY_OR_HOME.search(text)


def test_a_local_folder_of_wheels_is_no_registry() -> None:
    assert not REGISTRY_OR_HOME.search("pip install --find-links dist caseload-client")


def checkout_files() -> list[Path]:
    """All that could be committed: what .gitignore does not name."""
    ignored = {line.strip("/") for line in (ROOT / ".gitignore").read_text().splitlines()} | {".git"}
    found = []
    for folder, folders, files in os.walk(ROOT):
        folders[:] = {*folders} - ignored  # os.walk does not enter the ignored ones
        found += [Path(folder, name) for name in files if name not in ignored]
    return found
