"""Calls with a token, and how the server answers them."""

from pathlib import Path
from typing import Any, Final

import grpc
import pytest
from caseload.v1 import therapist_service_pb2
from caseload.v1.therapist_service_pb2_grpc import TherapistServiceStub

from tests.security.server_fixture import LogReader, bearer
from tests.support.issuer import AUDIENCE, Issuer
from tests.support.servers import refusal

GET: Final = therapist_service_pb2.GetTherapistRequest(therapist_id="t1")
ADMITTED: Final = "THERAPIST_NOT_FOUND"


def settings(issuer: Issuer) -> dict[str, Any]:
    return {"oidc_issuer": issuer.url, "oidc_audience": AUDIENCE}


def reason(channel: grpc.Channel, token: str) -> str:
    with pytest.raises(grpc.RpcError) as caught:
        TherapistServiceStub(channel).GetTherapist(GET, metadata=bearer(token))
    found = refusal(caught.value)
    if found.reason == "UNAUTHENTICATED":
        assert (found.code, found.metadata) == (grpc.StatusCode.UNAUTHENTICATED, {})
    return found.reason


def last_cause(folder: Path) -> str:
    """The cause in the last line of the access log."""
    return str(LogReader(folder / "access.log").lines()[-1].get("cause"))
