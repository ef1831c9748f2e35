"""Measures the cost of traces for GetTherapist: exported, not sampled, and off.

    python -m benchmarks.traces_cost

The server exports over gRPC to a collector in this process. The figures are CPU of the server, its exporter included.
"""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from caseload.v1 import therapist_service_pb2 as pb

from benchmarks.load import GET, MANY, Call, Load
from benchmarks.rounds import FULL, Comparison, Side, compare
from benchmarks.seed_data import store_therapists
from benchmarks.servers import LOAD_CORE, SERVER_CORE, Server
from tests.observability.trace_collector import collecting


def main() -> None:
    """Prints the measurements."""
    with tempfile.TemporaryDirectory() as folder, collecting() as collector:
        on = {"OTEL_EXPORTER_OTLP_ENDPOINT": collector.address, "OTEL_BSP_MAX_QUEUE_SIZE": "100000"}
        kinds = {"exported": on, "not sampled": {**on, "OTEL_TRACES_SAMPLER": "always_off"}}
        for name, variables in kinds.items():
            with _caseload(folder, name, variables) as traced, _caseload(folder, f"{name} off", {}) as other:
                found = compare(Comparison(f"GetTherapist with traces {name} / off", _side(traced), _side(other)), FULL)
            print(f"{found.title}: {found.sides}; CPU a call {found.cpu}", flush=True)


def _side(server: Server) -> Side:
    [one] = store_therapists(server.address, 1)
    request = pb.GetTherapistRequest(therapist_id=one).SerializeToString()
    return Side(Load(server, Call(GET, request, always_same=True), MANY, LOAD_CORE))


@contextmanager
def _caseload(folder: str, name: str, variables: dict[str, str]) -> Iterator[Server]:
    """Starts a server whose environment has these variables."""
    database = Path(folder, f"{name}.db")
    arguments = ("serve", "--address", "127.0.0.1:0", "--database", f"sqlite:///{database}")
    os.environ.update(variables)
    try:
        server = Server(SERVER_CORE, "-m", "caseload_server", *arguments).__enter__()
    finally:
        for variable in variables:
            del os.environ[variable]
    try:
        yield server
    finally:
        server.__exit__(None, None, None)


if __name__ == "__main__":
    main()
