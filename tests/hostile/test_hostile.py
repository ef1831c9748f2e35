"""Honest callers are served as ever while others misbehave. `make bench-hostile` measures the same at length."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.hostile.attacks import ATTACKS
from tests.hostile.callers import Honest, compare
from tests.hostile.serving import has_room, untuned

ROOT = Path(__file__).parents[2]
ROUNDS = 3
SECONDS = 0.4


class Scene(NamedTuple):
    address: str
    honest: Honest


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    """One server for all attacks: what one leaves behind, the next ones meet."""
    if not has_room():
        pytest.skip("needs a hard limit of 2500 open files or more: ulimit -Hn")
    with untuned(tmp_path_factory.mktemp("hostile")) as server:
        honest = Honest(server.address)
        yield Scene(server.address, honest)
        honest.close()
        assert server.end() == []


@pytest.mark.parametrize("attack", ATTACKS)
def test_honest_callers_see_no_error_and_wait_little_longer(scene: Scene, attack: str) -> None:
    seen = compare(scene.honest, scene.address, attack, ROUNDS, SECONDS)
    assert seen.done > 20 * ROUNDS
    assert seen.errors == []
    alone_ms, attacked_ms = seen.p99s
    # The promise is twice as long; rounds as short as these, on a machine with other work, can only show far more.
    assert attacked_ms < 4 * alone_ms + 100


def test_an_honest_caller_that_is_not_served_is_an_error(tmp_path_factory: pytest.TempPathFactory) -> None:
    with untuned(tmp_path_factory.mktemp("dead")) as server:
        honest = Honest(server.address)
        server.kill()
        assert "UNAVAILABLE" in honest.round(0.1).errors[0]
        honest.close()


@pytest.mark.checkout
@pytest.mark.usefixtures("scene")
def test_the_benchmark_prints_a_row_for_an_attack() -> None:
    command = [sys.executable, "-m", "benchmarks.hostile", "--smoke", "garbage"]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    assert (run.returncode, run.stderr) == (0, "")
    assert run.stdout.splitlines()[2].startswith("| garbage | ")
