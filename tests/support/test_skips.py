"""A skip fails a run in CI. Elsewhere, the run ends with one line per skip cause."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    ("ci", "exit_code", "summary"),
    [("", 0, "1 passed, 3 skipped"), ("true", 1, "1 failed, 1 passed, 2 errors")],
    ids=["elsewhere", "in CI"],
)
def test_a_skip_fails_only_a_ci_run(tmp_path: Path, ci: str, exit_code: int, summary: str) -> None:
    (tmp_path / "pytest.ini").write_text("[pytest]")
    (tmp_path / "test_passes.py").write_text("def test_it(): pass")
    (tmp_path / "test_says_skip.py").write_text("import pytest\ndef test_it(): pytest.skip('no tool')")
    (tmp_path / "test_is_marked.py").write_text("import pytest\n@pytest.mark.skip\ndef test_it(): pass")
    (tmp_path / "test_is_skipped_whole.py").write_text("import pytest\npytest.importorskip('no_such_module')")
    run = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "tests.support.skips", "--continue-on-collection-errors", str(tmp_path)],
        cwd=ROOT,
        env={**os.environ, "CI": ci},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (run.returncode, summary in run.stdout) == (exit_code, True), run.stdout


SKIPPING = """
import pytest

@pytest.mark.parametrize("number", range(1001))
def test_many(number): pytest.skip("needs a tool: apt-get install tool")

@pytest.mark.skipif(True, reason="needs another: make another")
def test_one(): pass

def test_of_another_kind(): pytest.skip("the port is taken")
"""


@pytest.mark.parametrize("processes", ["0", "2"])
def test_skips_are_shown_in_one_line_per_cause(tmp_path: Path, processes: str) -> None:
    (tmp_path / "pytest.ini").write_text("[pytest]")
    (tmp_path / "test_skipping.py").write_text(SKIPPING)
    (tmp_path / "test_whole.py").write_text("import pytest\npytest.skip('needs a compiler', allow_module_level=True)")
    run = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-n", processes, "-p", "tests.support.skips", str(tmp_path)],
        cwd=ROOT,
        env={**os.environ, "CI": ""},
        capture_output=True,
        text=True,
        check=False,
    )
    _, _, summary = run.stdout.partition(" skipped ===")
    assert sorted(summary.splitlines()[1:-1]) == [
        "1 test needs another: make another",
        "1 test skipped: the port is taken",
        "1,001 tests need a tool: apt-get install tool",
        "all of test_whole.py needs a compiler",
    ], run.stdout
    assert "SKIPPED" not in run.stdout
