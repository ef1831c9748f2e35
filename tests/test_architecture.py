"""Which code may depend on which."""

import ast
import re
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest

pytestmark = pytest.mark.checkout

ROOT = Path(__file__).parents[1]

SERVER = "caseload_server"
WIRE = {"caseload", "google", "grpc", "grpc_health", "grpc_reflection", "grpc_status"}
DRIVERS = {"apsw", "psycopg", "psycopg_pool"}
STORE = {"RelationshipStore", "PATIENT", "THERAPIST", "PATIENT_HISTORY", "THERAPIST_HISTORY", "ASSIGNMENT_HISTORY"}
"""What the rest of the server sees of the store."""
VERBS = {
    *(
        "assignment_lists",
        "assignments",
        "atomic_file",
        "batches",
        "change_log",
        "checks",
        "corrections",
        "counts",
        "endings",
        "expiry",
        "filters",
        "finished_periods",
        "idempotency",
        "known_at",
        "identifiers",
        "key_catch_up",
        "lists",
        "merges",
        "overlaps",
        "outcome_expiry",
        "pages",
        "purges",
        "record_selects",
        "record_sizes",
        "records",
        "search",
    ),
    *(
        "relationship_store",
        "hash_chain",
        "store_identity",
        "version_images",
        "version_purge",
        "versions",
        "transfers",
        "write_transaction",
        "backends.protocol",
    ),
}
"""The store's own modules, without the databases."""

# What each package or module may import beyond the standard library. The entry with the longest name counts.
# A module without an entry may import nothing. A name that begins with a dot is one of the server's.
MAY_IMPORT: dict[str, set[str]] = {
    "": set(),
    "__main__": {".commands.early_signals", ".commands.main", ".commands.standard_streams"},
    "clock": set(),
    "config": {".file_mode"},
    "file_mode": set(),
    "memory_arenas": set(),
    "open_files": {".config", ".domain.limits"},
    "private_files": {".config"},
    "write_faults": set(),
    "listening": set(),
    "domain": {".domain"},
    "domain.text_folding": {".domain.limits", "anyascii", "regex"},
    # the store
    "store": {*(f".store.{name}" for name in VERBS), ".domain", "uuid_utils"},
    "store.expiry_sweeper": {".store.repeated_work", "structlog"},
    "store.key_maker": {".store.repeated_work", "structlog"},
    "store.repeated_work": set(),
    "store.backends": {".store.backends.protocol", ".domain.errors"},
    "store.backends.full_disk": {"structlog"},
    "store.backends.factory": {".store", ".config", ".private_files", ".write_faults", ".domain.errors", *DRIVERS},
    "store.backends.sqlite": {".store.backends", ".store.portability", ".store.atomic_file", ".domain", "apsw"},
    "store.backends.sqlite.write_health": {".store.backends.sqlite.driver_errors", "apsw", "structlog"},
    "store.backends.postgres": {
        ".store.backends",
        ".store.portability",
        ".domain.errors",
        ".domain.call_deadline",
        "psycopg",
    },
    "store.portability": {
        ".store.backends.protocol",
        ".store.portability",
        ".store.hash_chain",
        ".store.search",
        ".store.version_images",
        ".domain",
    },
    # from a request to the store
    "validation": {".validation", ".domain", "caseload", "google"},
    "api": {
        *(".api", ".validation", ".domain", ".security.principal", ".security.on_behalf_of"),
        *("caseload", "google", "grpc", "structlog"),
        *(f".store.{name}" for name in STORE),
    },
    "api.convert": {".domain", "caseload", "google"},
    "api.page_tokens": {".validation", ".domain", "cryptography", "google"},
    # around a call
    "security": {".security", ".config", ".domain.errors", ".private_files", "grpc"},
    "security.certificates": {"cryptography"},
    "security.proxies": {".config"},
    "security.file_reload": {".config", "structlog"},
    "security.issuer_keys": {".domain.limits", "cryptography", "jwt", "structlog"},
    "security.tokens": {".security", ".config", ".domain", "jwt"},
    "security.keys_file": {".security", ".config", ".private_files", "structlog"},
    "security.principal": set(),
    "security.on_behalf_of": {".security.principal", ".domain", "grpc"},
    "security.auth": {".security", ".domain.errors", *WIRE},
    "security.redaction": {".security.principal", ".domain.errors", "google"},
    "observability": {".observability", ".config", ".domain"},
    "observability.access_log": {
        *(".observability", ".domain", ".security.principal", "google", "grpc", "grpc_health", "structlog"),
    },
    "observability.anonymous_lines": {".domain.limits", "structlog"},
    "observability.audited_ids": {".domain.limits", "google"},
    "observability.clock_watch": {".clock", "structlog"},
    "observability.connections": {"structlog"},
    "observability.head_log": {".domain.results", "structlog"},
    "observability.log_file": set(),
    "observability.logs": {".config", ".observability.log_file", "psycopg", "structlog"},
    "observability.metrics": {".observability", ".domain.errors", ".store.backends.protocol", "prometheus_client"},
    "observability.metrics_page": {".config", ".listening", "prometheus_client"},
    "observability.tracing": {".config", ".store.backends.protocol", "grpc", "opentelemetry", "structlog"},
    "observability.readiness": {"caseload", "structlog"},
    "rpc": {".rpc", ".config", ".domain", "structlog", *WIRE},
    "rpc.channel_options": {".config", ".domain.limits", ".open_files"},
    "rpc.admission": {".rpc", ".domain", ".security.proxies", "grpc"},
    "rpc.pipeline": {
        *(".rpc", ".security", ".observability.access_log", ".validation.request_sizes", ".domain", "structlog"),
        *WIRE,
    },
    "rpc.server": {
        *(".rpc", ".api", ".store", ".security", ".observability", ".config", ".clock", ".open_files"),
        *(".listening", "structlog"),
        *WIRE,
    },
    "rpc.reloadable_files": {
        *(".config", ".observability.log_file", ".observability.logs", ".private_files", ".write_faults"),
        *(".security.keys_file", ".security.tls", "grpc", "structlog"),
    },
    "testing": {
        *(".config", ".domain.errors", ".observability.logs", ".open_files", ".rpc.server"),
        *(".security.principal", ".store"),
    },
    # processes
    "supervisor": {".config", ".listening", ".observability", "structlog"},
    "commands": {"click", ".commands", ".config"},
    "commands.audited": {
        *("click", ".commands", ".config", ".observability.log_file", ".observability.logs", ".private_files"),
        ".write_faults",
    },
    "commands.backup": {
        *(
            "click",
            ".commands",
            ".config",
            ".file_mode",
            ".store.backends",
            ".store.portability",
            ".write_faults",
            "apsw",
        ),
    },
    "commands.check": {
        "click",
        ".commands",
        ".config",
        ".observability.readiness",
        ".private_files",
        ".security.tls",
        "grpc",
        "grpc_health",
    },
    "commands.keys": {
        *("click", ".clock", ".commands", ".config"),
        *(".security.api_keys", ".security.keys_file", ".security.principal"),
    },
    "commands.migrate": {"click", ".commands", ".config", ".store"},
    "commands.export_import_verify": {"click", ".commands", ".config", ".domain.results", ".store", ".write_faults"},
    "commands.log": {"click", ".commands", ".store.change_log"},
    "commands.purge": {
        *("click", ".commands", ".config", ".clock", ".domain.errors", ".domain.id_formats", ".store", "apsw"),
        ".store.purges",
    },
    "commands.serve": {
        "click",
        ".commands",
        ".config",
        ".memory_arenas",
        ".open_files",
        ".supervisor",
        ".rpc.server",
        ".observability.logs",
        "structlog",
    },
    "commands.signals": {".commands.standard_streams", "apsw", "click", "structlog"},
    "commands.snapshots": {".config", ".store"},
    "commands.standard_streams": {".config", ".write_faults"},
}
CLIENT_MAY_IMPORT = {"caseload", "google", "grpc"}
AIO_CLIENT = "caseload.client.aio"
"""The only part of the client that imports grpc.aio, and that nothing else of it imports."""
PRIVATE_GRPC = re.compile(r"^grpc\.(_|.*\._)")
"""Names that grpcio does not promise to keep."""
GRPCIO_COMPAT = "caseload_server.rpc.grpcio_compat"


def source_files() -> list[Path]:
    return sorted([*(ROOT / "service").rglob("*.py"), *(ROOT / "client" / "caseload").rglob("*.py")])


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts[1:]
    return ".".join(parts).removesuffix(".__init__")


def imported_names(source: str) -> Iterator[str]:
    """Full names: `from a import b` is a.b. A relative import counts as one of the whole server, so it is refused."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            origin = f"{SERVER}.(relative)" if node.level else node.module
            yield from (f"{origin}.{alias.name}" for alias in node.names)


def within(name: str, parts: Iterable[str]) -> bool:
    return any(name == part or name.startswith(f"{part}.") for part in parts)


def allowed(module: str) -> set[str]:
    """The full names that a module may import."""
    if not within(module, [SERVER]):
        return CLIENT_MAY_IMPORT | ({"pytest"} if within(module, ["caseload.testing"]) else set())
    place = module.removeprefix(SERVER).removeprefix(".")
    entry = max((entry for entry in MAY_IMPORT if entry == "" or within(place, [entry])), key=len)
    return {f"{SERVER}{name}" if name.startswith(".") else name for name in MAY_IMPORT[entry]}


def forbidden_imports(module: str, source: str) -> list[str]:
    names = {name for name in imported_names(source) if name.partition(".")[0] not in sys.stdlib_module_names}
    refused = {name for name in names if not within(name, allowed(module))}
    if not within(module, [SERVER, AIO_CLIENT]):
        refused |= {name for name in names if within(name, ["grpc.aio", AIO_CLIENT])}
    if module != GRPCIO_COMPAT:
        refused |= {name for name in names if PRIVATE_GRPC.match(name)}
    return sorted(refused)


@pytest.mark.parametrize("path", source_files(), ids=module_name)
def test_a_module_imports_only_what_it_may(path: Path) -> None:
    assert forbidden_imports(module_name(path), path.read_text()) == []


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("config", "import caseload_server.domain.errors"),
        ("domain.errors", "import grpc"),
        ("domain.errors", "from caseload_server import config"),
        ("domain.records", "from caseload.v1 import resources_pb2"),
        ("validation", "from caseload_server.store import records"),
        ("validation", "import grpc"),
        ("validation", "from caseload_server.api import convert"),
        ("api.convert", "from caseload_server import store"),
        ("api.convert", "import grpc"),
        ("api.therapist_service", "import apsw"),
        ("api.therapist_service", "from psycopg import rows"),
        ("api.therapist_service", "from caseload_server.rpc import pipeline"),
        ("api.therapist_service", "from caseload_server.observability import logs"),
        ("store.records", "import grpc.aio"),
        ("store.records", "def late():\n    from caseload.v1 import resources_pb2"),
        ("store.records", "from google.protobuf import message"),
        ("store.records", "from caseload_server import validation"),
        ("store.records", "from caseload_server.security import principal"),
        ("store.records", "from . import sqlite"),
        ("store.records", "import apsw"),
        ("store.backends.sqlite.database", "import psycopg"),
        ("store.backends.group_commit", "import apsw"),
        ("rpc.executors", "from caseload_server.store import RelationshipStore"),
        ("rpc.executors", "from grpc import _server"),
        ("api.therapist_service", "from caseload_server.store.backends.postgres import database"),
        ("store.records", "from caseload_server.store.backends.sqlite import database"),
        ("store.records", "from caseload_server.store.backends import factory"),
        ("store.lists", "from caseload_server.store.portability import verify"),
        ("domain.errors", "import structlog"),
        ("validation.rules", "import click"),
        ("rpc.server", "from grpc._cython import cygrpc"),
        ("rpc.pipeline", "from caseload_server.api import therapist_service"),
        ("supervisor", "from caseload_server.rpc import server"),
        ("commands.main", "from caseload_server.rpc import server"),
        ("commands.keys", "from caseload_server.store import RelationshipStore"),
        ("commands.migrate", "import grpc"),
        ("__main__", "from caseload_server.rpc import server"),
        ("a_new_module", "from caseload_server import store"),
        ("", "from caseload_server.commands import main"),
    ],
)
def test_an_import_against_the_direction_is_found(module: str, source: str) -> None:
    assert len(forbidden_imports(f"{SERVER}.{module}".removesuffix("."), source)) == 1


@pytest.mark.parametrize(
    "source", ["import grpc.aio", "from grpc import aio", "from caseload.client.aio import connect"]
)
def test_an_import_of_asyncio_into_the_synchronous_client_is_found(source: str) -> None:
    assert len(forbidden_imports("caseload.client.errors", source)) == 1
    assert forbidden_imports("caseload.client.aio.calls", source) == []


@pytest.mark.parametrize("source", ["from grpc_status import rpc_status", "from caseload_server.config import Config"])
def test_an_import_of_the_client_that_callers_would_have_to_install_is_found(source: str) -> None:
    assert len(forbidden_imports("caseload.client.errors", source)) == 1


def test_imports_along_the_direction_are_allowed() -> None:
    wanted = "import json\nfrom caseload_server.domain import errors, records"
    assert forbidden_imports("caseload_server.store.records", wanted) == []
    wanted = "import grpc\nfrom caseload_server.validation import rules"
    assert forbidden_imports("caseload_server.api.therapist_service", wanted) == []
    assert forbidden_imports(GRPCIO_COMPAT, "from grpc import _server") == []


def test_every_entry_of_the_table_is_a_module_or_a_package() -> None:
    modules = [module_name(path).removeprefix(SERVER).removeprefix(".") for path in source_files()]
    assert [entry for entry in MAY_IMPORT if entry and not any(within(module, [entry]) for module in modules)] == []
