"""A failover loses no acknowledged write, on real servers. `make failover` also stops the standby."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.postgres.cluster import NoPostgres, programs

HANGS_SECONDS = 600
pytestmark = [pytest.mark.checkout, pytest.mark.timeout(HANGS_SECONDS)]
ROOT = Path(__file__).parents[2]


def failover(*arguments: str) -> tuple[int, dict[str, str]]:
    """Runs the benchmark. Returns its exit code and its table."""
    try:
        programs()
    except NoPostgres as error:
        pytest.skip(str(error))
    command = [sys.executable, "-m", "benchmarks.failover", "--seconds", "1", *arguments]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=HANGS_SECONDS)
    print(run.stdout, run.stderr)
    return run.returncode, dict(re.findall(r"(.+): (.+)", run.stdout))


def test_killing_the_primary_loses_no_acknowledged_write() -> None:
    """`make failover` checks the length of the gap; here other tests share the machine."""
    _, table = failover()
    assert int(table["acknowledged"]) > 0
    assert (table["lost"], table["written twice"]) == ("0", "0")


def test_the_benchmark_detects_writes_lost_with_an_asynchronous_standby() -> None:
    code, table = failover("--asynchronous")
    assert code == 1
    assert int(table["lost"].split()[0]) > 0
