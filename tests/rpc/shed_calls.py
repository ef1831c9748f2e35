"""Writes that fill the threads of a server, and the outcomes of calls beside them."""

from typing import Any

import grpc
from caseload_server.rpc.server import CaseloadServer

from tests.observability.metrics_client import wait_for_metrics
from tests.support.api_driver import ApiDriver, full_name, request
from tests.support.servers import refusal
from tests.support.waiting import HUNG_SECONDS


def creating(api: ApiDriver, patient_id: str) -> Any:
    """Starts a write and returns its future."""
    make: Any = api.channel.unary_unary(full_name("CreatePatient"))
    body = request("CreatePatient", patient_id=patient_id, patient={"display_name": "A"})
    return make.future(body.SerializeToString(), timeout=HUNG_SECONDS)


def await_writes(server: CaseloadServer, running: int, waiting: int = 0) -> None:
    """Waits until this many writes run and this many are queued."""
    now = {"in_flight": running, "queue_depth": waiting}
    wait_for_metrics(server.metrics_address, lambda seen: all(seen(name, pool="write") == now[name] for name in now))


def answered(calls: list[Any]) -> list[str]:
    """Returns the outcome of each call: OK, or its error reason."""
    ends = []
    for call in calls:
        try:
            call.result()
        except grpc.RpcError as error:
            ends.append(refusal(error).reason)
        else:
            ends.append("OK")
    return ends
