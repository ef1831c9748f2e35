"""Fills an empty store from the lines that exports.py writes."""

from collections.abc import Iterable
from typing import Final, Protocol

from caseload_server.store.backends.protocol import Row
from caseload_server.store.portability.content import FOUND, TABLES
from caseload_server.store.portability.export import Progress
from caseload_server.store.portability.import_parser import END, HEADER, Batch, ImportRefused

_COLUMNS: Final = {table.name: tuple(table.columns) for table in TABLES} | FOUND


class RuleBroken(Exception):
    """Rows that the schema refuses; the text names the rule or its columns, and no value."""


class Loading(Protocol):
    """A transaction on an empty store that takes many rows at once. Both methods raise RuleBroken."""

    def add(self, table: str, columns: tuple[str, ...], rows: list[Row]) -> None:
        """Adds rows, in the order of the columns."""

    def adopt(self, secret: bytes, head_revision: int, oldest_revision: int) -> None:
        """Makes the store go on where the exported one stopped."""


def load(batches: Iterable[Batch], loading: Loading, progress: Progress) -> str:
    """Adds everything, in bits of bounded size: the digest. Raises ImportRefused. progress is of bytes."""
    secret, digest = b"", ""
    for batch in batches:
        for table, rows in batch.rows.items():
            match table:
                case name if name == HEADER:
                    [(secret,)] = rows
                case "store":
                    loading.adopt(secret, *rows[0])
                case name if name == END:
                    [(digest,)] = rows
                case _:
                    _add(batch, table, rows, loading)
        progress(batch.size)
    return digest


def _add(batch: Batch, table: str, rows: list[Row], loading: Loading) -> None:
    """Raises ImportRefused."""
    try:
        loading.add(table, _COLUMNS[table], rows)
    except RuleBroken as error:
        kind = next(iter(batch.rows))
        raise ImportRefused(f"lines {batch.first} to {batch.last}: break a rule of {kind}: {error}") from None
