"""The end user for whom a caller acts. The caller asserts it in the metadata of a call, and nothing verifies it."""

from contextvars import ContextVar
from typing import Final

import grpc

from caseload_server.domain.errors import InvalidField, Violation
from caseload_server.domain.id_formats import ON_BEHALF_OF_FORMAT, ON_BEHALF_OF_PATTERN
from caseload_server.security.principal import current_principal

METADATA_KEY: Final = "caseload-on-behalf-of"
current_on_behalf_of: Final[ContextVar[str]] = ContextVar("on_behalf_of", default="")
"""The end user of the current call. Empty if the caller names none."""


def set_on_behalf_of(context: grpc.ServicerContext) -> str:
    """Sets the end user of the current call, and returns it. Raises InvalidField.

    Call it after the authorization. For a public method, whose caller is unknown, it does nothing.
    """
    values = [str(value) for key, value in context.invocation_metadata() if key == METADATA_KEY]
    if not values or current_principal.get(None) is None:
        return ""
    if len(values) > 1:
        raise InvalidField(Violation(f"metadata.{METADATA_KEY}", "must be given once"))
    if not ON_BEHALF_OF_PATTERN.fullmatch(values[0]):
        raise InvalidField(Violation(f"metadata.{METADATA_KEY}", ON_BEHALF_OF_FORMAT))
    current_on_behalf_of.set(values[0])
    return values[0]
