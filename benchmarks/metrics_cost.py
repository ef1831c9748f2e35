"""Measures the cost of metrics for GetTherapist, in one process and with several workers.

    python -m benchmarks.metrics_cost

First the cost for one call in isolation, to tenths of a microsecond. Then the CPU of a server with metrics
and of one without, under load; the noise of the machine is many times the difference.
"""

import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from caseload.v1 import therapist_service_pb2 as pb
from caseload_server.observability.metrics import Metrics, WorkersMetrics
from caseload_server.store.backends.sqlite.database import SqliteDatabase
from caseload_server.store.backends.sqlite.migrate import migrate
from caseload_server.store.backends.timed_database import TimedDatabase

from benchmarks.load import GET, MANY, Call, Load
from benchmarks.rounds import FULL, Comparison, Side, compare
from benchmarks.seed_data import store_therapists
from benchmarks.servers import LOAD_CORE, SERVER_CORE, Server

_METRICS = ("--metrics-address", "127.0.0.1:0")


def main() -> None:
    """Prints the measurements."""
    print(f"in one process: {_cost(Metrics(None)):.1f} us CPU a call")
    several = WorkersMetrics()
    print(f"in a worker of several: {_cost(Metrics(0)):.1f} us CPU a call", flush=True)
    several.close()
    for workers in (1, 2):
        with (
            tempfile.TemporaryDirectory() as folder,
            _caseload(folder, workers, *_METRICS) as counting,
            _caseload(folder, workers) as other,
        ):
            found = compare(Comparison("GetTherapist with metrics / without", _side(counting), _side(other)), FULL)
            print(f"{workers} process(es): {found.title}: {found.sides}; CPU a call {found.cpu}", flush=True)


def _cost(metrics: Metrics) -> float:
    """The time that metrics add to a GetTherapist (one count, one timed read), in microseconds."""
    count = metrics.counter_for(GET, is_stream=False)
    with tempfile.TemporaryDirectory() as folder:
        migrate(Path(folder, "caseload.db"))
        database = SqliteDatabase(Path(folder, "caseload.db"))
        timed = TimedDatabase(database, metrics.store)
        sql = "SELECT 1"
        cost = _each_us(lambda: count("OK", None, 0.0003)) - _each_us(lambda: None)
        cost += _each_us(lambda: timed.read(sql)) - _each_us(lambda: database.read(sql))
        database.close()
    return cost


def _each_us(work: Callable[[], object], times: int = 50_000) -> float:
    best = float("inf")
    for _ in range(7):
        began = time.process_time()
        for _ in range(times):
            work()
        best = min(best, time.process_time() - began)
    return best / times * 1e6


def _side(server: Server) -> Side:
    [one] = store_therapists(server.address, 1)
    request = pb.GetTherapistRequest(therapist_id=one).SerializeToString()
    return Side(Load(server, Call(GET, request, always_same=True), MANY, LOAD_CORE))


def _caseload(folder: str, workers: int, *options: str) -> Server:
    database = Path(folder, f"{len(options)}.db")
    arguments = ("--address", "127.0.0.1:0", "--database", f"sqlite:///{database}", "--workers", str(workers), *options)
    return Server(SERVER_CORE, "-m", "caseload_server", "serve", *arguments)


if __name__ == "__main__":
    main()
