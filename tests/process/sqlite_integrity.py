"""What SQLite itself finds wrong with a file."""

from pathlib import Path

import apsw


def damage(database: Path) -> list[object]:
    """Empty where nothing is."""
    connection = apsw.Connection(str(database))
    try:
        found = [row for row in connection.execute("PRAGMA integrity_check") if row != ("ok",)]
        return [*found, *connection.execute("PRAGMA foreign_key_check")]
    except apsw.CorruptError as error:
        return [error]
    finally:
        connection.close()
