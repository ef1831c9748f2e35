"""Planned ends on several processes of one store: workers on one port, and two instances."""

import itertools
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager

import pytest

from tests.support.api_driver import ENDED, EXPIRED, ApiDriver, planned
from tests.support.servers import ServerProcess
from tests.support.waiting import eventually

pytestmark = pytest.mark.slow

CALLERS = 4
"""Connections to each server. The kernel spreads them over its workers."""
THERAPISTS, PATIENTS = [f"t{n}" for n in range(3)], [f"p{n}" for n in range(8)]
PAIRS = list(itertools.product(THERAPISTS, PATIENTS))
CASELOAD = (sys.executable, "-m", "caseload_server")
IDLE_SWEEPER = (sys.executable, "-m", "tests.process.idle_sweeper_command")


@contextmanager
def serving(url: str, servers: int, workers: int, command: Sequence[str] = CASELOAD) -> Iterator[list[ApiDriver]]:
    """Yields clients of servers on one database."""
    with ExitStack() as opened:
        clients = []
        for _ in range(servers):
            server = opened.enter_context(ServerProcess(url, "--workers", str(workers), command=command))
            clients += [opened.enter_context(ApiDriver(server.address, alone=True)) for _ in range(CALLERS)]
        clients[0].therapists(*THERAPISTS)
        clients[0].patients(*PATIENTS)
        yield clients


def plan(api: ApiDriver) -> float:
    """Assigns all pairs, with one planned end. Returns it in seconds since 1970."""

    def batch(seconds: float) -> float:
        expire = int(time.time() + seconds)
        pairs = [{"therapist_id": therapist, "patient_id": patient} for therapist, patient in PAIRS]
        api.send("BatchAssign", requests=[{**pair, "expire_time": {"seconds": expire}} for pair in pairs])
        return expire

    return planned(batch, soonest_seconds=2)


def assert_one_change_set_each(api: ApiDriver) -> None:
    sets = [one for one in api.log() if one.actor == "system:expiry"]
    changed = [change.assignment.assignment_id for one in sets for change in one.changes]
    assert len(sets) == len(changed) == len(set(changed)) == len(PAIRS)


@pytest.mark.parametrize(("servers", "workers"), [(1, 3), (2, 1)], ids=["workers", "instances"])
def test_each_expiry_has_one_change_set_however_many_processes_sweep(
    database_url: str, servers: int, workers: int
) -> None:
    with serving(database_url, servers, workers) as clients:
        plan(clients[0])
        for api in clients:
            eventually(lambda api=api: len(api.listed(states=[ENDED])) == len(PAIRS))  # type: ignore[misc]
            assert {one.end_reason for one in api.listed(states=[ENDED])} == {EXPIRED}
        assert_one_change_set_each(clients[0])
        counts = {one.active_patient_count for one in clients[-1].send("ListTherapists").therapists}
        assert counts == {0}


@pytest.mark.parametrize(("servers", "workers"), [(1, 3), (2, 1)], ids=["workers", "instances"])
def test_no_process_answers_true_after_the_planned_end_while_nothing_sweeps(
    database_url: str, servers: int, workers: int
) -> None:
    with serving(database_url, servers, workers, IDLE_SWEEPER) as clients:
        expire = plan(clients[0])
        before = [api.checked(*PAIRS) for api in clients]
        assert time.time() >= expire or before == [[True] * len(PAIRS)] * len(clients)
        eventually(lambda: time.time() >= expire)
        for _ in range(20):
            for api in clients:
                assert not any(api.checked(*PAIRS))
        assert all(one.state != ENDED for one in clients[0].listed(states=[1, ENDED]))
        # Each process ends what its write meets, and no other process ends it again.
        for api, (therapist, patient) in zip(itertools.cycle(clients), PAIRS, strict=False):
            assert api.send("UnassignTherapist", therapist_id=therapist, patient_id=patient).ended is False
        assert_one_change_set_each(clients[0])
