"""A server with a planted defect in a call and in a stream, and with private values in its records."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import grpc
import pytest
from caseload_server.api.change_service import ChangeServicer
from caseload_server.api.therapist_service import TherapistServicer
from caseload_server.config import Config
from caseload_server.rpc.server import CaseloadServer, build_server

from tests.api.client_calls import People, Side
from tests.support.api_driver import ApiDriver
from tests.support.servers import NO_LOG, Client
from tests.support.waiting import NEVER_SECONDS

CANARY = "Canary-Zq9"
"""No error may contain this text."""
MRN = {"system": "urn:example:mrn", "value": CANARY}


class DefectiveTherapists(TherapistServicer):
    """Has a realistic defect: the text of its exception quotes the request."""

    def GetTherapist(self, request: Any, context: grpc.ServicerContext) -> Any:
        if request.therapist_id == "broken":
            raise KeyError(f"{CANARY} {request}")
        return super().GetTherapist(request, context)


class DefectiveChanges(ChangeServicer):
    """Has the same defect in a stream that has started."""

    def WatchChanges(self, request: Any, context: grpc.ServicerContext) -> Any:
        for answer in super().WatchChanges(request, context):
            yield answer
            if request.filter.actor == CANARY:
                raise KeyError(f"{CANARY} {request}")


class FaultyServer(NamedTuple):
    """A server with therapist t1, patient p1 and one watch slot."""

    server: CaseloadServer
    side: Side
    api: ApiDriver
    """A second client of the same server."""

    @property
    def therapists(self) -> People:
        return self.side.therapists

    @property
    def patients(self) -> People:
        return self.side.patients


@contextmanager
def faulty_server(url: str) -> Iterator[FaultyServer]:
    """Starts the server on an empty database."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("caseload_server.rpc.server.TherapistServicer", DefectiveTherapists)
        patched.setattr("caseload_server.rpc.server.ChangeServicer", DefectiveChanges)
        fixed: dict[str, Any] = {"drain_seconds": 0, "access_log": NO_LOG, "queue_timeout_seconds": NEVER_SECONDS}
        server = build_server(Config("127.0.0.1:0", url, threads=4, max_watches=1, **fixed))
        server.start()
        side = Side(Client(server.address), "Therapist")
        private = {"display_name": CANARY, "email": f"{CANARY}@example.org", "annotations": {CANARY: CANARY}}
        side.therapists.create("t1", identifiers=[MRN], max_active_patients=5, **private)
        side.patients.create("p1", identifiers=[MRN], **private)
        try:
            with ApiDriver(server.address) as api:
                yield FaultyServer(server, side, api)
        finally:
            side.client.close()
            server.stop()
