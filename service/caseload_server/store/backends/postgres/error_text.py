"""What of the driver's errors may be shown to an operator: never a row, and never a password."""

import re
from typing import Final

import psycopg

_ABOUT_NO_ROW: Final = ("08", "25", "28", "3D", "3F", "42", "53", "55", "57")
"""Classes of SQLSTATEs whose message names objects, roles and limits only. Others can quote values.
https://www.postgresql.org/docs/current/errcodes-appendix.html"""
_QUOTED: Final = re.compile(r'"([^"]*)"')
_MAX_LENGTH: Final = 500


def one_line(error: psycopg.Error, url: str = "") -> str:
    """Returns the error's text in one line: libpq's own where it has no SQLSTATE, or PostgreSQL's where that is safe.

    Args: url, whose password is left out. A password with an unescaped @ or / can look like a host or a database.
    """
    if not error.sqlstate:
        text = str(error)
    elif error.sqlstate.startswith(_ABOUT_NO_ROW):
        text = f"{error.diag.message_primary} (SQLSTATE {error.sqlstate})"
    else:
        text = f"SQLSTATE {error.sqlstate}"
    secret = url.partition("://")[2].rpartition("@")[0].partition(":")[2]
    shown = _QUOTED.sub(lambda match: '"..."' if match[1] and match[1] in secret else match[0], text)
    return " ".join(shown.split())[:_MAX_LENGTH]
