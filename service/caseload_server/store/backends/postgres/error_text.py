"""Selects the parts of the driver's errors that operators may see: never a row, and never a password."""

import re
from typing import Final

import psycopg

_ABOUT_NO_ROW: Final = ("08", "25", "28", "3D", "3F", "42", "53", "55", "57")
"""Classes of SQLSTATEs whose messages name only objects, roles and limits. Other messages can quote values.
https://www.postgresql.org/docs/current/errcodes-appendix.html"""
_QUOTED: Final = re.compile(r""""[^"]*"|'[^']*'""")
_UNESCAPED: Final = re.compile("[@:/?#]")
_MAX_LENGTH: Final = 500


def one_line(error: psycopg.Error, url: str = "") -> str:
    """Returns the error's text in one line: that of libpq if it has no SQLSTATE, or that of PostgreSQL if it is safe.

    Args: url, the URL of the connection. If its password has an unescaped @, : or /, libpq takes a part of it for a
    host or a database and may quote it. Quoted names are then left out.
    """
    if not error.sqlstate:
        text = str(error)
    elif error.sqlstate.startswith(_ABOUT_NO_ROW):
        text = f"{error.diag.message_primary} (SQLSTATE {error.sqlstate})"
    else:
        text = f"SQLSTATE {error.sqlstate}"
    password = url.partition("://")[2].rpartition("@")[0].partition(":")[2]
    if _UNESCAPED.search(password):
        text = _QUOTED.sub("'...'", text)
    return " ".join(text.split())[:_MAX_LENGTH]
