"""One page for several workers: counters include dead workers, gauges cover only live ones."""

import os
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from subprocess import PIPE

import pytest
from caseload_server.observability.metrics import WorkersMetrics
from caseload_server.observability.metrics_page import MetricsPage

from tests.observability.metrics_client import numbers
from tests.support.waiting import eventually

DAY_SECONDS = 86_400


@pytest.fixture
def workers_metrics() -> Iterator[WorkersMetrics]:
    metrics = WorkersMetrics()
    yield metrics
    metrics.close()


@pytest.fixture
def address(workers_metrics: WorkersMetrics) -> Iterator[str]:
    page = MetricsPage("127.0.0.1:0", workers_metrics.registry)
    page.start()
    yield page.address
    page.close()


@contextmanager
def worker(number: int, *, ready: bool = True) -> Iterator["subprocess.Popen[str]"]:
    """A worker with counted calls; the with block ends it with kill -9."""
    command = [sys.executable, "-m", "tests.observability.worker_process", str(number), str(int(ready))]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        assert process.stdout.readline() == "counted\n"
        yield process
        process.kill()


@pytest.mark.slow
def test_counters_are_summed_over_all_workers_including_dead_ones(
    workers_metrics: WorkersMetrics, address: str
) -> None:
    with worker(0), worker(1):
        alive = numbers(address)
    workers_metrics.remove_worker(0)
    workers_metrics.remove_worker(1)
    dead = numbers(address)
    for counted in (alive, dead):
        assert counted("calls_total", code="OK") == 10 + 11
        assert counted("calls_total", code="NOT_FOUND") == counted("call_errors_total") == 2
        assert counted("call_seconds_count") == counted("call_seconds_bucket", le="0.0005") == 23


@pytest.mark.slow
def test_gauges_cover_live_workers_and_readiness_is_the_lowest(workers_metrics: WorkersMetrics, address: str) -> None:
    with worker(0):
        with worker(1, ready=False):
            both = numbers(address)
        workers_metrics.remove_worker(1)
        one = numbers(address)
    workers_metrics.remove_worker(0)
    none = numbers(address)
    assert (both("watches"), both("ready")) == (10, 0)
    assert (one("watches"), one("ready")) == (5, 1)
    assert "caseload_watches" not in none.families


@pytest.mark.slow
def test_a_restarted_worker_continues_its_counters(workers_metrics: WorkersMetrics, address: str) -> None:
    folder = Path(os.environ["PROMETHEUS_MULTIPROC_DIR"])
    with worker(0):
        first = sorted(path.name for path in folder.iterdir())
    workers_metrics.remove_worker(0)
    with worker(0):
        assert numbers(address)("calls_total", code="OK") == 20
        assert sorted(path.name for path in folder.iterdir()) == first


def test_the_metrics_folder_is_private_and_removed_at_exit() -> None:
    metrics = WorkersMetrics()
    folder = Path(os.environ["PROMETHEUS_MULTIPROC_DIR"])
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    metrics.close()
    assert not folder.exists()
    assert "PROMETHEUS_MULTIPROC_DIR" not in os.environ


@contextmanager
def supervisor(age_seconds: float) -> Iterator[Path]:
    """Another supervisor's folder of metrics, last changed at that age; the with block ends it with kill -9."""
    code = (
        "import os, sys; from caseload_server.observability.metrics import WorkersMetrics\n"
        "metrics = WorkersMetrics(); print(os.environ['PROMETHEUS_MULTIPROC_DIR'], flush=True); sys.stdin.read()"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdin=PIPE, stdout=PIPE, text=True) as process:
        assert process.stdout
        folder = Path(process.stdout.readline().strip())
        changed = time.time() - age_seconds
        os.utime(folder, (changed, changed))
        yield folder
        process.kill()


@pytest.mark.slow
def test_a_supervisor_removes_the_metrics_that_a_killed_one_has_left_and_those_of_no_other() -> None:
    with supervisor(DAY_SECONDS) as killed:
        assert killed.is_dir()
    with supervisor(DAY_SECONDS) as running:
        metrics = WorkersMetrics()
        own = Path(os.environ["PROMETHEUS_MULTIPROC_DIR"])
        eventually(lambda: not killed.exists())  # a server of another test may be the one that removes it
        assert (running.is_dir(), own.is_dir()) == (True, True)
        metrics.close()


@pytest.mark.slow
def test_a_supervisor_keeps_a_folder_of_metrics_that_another_has_just_made_and_not_yet_locked() -> None:
    with supervisor(-DAY_SECONDS) as killed:  # so that it stays new, however slow the machine is
        pass
    metrics = WorkersMetrics()
    assert killed.is_dir()
    metrics.close()
    killed.rmdir()


@pytest.mark.slow
@pytest.mark.usefixtures("workers_metrics")
def test_no_series_names_a_process(address: str) -> None:
    """Otherwise each restart would create new series."""
    with worker(0):
        assert [one for one in numbers(address).samples if "pid" in one.labels] == []
