"""The metadata that a client sends with each call. Of both clients."""

import re
from typing import Final

from caseload.client.call_defaults import Metadata

ON_BEHALF_OF: Final = "caseload-on-behalf-of"
"""The key of the metadata that names the end user."""
_USER_ID: Final = re.compile(r"[A-Za-z0-9._:-]{1,128}")


def on_behalf_of(user_id: str) -> tuple[tuple[str, str], ...]:
    """Returns the metadata that names the end user of a call: `GetPatient(request, metadata=on_behalf_of("jdoe"))`.

    Args:
        user_id: the user's id in your system, never a name or an e-mail address.

    Raises ValueError unless it is 1 to 128 of A-Z, a-z, 0-9, ".", "_", ":" and "-".
    """
    if not _USER_ID.fullmatch(user_id):
        raise ValueError("on_behalf_of: must be 1 to 128 of A-Z, a-z, 0-9, ., _, : and -")
    return ((ON_BEHALF_OF, user_id),)


def client_metadata(key: str | None, user_id: str | None) -> Metadata:
    """Returns the metadata of a client with this API key and this end user, either of which may be None.

    Raises ValueError as `on_behalf_of`.
    """
    authorization = (("authorization", f"Bearer {key}"),) if key else ()
    return (*authorization, *(on_behalf_of(user_id) if user_id is not None else ()))
