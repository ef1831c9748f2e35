"""Measures what shared commits are worth on PostgreSQL: beside one commit per write. Part of postgres.py."""

import itertools
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from typing import Final
from urllib.parse import urlsplit

import grpc
from caseload.v1 import patient_service_pb2, patient_service_pb2_grpc, resources_pb2, therapist_service_pb2_grpc
from caseload.v1 import therapist_service_pb2 as pb

from benchmarks import servers
from benchmarks.call_overhead import create
from benchmarks.load import MANY, ONE, Callers, Load, LoadFailed
from benchmarks.rounds import Comparison, Effort, Sample, Side, cpu_result, result, sample_pairs
from benchmarks.seed_data import store_therapists
from benchmarks.servers import LOAD_CORE, SERVER_CORE, Server
from benchmarks.table import Result, Target, spread
from tests.support.postgres.cluster import SAFE, Cluster

_ALONE: Final = "--batches-of-one"
_ROUND_TRIP_MS: Final = 1
_EIGHT: Final = Callers(connections=8, each=1)
_HALF: Final = Callers(connections=4, each=8)
"""For each of two instances."""
_CALL_SECONDS: Final = 60
_NO_NOTIFICATION: Final = "DROP TRIGGER store_tells_of_revision ON store"
_DEADLOCKS: Final = "SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()"


def measure(effort: Effort) -> Iterator[Result]:
    """Runs the comparisons. Every figure is a ratio of two servers side by side, except that of the hot therapist."""
    title = f"CreateTherapist, {MANY.total} callers / one commit per write"
    for milliseconds, target in ((5, Target(3)), (50, Target(10))):
        with _cluster(milliseconds) as cluster, _pair(cluster) as sides:
            yield _row(f"{title}, commits of {milliseconds} ms", sides, effort, target)
    with _cluster(5) as cluster, _pair(cluster, round_trip_ms=_ROUND_TRIP_MS) as sides:
        yield _row(f"{title}, commits of 5 ms, round trips of {_ROUND_TRIP_MS} ms", sides, effort, Target(3))
    with _cluster(0) as cluster, _pair(cluster) as sides:
        comparison = Comparison(f"{title}, fast commits", *sides)
        pairs = sample_pairs(comparison, effort)
        yield result(comparison.title, pairs, Target(1))
        yield cpu_result(f"{comparison.title}: CPU per write", pairs, Target(0.85, at_most=True))
    with _cluster(0) as cluster, _pair(cluster, callers=ONE) as sides:
        yield _row("CreateTherapist, 1 caller / one commit per write, fast commits", sides, effort)
    with _cluster(5) as cluster:
        yield _two_instances(cluster, effort)
    with _cluster(5) as cluster:
        yield _hot_therapist(cluster, effort)
    with _cluster(0) as cluster:
        yield _notification(cluster, effort)


def _row(title: str, sides: tuple[Side, Side], effort: Effort, target: Target | None = None) -> Result:
    return result(title, sample_pairs(Comparison(title, *sides), effort), target)


@contextmanager
def _cluster(commit_ms: int) -> Iterator[Cluster]:
    """A cluster whose commits take a fixed time, as on a slow disk. Args: commit_ms, 0 for the time of the disk."""
    slow = {"commit_delay": str(commit_ms * 1000), "commit_siblings": "0"} if commit_ms else {}
    with Cluster({**SAFE, **slow}) as cluster:
        yield cluster


def _database(cluster: Cluster, name: str) -> str:
    url = cluster.create_database(name)
    migrate = [sys.executable, "-m", "caseload_server", "migrate", "--database", url]
    subprocess.run(migrate, check=True, stdout=subprocess.DEVNULL, timeout=60)
    return url


@contextmanager
def _pair(cluster: Cluster, callers: Callers = MANY, round_trip_ms: int = 0) -> Iterator[tuple[Side, Side]]:
    """Servers with shared commits and with one commit per write, each on a database of its own."""
    with ExitStack() as stack:
        sides = []
        for name, changes in (("shared", ()), ("alone", (_ALONE,))):
            url = _database(cluster, name)
            if round_trip_ms:
                url = _behind(stack.enter_context(servers.slow_network(LOAD_CORE, url, round_trip_ms)), url)
            server = stack.enter_context(servers.ablation_at(SERVER_CORE, url, *changes))
            sides.append(Side(Load(server, create(), callers, LOAD_CORE)))
        yield sides[0], sides[1]


def _behind(proxy: Server, url: str) -> str:
    user = urlsplit(url).netloc.rpartition("@")[0]
    return urlsplit(url)._replace(netloc=f"{user}@{proxy.address}").geturl()


class _Together(Side):
    """Loads of several servers at the same time, as one side of a comparison."""

    def __init__(self, sides: Sequence[Side]) -> None:
        self._sides = sides

    def warm_up(self) -> None:
        for side in self._sides:
            side.warm_up()

    def sample(self, seconds: float) -> Sample:
        with ThreadPoolExecutor() as threads:
            samples = list(threads.map(lambda side: side.sample(seconds), self._sides))
        return Sample(
            sum(sample.calls_a_second for sample in samples), statistics.mean(sample.cpu_us for sample in samples)
        )


def _two_instances(cluster: Cluster, effort: Effort) -> Result:
    """Two instances on one database, 32 callers each, beside one instance with 64 callers."""
    shared, single = _database(cluster, "two"), _database(cluster, "one")
    with ExitStack() as stack:
        two = [stack.enter_context(servers.caseload_at(SERVER_CORE, shared)) for _ in range(2)]
        one = stack.enter_context(servers.caseload_at(SERVER_CORE, single))
        together = _Together([Side(Load(server, create(), _HALF, LOAD_CORE)) for server in two])
        alone = Side(Load(one, create(), MANY, LOAD_CORE))
        title = f"CreateTherapist, {MANY.total} callers, two instances on one core / one instance, commits of 5 ms"
        return _row(title, (together, alone), effort, Target(0.95))


def _notification(cluster: Cluster, effort: Effort) -> Result:
    """What waking the watches costs: the trigger's pg_notify takes a lock of the whole server in each commit."""
    urls = [_database(cluster, name) for name in ("notified", "silent")]
    with cluster.connect("silent") as connection:
        connection.execute(_NO_NOTIFICATION.encode())
    with ExitStack() as stack:
        both = [stack.enter_context(servers.caseload_at(SERVER_CORE, url)) for url in urls]
        sides = [Side(Load(server, create(), _EIGHT, LOAD_CORE)) for server in both]
        title = f"CreateTherapist, {_EIGHT.total} callers / without the notification of watches"
        return _row(title, (sides[0], sides[1]), effort)


def _hot_therapist(cluster: Cluster, effort: Effort) -> Result:
    """Assignments a second of 64 callers on two instances to one therapist."""
    rates: dict[str, list[float]] = {}
    for name, changes in (("shared", ()), ("alone", (_ALONE,))):
        url = _database(cluster, f"hot_{name}")
        with ExitStack() as stack:
            two = [stack.enter_context(servers.ablation_at(SERVER_CORE, url, *changes)) for _ in range(2)]
            rates[name] = _assign_to_one(two, effort)
        with cluster.connect(f"hot_{name}") as connection:
            if connection.execute(_DEADLOCKS).fetchall() != [(0,)]:
                raise LoadFailed("writes deadlocked")
    medians = {name: statistics.median(several) for name, several in rates.items()}
    return Result(
        f"AssignPatient to one therapist, {MANY.total} callers on two instances, commits of 5 ms",
        spread(rates["shared"]),
        Target(100),
        unit="a second",
        sides=f"{medians['shared']:,.0f} / {medians['alone']:,.0f} per second with one commit per write",
    )


def _assign_to_one(instances: Sequence[Server], effort: Effort) -> list[float]:
    """The rate of each round, in assignments a second. Raises grpc.RpcError for a call that fails."""
    count = MANY.total * (2 if effort.is_smoke else 10)
    with ExitStack() as stack:
        channels = [stack.enter_context(grpc.insecure_channel(server.address)) for server in instances]
        threads = stack.enter_context(ThreadPoolExecutor(MANY.total))
        [therapist_id] = store_therapists(instances[0].address, 1, max_active_patients=None)
        turns = itertools.cycle(channels)
        patients = patient_service_pb2_grpc.PatientServiceStub(channels[0])
        patient = patient_service_pb2.CreatePatientRequest(patient=resources_pb2.Patient(display_name="Bob"))

        def create_patient(_: int) -> str:
            return patients.CreatePatient(patient, timeout=_CALL_SECONDS).patient.patient_id

        def assign(work: tuple[str, grpc.Channel]) -> None:
            stub = therapist_service_pb2_grpc.TherapistServiceStub(work[1])
            request = pb.AssignPatientRequest(therapist_id=therapist_id, patient_id=work[0])
            stub.AssignPatient(request, timeout=_CALL_SECONDS)

        rates = []
        for _ in range(min(effort.rounds, 3)):
            ids = list(threads.map(create_patient, range(count)))
            started = time.perf_counter()
            list(threads.map(assign, zip(ids, turns, strict=False)))
            rates.append(count / (time.perf_counter() - started))
        return rates
