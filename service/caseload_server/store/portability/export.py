"""Exports a store as JSON Lines: a header, the content, and an end line with row counts and a digest.

    {"caseload":{"format":1,"schema":"0002_purged","secret":"..."}}
    {"store":{"head_revision":1204,"oldest_revision":0}}
    {"therapist":{"therapist_id":"...","display_name":"...",...}}
    ...
    {"end":{"rows":{"store":1,"therapist":17,...},"digest":"sha256:..."}}

The digest covers the lines between the first and the last. The store's id is not exported, so that one store rejects
the revisions of the other. The secret is exported, because remembered request ids are keyed with it.
"""

from collections.abc import Callable
from typing import Final

from caseload_server.store.backends.protocol import Transaction
from caseload_server.store.portability import content
from caseload_server.store.portability.content import TABLES, ContentDigest

FORMAT: Final = 1
"""Version of the export format."""
_SELECT_SCHEMA: Final = "SELECT MAX(name) FROM migration"
Progress = Callable[[int], None]
"""Called with the amount of work done since the last call."""


def export(transaction: Transaction, write: Callable[[bytes], object], progress: Progress) -> ContentDigest:
    """Writes one state of the database, in parts of bounded size.

    Args: write, takes lines; progress, is called with rows. Returns the digest of the content.
    """
    [(schema,)] = transaction.run(_SELECT_SCHEMA)
    [(secret,)] = transaction.run("SELECT secret FROM store")
    write(_line("caseload", {"format": FORMAT, "schema": schema, "secret": secret.hex()}))
    content_digest = ContentDigest()
    for table in TABLES:
        for rows in content.pages(transaction, table):
            lines = content.to_lines(table, rows)
            write(lines)
            content_digest.add(table, len(rows), lines)
            progress(len(rows))
    write(_line("end", {"rows": content_digest.row_counts, "digest": content_digest.digest}))
    return content_digest


def count(transaction: Transaction) -> int:
    """Returns the number of rows to export."""
    return sum(transaction.run(f"SELECT COUNT(*) FROM {table.name}")[0][0] for table in TABLES)


def _line(name: str, values: dict[str, object]) -> bytes:
    return f"{content.dumps({name: values})}\n".encode()
