"""Which code may depend on which, what files may be called, and what no file may hold."""

import ast
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest

pytestmark = pytest.mark.checkout

ROOT = Path(__file__).parents[1]

WIRE = {"caseload", "google", "grpc", "grpc_health", "grpc_reflection", "grpc_status"}
DRIVERS = {"apsw", "psycopg", "psycopg_pool"}
WATCHED = {"service"} | WIRE | DRIVERS

# Of the watched names, what each part may import; the standard library and other packages are its own affair.
MAY_IMPORT: dict[str, set[str]] = {
    "service": set(),
    "service.__main__": {"service.cli"},
    "service.cli": WATCHED,
    "service.server": WATCHED,
    "service.config": set(),
    "service.readiness": {"caseload"},
    "service.check": {"grpc", "grpc_health", "service.config", "service.options", "service.readiness", "service.tls"},
    "service.metrics": {f"service.{part}" for part in ("config", "errors", "logs", "store")},
    "service.logs": DRIVERS | {"service.config"},
    "service.workers": {"service.config", "service.metrics"},
    "service.opening": DRIVERS | {"service.config", "service.errors", "service.store"},
    "service.data_commands": DRIVERS | {"service"},
    "service.options": {"service.config"},
    "service.interrupts": {"apsw"},
    "service.threads": {"grpc"},
    "service.callers": set(),
    "service.reloading": {"service.config"},
    "service.keys": {"service.callers", "service.config"},
    "service.tls": {"grpc", "service.config", "service.reloading"},
    "service.interceptors": WIRE
    | {f"service.{part}" for part in ("interceptors", "errors", "callers", "keys", "fields", "threads")},
    "service.servicers": WIRE
    | {
        f"service.{part}"
        for part in ("servicers", "validate", "fields", "convert", "store", "records", "errors", "callers")
    },
    "service.validate": {"service.fields", "service.errors", "service.records", "caseload", "google"},
    "service.fields": {"service.errors", "service.records", "caseload", "google"},
    "service.convert": {"service.records", "caseload", "google"},
    "service.store": DRIVERS | {"service.store", "service.records", "service.errors"},
    "service.records": set(),
    "service.errors": set(),
    "client.caseload": {"caseload", "google", "grpc"},
}

VAGUE_NAMES = re.compile(r"(^|_)(utils?|helpers?|common|managers?|base|misc)(_|$)")
REGISTRY_OR_HOME = re.compile(
    r"pypi\.org|pythonhosted\.org|(?:proxy|sum)\.golang\.org|registry\.npmjs\.org"
    r"|(?<!no-emit-)index[-]url|find[-]links|(?<![\w.])/(?:home|root|Users|work)/"
)


def source_files() -> list[Path]:
    return sorted([*(ROOT / "service").rglob("*.py"), *(ROOT / "client" / "caseload").rglob("*.py")])


def module_name(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def imported_names(source: str) -> Iterator[str]:
    """Full names: `from service import errors` is service.errors. A relative import is no part, so it is refused."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            origin = "service.(relative)" if node.level else node.module
            yield from (f"{origin}.{alias.name}" for alias in node.names)


def within(name: str, parts: Iterable[str]) -> bool:
    return any(name == part or name.startswith(f"{part}.") for part in parts)


def forbidden_imports(module: str, source: str) -> list[str]:
    part = max((part for part in MAY_IMPORT if within(module, [part])), key=len)
    names = set(imported_names(source))
    return sorted(name for name in names if within(name, WATCHED) and not within(name, MAY_IMPORT[part]))


@pytest.mark.parametrize("path", source_files(), ids=module_name)
def test_a_module_imports_only_what_its_part_may(path: Path) -> None:
    assert forbidden_imports(module_name(path), path.read_text()) == []


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("service.config", "import service.errors"),
        ("service.errors", "import grpc"),
        ("service.errors", "from service import records"),
        ("service.records", "from caseload.v1 import resources_pb2"),
        ("service.validate", "from service.store import people"),
        ("service.validate", "import grpc"),
        ("service.validate", "from service import convert"),
        ("service.convert", "from service import store"),
        ("service.convert", "import grpc"),
        ("service.store.people", "import grpc.aio"),
        ("service.store.people", "def late():\n    from caseload.v1 import resources_pb2"),
        ("service.store.people", "from google.protobuf import message"),
        ("service.store.people", "from service import validate"),
        ("service.store.people", "from . import sqlite"),
        ("service.servicers.therapists", "import apsw"),
        ("service.servicers.therapists", "from psycopg import rows"),
        ("service.servicers.therapists", "from service.interceptors import limits"),
        ("service.servicers.therapists", "from service import server"),
        ("service.interceptors.limits", "from service.store import sqlite"),
        ("service.interceptors.limits", "from service.servicers import therapists"),
        ("service.__main__", "from service import server"),
        ("service.a_new_part", "from service import store"),
        ("client.caseload.client.refusals", "from grpc_status import rpc_status"),
        ("client.caseload.client.connecting", "from service.config import Config"),
        ("service", "from service import cli"),
    ],
)
def test_an_import_against_the_direction_is_found(module: str, source: str) -> None:
    assert len(forbidden_imports(module, source)) == 1


def test_imports_along_the_direction_are_let_by() -> None:
    assert forbidden_imports("service.store.people", "import apsw, json\nfrom service import errors, records") == []
    assert forbidden_imports("service.servicers.therapists", "import grpc\nfrom service.validate import rule") == []
    assert forbidden_imports("service.cli", "from service.server import build_server\nimport grpc, apsw") == []


def test_every_part_of_the_table_is_there() -> None:
    modules = [module_name(path) for path in source_files()]
    assert [part for part in MAY_IMPORT if not any(within(module, [part]) for module in modules)] == []


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
        "--find" + "-links wheels",
        "GOPROXY=https://" + "proxy" + ".golang.org",
        "cd " + "/home" + "/ann/caseload",
        "file://" + "/root" + "/caseload",
    ],
)
def test_a_registry_or_a_home_folder_is_found(text: str) -> None:
    assert REGISTRY_OR_HOME.search(text)


def checkout_files() -> list[Path]:
    """All that could be committed: what .gitignore does not name."""
    ignored = {line.strip("/") for line in (ROOT / ".gitignore").read_text().splitlines()} | {".git"}
    return [path for path in ROOT.rglob("*") if path.is_file() and ignored.isdisjoint(path.relative_to(ROOT).parts)]
