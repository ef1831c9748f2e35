"""Output between tests, when pytest captures nothing, is shown only when the run fails."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.waiting import HUNG_SECONDS

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]

WRITING = """
import os

def pytest_runtest_logreport():
    if "PYTEST_XDIST_WORKER" in os.environ:
        os.write(2, b"a stray line\\n")
"""


@pytest.mark.parametrize(("statement", "shown"), [("assert True", False), ("assert False", True)])
def test_stray_output_is_shown_when_the_run_fails(tmp_path: Path, statement: str, *, shown: bool) -> None:
    (tmp_path / "pytest.ini").write_text("[pytest]")
    (tmp_path / "conftest.py").write_text(WRITING)
    (tmp_path / "test_it.py").write_text(f"def test_it(): {statement}")
    run = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-n", "2", "-p", "tests.support.stray_output", str(tmp_path)],
        cwd=ROOT,
        env=without_xdist(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=HUNG_SECONDS,
        check=False,
    )
    assert run.returncode == int(shown), run.stdout
    assert run.stdout.count("a stray line\n") == (3 if shown else 0), run.stdout


def without_xdist() -> dict[str, str]:
    """The environment without pytest-xdist variables; this process may be a worker itself."""
    return {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_XDIST")}
