"""All of a store as JSON LogSink: a header, its content, and an end that says what came before.

    {"caseload":{"format":1,"schema":"0002_purged","secret":"..."}}
    {"store":{"head_revision":1204,"oldest_revision":0}}
    {"therapist":{"therapist_id":"...","display_name":"...",...}}
    ...
    {"end":{"rows":{"store":1,"therapist":17,...},"digest":"sha256:..."}}

The digest is of the lines between the first and the last. The store's id stays behind, so that a revision of the one
store is refused by the other; its secret goes along, because remembered request ids are keyed with it.
"""

from collections.abc import Callable
from typing import Final

from caseload_server.store.backends.protocol import Transaction
from caseload_server.store.portability import content
from caseload_server.store.portability.content import TABLES, Tally

FORMAT: Final = 1
SCHEMA: Final = "SELECT MAX(name) FROM migration"
Progress = Callable[[int], None]
"""Told of so much more that is done."""


def export(transaction: Transaction, write: Callable[[bytes], object], progress: Progress) -> Tally:
    """Writes everything as it is in one state of the database, in bits of bounded size. progress is of rows."""
    [(schema,)] = transaction.run(SCHEMA)
    [(secret,)] = transaction.run("SELECT secret FROM store")
    write(_line("caseload", {"format": FORMAT, "schema": schema, "secret": secret.hex()}))
    tally = Tally()
    for table in TABLES:
        for rows in content.pages(transaction, table):
            lines = content.lines(table, rows)
            write(lines)
            tally.add(table, len(rows), lines)
            progress(len(rows))
    write(_line("end", {"rows": tally.rows, "digest": tally.digest}))
    return tally


def count(transaction: Transaction) -> int:
    """How many rows there are to write."""
    return sum(transaction.run(f"SELECT COUNT(*) FROM {table.name}")[0][0] for table in TABLES)


def _line(name: str, values: dict[str, object]) -> bytes:
    return f"{content.dumps({name: values})}\n".encode()
