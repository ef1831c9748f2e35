"""The steps of the schema, numbered .sql files a database: each is applied once, in order, and never changes after."""

import hashlib
from collections.abc import Iterable
from importlib import resources
from typing import NamedTuple


class SchemaError(Exception):
    """The database cannot be used with this version of the server; the text says why."""


class Migration(NamedTuple):
    """One step of the schema."""

    name: str
    sql: str

    @property
    def checksum(self) -> str:
        """SHA-256 of the text, in hex: an applied step must never change."""
        return hashlib.sha256(self.sql.encode()).hexdigest()


def migrations(database: str) -> list[Migration]:
    """All steps this version knows of a database, "sqlite" or "postgres", in order."""
    folder = resources.files(f"caseload_server.store.backends.{database}").joinpath("migrations")
    files = sorted((entry for entry in folder.iterdir() if entry.name.endswith(".sql")), key=lambda entry: entry.name)
    return [Migration(file.name.removesuffix(".sql"), file.read_text()) for file in files]


def unapplied(applied: Iterable[tuple[str, str]], steps: list[Migration]) -> list[Migration]:
    """The steps left to do. applied: name and checksum of each done. Raises SchemaError where it holds others."""
    checksums = {step.name: step.checksum for step in steps}
    for name, checksum in applied:
        if name not in checksums:
            raise SchemaError(f"its schema is newer than this version of caseload (it has {name})")
        if checksums.pop(name) != checksum:
            raise SchemaError(f"its schema step {name} is not the one of this version")
    return [step for step in steps if step.name in checksums]
