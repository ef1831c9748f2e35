"""The metadata that a client sends with each call. Of both clients."""

from caseload.client.call_defaults import Metadata


def client_metadata(key: str | None) -> Metadata:
    """Returns the metadata of a client with this API key."""
    return (("authorization", f"Bearer {key}"),) if key else ()
