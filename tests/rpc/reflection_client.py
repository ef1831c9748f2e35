"""Asks a server's reflection, by either of its names."""

from typing import Any, Final

import grpc
from grpc_reflection.v1alpha.reflection_pb2 import ServerReflectionRequest, ServerReflectionResponse

from tests.security.server_fixture import Metadata
from tests.support.waiting import HUNG_SECONDS

VERSIONS: Final = ("v1", "v1alpha")


def ask(
    channel: grpc.Channel, *requests: ServerReflectionRequest, version: str = "v1", metadata: Metadata = ()
) -> list[ServerReflectionResponse]:
    """The response to each request."""
    stream: Any = channel.stream_stream(
        f"/grpc.reflection.{version}.ServerReflection/ServerReflectionInfo",
        ServerReflectionRequest.SerializeToString,
        ServerReflectionResponse.FromString,
    )
    return list(stream(iter(requests), metadata=metadata, timeout=HUNG_SECONDS))


def listed_services(channel: grpc.Channel, metadata: Metadata = (), version: str = "v1") -> list[str]:
    """The full names of all services."""
    [answer] = ask(channel, ServerReflectionRequest(list_services=""), version=version, metadata=metadata)
    return [service.name for service in answer.list_services_response.service]
