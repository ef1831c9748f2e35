"""SQLite's integrity check of a file."""

from pathlib import Path

import apsw


def damage(database: Path) -> list[object]:
    """The problems that SQLite finds; empty for an intact file."""
    connection = apsw.Connection(str(database))
    try:
        found = [row for row in connection.execute("PRAGMA integrity_check") if row != ("ok",)]
        return [*found, *connection.execute("PRAGMA foreign_key_check")]
    except apsw.CorruptError as error:
        return [error]
    finally:
        connection.close()
