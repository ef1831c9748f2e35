"""Loads parsed export lines into an empty store."""

from collections.abc import Iterable
from typing import Final, Protocol

from caseload_server.store.backends.protocol import Row, Value
from caseload_server.store.portability.content import SEARCH_TABLES, TABLES
from caseload_server.store.portability.export import Progress
from caseload_server.store.portability.import_lines import ImportRefused
from caseload_server.store.portability.import_parser import END, HEADER, Batch
from caseload_server.store.search import KEY_COLUMNS

_COLUMNS: Final = {
    table.name: (*table.columns, *(KEY_COLUMNS if "display_name" in table.columns else ())) for table in TABLES
} | SEARCH_TABLES


class ConstraintViolation(Exception):
    """The schema rejects rows. The text names the constraint or its columns, and no value."""


class BulkLoad(Protocol):
    """A transaction on an empty store that inserts many rows at once. Both methods raise ConstraintViolation."""

    def add(self, table: str, columns: tuple[str, ...], rows: list[Row]) -> None:
        """Inserts rows. Args: columns, in the order of the rows' values."""

    def run(self, sql: str) -> None:
        """Runs a statement on the inserted rows."""

    def set_store_row(self, columns: dict[str, Value]) -> None:
        """Sets the secret, the revisions and the hashes of the exported store: this store continues its change log."""


def load(batches: Iterable[Batch], bulk_load: BulkLoad, progress: Progress) -> str:
    """Loads all batches and returns the digest. Raises ImportRefused.

    Args: progress, is called with bytes.
    """
    secret, digest = b"", ""
    for batch in batches:
        for table, rows in batch.rows.items():
            match table:
                case name if name == HEADER:
                    [(secret,)] = rows
                case "store":
                    bulk_load.set_store_row({"secret": secret, **dict(zip(_COLUMNS[table], rows[0], strict=True))})
                case name if name == END:
                    [(digest,)] = rows
                case _:
                    _add(batch, table, rows, bulk_load)
        progress(batch.size)
    for kind in ("therapist", "patient"):
        bulk_load.run(_release_double_keys(kind))
    return digest


def _release_double_keys(kind: str) -> str:
    """Returns the UPDATE that leaves each key of an identifier to the oldest of several live records with it."""
    table, key = f"{kind}_identifier", f"{kind}_id, system, value"
    return f"""
UPDATE {table} SET holds_key = NULL WHERE ({key}) IN (
    SELECT {key} FROM (
        SELECT found.{kind}_id, found.system, found.value, ROW_NUMBER() OVER (
            PARTITION BY found.system, found.value_key ORDER BY record.created_us, record.{kind}_id, found.value
        ) AS place
        FROM {table} AS found JOIN {kind} AS record ON record.{kind}_id = found.{kind}_id
        WHERE found.holds_key = 1 AND (found.system, found.value_key) IN (
            SELECT system, value_key FROM {table} WHERE holds_key = 1 GROUP BY system, value_key HAVING COUNT(*) > 1)
    ) AS ranked WHERE place > 1)"""


def _add(batch: Batch, table: str, rows: list[Row], bulk_load: BulkLoad) -> None:
    """Inserts rows of a batch. Raises ImportRefused."""
    try:
        bulk_load.add(table, _COLUMNS[table], rows)
    except ConstraintViolation as error:
        kind = next(iter(batch.rows))
        raise ImportRefused(f"lines {batch.first} to {batch.last}: violate a constraint of {kind}: {error}") from None
