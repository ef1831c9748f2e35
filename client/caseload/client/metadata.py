"""The metadata that a client sends with each call. Both clients share this module."""

import re
from collections.abc import Callable
from typing import Final

from caseload.client.call_defaults import DefaultMetadata

Key = str | Callable[[], str]
"""An API key or a token, or a function that returns the current one."""

ON_BEHALF_OF: Final = "caseload-on-behalf-of"
"""The metadata key of the end user."""
_USER_ID: Final = re.compile(r"[A-Za-z0-9._:-]{1,128}")


def on_behalf_of(user_id: str) -> tuple[tuple[str, str], ...]:
    """Returns the metadata with the end user of a call: `GetPatient(request, metadata=on_behalf_of("jdoe"))`.

    Args:
        user_id: the user's id in your system, never a name or an e-mail address. It has 1 to 128 characters of A-Z,
            a-z, 0-9, ".", "_", ":" and "-".

    Raises ValueError if the id has another form.
    """
    if not _USER_ID.fullmatch(user_id):
        raise ValueError("on_behalf_of: must be 1 to 128 of A-Z, a-z, 0-9, ., _, : and -")
    return ((ON_BEHALF_OF, user_id),)


def client_metadata(key: Key | None, user_id: str | None) -> DefaultMetadata:
    """Returns the metadata of a client with this key and this end user. Each of the two can be None.

    Raises ValueError as `on_behalf_of` does, and if the key is invalid. A function as key is checked at each call.
    """
    metadata: DefaultMetadata = dict(on_behalf_of(user_id)) if user_id is not None else {}
    if callable(key):
        return {**metadata, "authorization": lambda: _bearer(key())}
    return metadata if key is None else {**metadata, "authorization": _bearer(key)}


def _bearer(key: str) -> str:
    if not re.fullmatch("[!-~]+", key):
        raise ValueError("key: must be visible ASCII characters")  # grpc would quote the key in its message
    return f"Bearer {key}"
