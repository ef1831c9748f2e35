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
    "caseload_server.__main__": {"caseload_server.commands.main"},
    "caseload_server.commands.main": WATCHED,
    "caseload_server.rpc.server": WATCHED,
    "caseload_server.config": set(),
    "caseload_server.observability.readiness": {"caseload"},
    "caseload_server.commands.check": {
        "grpc",
        "grpc_health",
        "caseload_server.config",
        "caseload_server.commands.options",
        "caseload_server.observability.readiness",
        "caseload_server.security.tls",
    },
    "caseload_server.observability.metrics": {f"service.{part}" for part in ("config", "errors", "logs", "store")},
    "caseload_server.observability.logs": DRIVERS | {"caseload_server.config"},
    "caseload_server.supervisor": {"caseload_server.config", "caseload_server.observability.metrics"},
    "caseload_server.store.backends.factory": DRIVERS
    | {"caseload_server.config", "caseload_server.domain.errors", "caseload_server.store"},
    "caseload_server.commands.data": DRIVERS | {"service"},
    "caseload_server.commands.options": {"caseload_server.config"},
    "caseload_server.commands.signals": {"apsw"},
    "caseload_server.rpc.executors": {"grpc"},
    "caseload_server.security.principal": set(),
    "caseload_server.security.file_reload": {"caseload_server.config"},
    "caseload_server.security.api_keys": {"caseload_server.security.principal", "caseload_server.config"},
    "caseload_server.security.tls": {"grpc", "caseload_server.config", "caseload_server.security.file_reload"},
    "caseload_server.rpc": WIRE
    | {f"service.{part}" for part in ("interceptors", "errors", "callers", "keys", "fields", "threads")},
    "caseload_server.api": WIRE
    | {
        f"service.{part}"
        for part in ("servicers", "validate", "fields", "convert", "store", "records", "errors", "callers")
    },
    "caseload_server.validation": {
        "caseload_server.validation.rules",
        "caseload_server.domain.errors",
        "caseload_server.domain.records",
        "caseload",
        "google",
    },
    "caseload_server.validation.rules": {
        "caseload_server.domain.errors",
        "caseload_server.domain.records",
        "caseload",
        "google",
    },
    "caseload_server.api.convert": {"caseload_server.domain.records", "caseload", "google"},
    "caseload_server.store": DRIVERS
    | {"caseload_server.store", "caseload_server.domain.records", "caseload_server.domain.errors"},
    "caseload_server.domain.records": set(),
    "caseload_server.domain.errors": set(),
    "client.caseload": {"caseload", "google", "grpc"},
}

VAGUE_NAMES = re.compile(r"(^|_)(utils?|helpers?|common|managers?|base|misc)(_|$)")
REGISTRY_OR_HOME = re.compile(
    r"pypi\.org|pythonhosted\.org|(?:proxy|sum)\.golang\.org|registry\.npmjs\.org"
    r"|(?<!no-emit-)index[-]url|find[-]links[ =]+https?:|(?<![\w.])/(?:home|root|Users|work)/"
)


def source_files() -> list[Path]:
    return sorted([*(ROOT / "service").rglob("*.py"), *(ROOT / "client" / "caseload").rglob("*.py")])


def module_name(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def imported_names(source: str) -> Iterator[str]:
    """Full names: `from service import errors` is caseload_server.domain.errors. A relative import is no part, so it is refused."""
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
        ("caseload_server.config", "import caseload_server.domain.errors"),
        ("caseload_server.domain.errors", "import grpc"),
        ("caseload_server.domain.errors", "from service import records"),
        ("caseload_server.domain.records", "from caseload.v1 import resources_pb2"),
        ("caseload_server.validation", "from caseload_server.store import people"),
        ("caseload_server.validation", "import grpc"),
        ("caseload_server.validation", "from service import convert"),
        ("caseload_server.api.convert", "from service import store"),
        ("caseload_server.api.convert", "import grpc"),
        ("caseload_server.store.records", "import grpc.aio"),
        ("caseload_server.store.records", "def late():\n    from caseload.v1 import resources_pb2"),
        ("caseload_server.store.records", "from google.protobuf import message"),
        ("caseload_server.store.records", "from service import validate"),
        ("caseload_server.store.records", "from . import sqlite"),
        ("caseload_server.api.therapists", "import apsw"),
        ("caseload_server.api.therapists", "from psycopg import rows"),
        ("caseload_server.api.therapists", "from caseload_server.rpc import limits"),
        ("caseload_server.api.therapists", "from service import server"),
        ("caseload_server.rpc.limits", "from caseload_server.store import sqlite"),
        ("caseload_server.rpc.limits", "from caseload_server.api import therapists"),
        ("caseload_server.__main__", "from service import server"),
        ("service.a_new_part", "from service import store"),
        ("client.caseload.client.errors", "from grpc_status import rpc_status"),
        ("client.caseload.client.channel", "from caseload_server.config import Config"),
        ("service", "from service import cli"),
    ],
)
def test_an_import_against_the_direction_is_found(module: str, source: str) -> None:
    assert len(forbidden_imports(module, source)) == 1


def test_imports_along_the_direction_are_let_by() -> None:
    assert (
        forbidden_imports("caseload_server.store.records", "import apsw, json\nfrom service import errors, records")
        == []
    )
    assert (
        forbidden_imports("caseload_server.api.therapists", "import grpc\nfrom caseload_server.validation import rule")
        == []
    )
    assert (
        forbidden_imports(
            "caseload_server.commands.main", "from caseload_server.rpc.server import build_server\nimport grpc, apsw"
        )
        == []
    )


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
    return [path for path in ROOT.rglob("*") if path.is_file() and ignored.isdisjoint(path.relative_to(ROOT).parts)]
