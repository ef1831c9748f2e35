"""Schema migrations: numbered .sql files per database. Each is applied once, in order, and never changes afterwards."""

import hashlib
import secrets
from collections.abc import Callable, Iterable
from importlib import resources
from typing import NamedTuple

from caseload_server.store.backends.protocol import Transaction

SELECT_STEPS = "SELECT name, checksum FROM migration ORDER BY name"
_INSERT_APPLIED = "INSERT INTO migration (name, checksum) VALUES (:name, :checksum)"
_INSERT_STORE = """
INSERT INTO store (singleton, store_id, secret, head_revision, oldest_revision)
VALUES (1, :store_id, :secret, 0, 0) ON CONFLICT DO NOTHING"""
_ALONE = "-- alone"
SERVED = "is served: stop its instances first"


class SchemaError(Exception):
    """This version of the server cannot use the database. The text says why."""


class Migration(NamedTuple):
    """One step of the schema."""

    name: str
    sql: str

    @property
    def checksum(self) -> str:
        """Returns the SHA-256 of the text, in hex. An applied step must never change."""
        return hashlib.sha256(self.sql.encode()).hexdigest()

    @property
    def runs_alone(self) -> bool:
        """Whether no instance may be connected, because it could not work beside this step."""
        return self.sql.startswith(_ALONE)


def migrations(database: str) -> list[Migration]:
    """Returns all steps of this version for a database, "sqlite" or "postgres", in order."""
    folder = resources.files(f"caseload_server.store.backends.{database}").joinpath("migrations")
    files = sorted((entry for entry in folder.iterdir() if entry.name.endswith(".sql")), key=lambda entry: entry.name)
    return [Migration(file.name.removesuffix(".sql"), file.read_text()) for file in files]


def unapplied(applied: Iterable[tuple[str, str]], steps: list[Migration]) -> list[Migration]:
    """Returns the steps that are still to run.

    Args: applied, the name and checksum of each applied step. Raises SchemaError for a step that is unknown or differs.
    """
    checksums = {step.name: step.checksum for step in steps}
    for name, checksum in applied:
        if name not in checksums:
            raise SchemaError(f"its schema is newer than this version of caseload (it has {name})")
        if checksums.pop(name) != checksum:
            raise SchemaError(f"its schema step {name} is not the one of this version")
    return [step for step in steps if step.name in checksums]


def must_run_alone(todo: list[Migration], steps: list[Migration]) -> bool:
    """Returns whether no instance may be connected. Args: todo, those of the steps that are still to run."""
    return todo != steps and any(step.runs_alone for step in todo)  # an empty database has no instance


def apply(steps: list[Migration], prepare: str, transaction: Transaction, run_script: Callable[[str], object]) -> None:
    """Runs and records steps in the caller's transaction. A new store gets an id and a secret.

    Args: prepare, a script that runs first unless there are no steps; run_script, runs a script in the transaction.
    """
    if not steps:
        return
    run_script(prepare)
    for step in steps:
        run_script(step.sql)
        transaction.run(_INSERT_APPLIED, {"name": step.name, "checksum": step.checksum})
    transaction.run(_INSERT_STORE, {"store_id": secrets.token_hex(6), "secret": secrets.token_bytes(32)})
