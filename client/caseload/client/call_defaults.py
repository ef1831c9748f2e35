"""The defaults of each call: deadline, wait_for_ready, request_id and metadata. Both clients share them."""

import uuid
from collections.abc import Callable, Mapping
from typing import Any, Final, NamedTuple, Self

from google.protobuf import descriptor_pool

DefaultMetadata = dict[str, str | Callable[[], str]]
"""The value of each key, or a function that returns the value for a call."""
CLOSED: Final = "the client is closed"


class CallDefaults(NamedTuple):
    """The defaults of one client, or of one of its methods."""

    timeout: float | None
    """The deadline, in seconds; None for no deadline."""
    metadata: DefaultMetadata
    """The metadata of each call, except keys that the call sets itself."""
    takes_request_id: bool = False

    def of_method(self, method: str) -> Self:
        """Returns the defaults of a unary method. Args: method, such as "/package.Service/Method"."""
        service, _, name = method.removeprefix("/").partition("/")
        request: Any = descriptor_pool.Default().FindMethodByName(f"{service}.{name}").input_type
        return self._replace(takes_request_id="request_id" in request.fields_by_name)

    def of_stream(self) -> Self:
        """Returns the defaults of a method that streams. It has no deadline, because a watch does not end by itself."""
        return self._replace(timeout=None)

    def request(self, request: Any) -> Any:
        """Returns the message to send: a copy with a request_id, if the method takes one and the message has none."""
        # This runs before the application's interceptors, so an interceptor that retries sends the same id. A copy gets
        # the id: in the caller's own message it would make the next call with that message look like a repeat.
        if not self.takes_request_id or request.request_id:
            return request
        copy = type(request)()
        copy.CopyFrom(request)
        copy.request_id = str(uuid.uuid4())
        return copy

    def options(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """Returns the named arguments of a call: the given ones, and the defaults for the others."""
        timeout, waits = given.get("timeout"), given.get("wait_for_ready")
        metadata: tuple[Any, ...] = tuple(given.get("metadata") or ())
        own = {key.lower() for key, *_ in metadata}
        defaults = {key: value for key, value in self.metadata.items() if key not in own}
        return {
            **given,
            "timeout": self.timeout if timeout is None else timeout,
            "metadata": (*((key, value() if callable(value) else value) for key, value in defaults.items()), *metadata),
            # The service config says so too, but it does not apply until the target's name resolves.
            "wait_for_ready": True if waits is None else waits,
        }
