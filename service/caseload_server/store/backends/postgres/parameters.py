"""Converts statements and parameters to the form that libpq takes: by position, and in binary.

https://www.postgresql.org/docs/current/libpq-exec.html
"""

import re
from functools import lru_cache
from typing import Final

from caseload_server.store.backends.protocol import Value

_NAMED_PARAMETER: Final = re.compile(r"(?<![\w:]):([a-z]\w*)")
_UNTYPED, _BYTEA, _INT8, _TEXT = 0, 17, 20, 25
"""Object ids of types. https://www.postgresql.org/docs/current/catalog-pg-type.html"""


@lru_cache(4096)
def positional(sql: str) -> tuple[bytes, tuple[str, ...]]:
    """Converts `:name` parameters to `$1`. Returns the SQL, and the names in the order of their numbers."""
    names = tuple(dict.fromkeys(_NAMED_PARAMETER.findall(sql)))
    return _NAMED_PARAMETER.sub(lambda match: f"${names.index(match[1]) + 1}", sql).encode(), names


def encode(value: Value) -> tuple[int, bytes | None]:
    """Returns the type and the binary value. All integers get one type, so that one statement serves all sizes."""
    if isinstance(value, str):
        return _TEXT, value.encode()
    if isinstance(value, int):
        return _INT8, value.to_bytes(8, "big", signed=True)
    return (_UNTYPED, None) if value is None else (_BYTEA, value)
