"""Compares the cost of calls with that of the REST server that this project replaces. Part of run.py."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from caseload.v1 import therapist_service_pb2 as pb
from google.protobuf import json_format

from benchmarks import servers
from benchmarks.call_overhead import create
from benchmarks.load import GET, MANY, Call, Callers, Load, LoadFailed, RestCall
from benchmarks.rounds import Comparison, Effort, Side, compare
from benchmarks.seed_data import check_count, store_therapists, therapist
from benchmarks.servers import LOAD_CORE, SERVER_CORE, Server
from benchmarks.table import Result, Target

PATH: Final = "/therapists"
_PLAIN_UVICORN: Final = ("--http", "h11", "--loop", "asyncio")
"""The defaults of uvicorn after `pip install fastapi uvicorn`."""
_MANY: Final = Callers(connections=MANY.total, each=1)  # an HTTP/1.1 connection has one call at a time


def measure(folder: Path, effort: Effort) -> Iterator[Result]:
    """Runs the comparisons, with the servers on one core."""
    with servers.caseload(SERVER_CORE, folder / "caseload.db") as caseload:
        [therapist_id] = store_therapists(caseload.address, 1)
        get = Call(GET, pb.GetTherapistRequest(therapist_id=therapist_id).SerializeToString(), always_same=True)
        gets = Side(Load(caseload, get, MANY, LOAD_CORE))
        creates = Side(Load(caseload, create(), MANY, LOAD_CORE))
        for name, options, targets in (
            ("uvicorn", _PLAIN_UVICORN, (Target(1.7), Target(1))),
            ("uvicorn[standard]", (), (Target(1.15), None)),
        ):
            with servers.fastapi_baseline(SERVER_CORE, *options) as server:
                rest = _RestLoads(server)
                for comparison in (
                    Comparison(f"GetTherapist / GET of FastAPI on {name}", gets, rest.gets, targets[0]),
                    Comparison(f"CreateTherapist / POST of FastAPI on {name}", creates, rest.posts, targets[1]),
                ):
                    yield compare(comparison, effort)
                rest.check_count()
        check_count(caseload.address, 1 + creates.succeeded)


class _RestLoads:
    """The loads for the REST server, with the same fields as the gRPC calls."""

    def __init__(self, server: Server) -> None:
        self._address = server.address
        new = _json(therapist())
        self.posts = Side(Load(server, RestCall(PATH, new, always_same=False), _MANY, LOAD_CORE))
        one = therapist()
        one.identifiers.add(system="https://example.org/staff", value="A-0")
        stored = json.loads(RestCall(PATH, _json(one), always_same=False).send(self._address))
        get = RestCall(f"{PATH}/{stored['therapist_id']}", b"", always_same=True)
        self.gets = Side(Load(server, get, _MANY, LOAD_CORE))

    def check_count(self) -> None:
        """Raises LoadFailed unless every counted POST created a record."""
        count = len(json.loads(RestCall(PATH, b"", always_same=False).send(self._address)))
        if count != 1 + self.posts.succeeded:
            raise LoadFailed(
                f"{1 + self.posts.succeeded} therapists were posted by the count of calls, and {count} are there"
            )


def _json(message: Any) -> bytes:
    return json_format.MessageToJson(message, preserving_proto_field_name=True, indent=None).encode()
