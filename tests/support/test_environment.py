"""What the one who starts the tests has set does not reach them."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
LEFT_OUT = {
    "https_proxy": "http://proxy.example",
    "no_proxy": "example.org",
    "PGHOST": "db.example",
    "OTEL_SDK_DISABLED": "true",
    "CASELOAD_WORKERS": "3",
    "FORCE_COLOR": "1",
}
INNER = f"""
import os

def test_seen(tmp_path):
    assert not set({[*LEFT_OUT]}) & os.environ.keys()
    assert os.environ["CASELOAD_TEST_KEPT"] == "yes"
    (tmp_path / "file").touch()
    assert (tmp_path / "file").stat().st_mode & 0o777 == 0o644

def test_fetching(proxies):
    assert os.environ["https_proxy"] == "http://proxy.example"
    assert {{"example.org", "127.0.0.1"}} <= set(os.environ["no_proxy"].split(","))
    assert "PGHOST" not in os.environ
"""


@pytest.mark.parametrize("processes", ["0", "2"])
def test_variables_and_umask_of_the_user_do_not_reach_a_test(tmp_path: Path, processes: str) -> None:
    (tmp_path / "pytest.ini").write_text("[pytest]")
    (tmp_path / "test_inner.py").write_text(INNER)
    run = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-n", processes, "-p", "tests.support.environment", str(tmp_path)],
        cwd=ROOT,
        env={**os.environ, **LEFT_OUT, "CASELOAD_TEST_KEPT": "yes"},
        capture_output=True,
        text=True,
        check=False,
        umask=0o077,
    )
    assert run.returncode == 0, run.stdout
