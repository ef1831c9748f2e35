import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize(
    ("ci", "exit_code", "summary"),
    [("", 0, "1 passed, 3 skipped"), ("true", 1, "1 failed, 1 passed, 2 errors")],
    ids=["elsewhere", "in CI"],
)
def test_a_skip_fails_the_run_in_ci_only(tmp_path: Path, ci: str, exit_code: int, summary: str) -> None:
    (tmp_path / "pytest.ini").write_text("[pytest]")
    (tmp_path / "test_passes.py").write_text("def test_it(): pass")
    (tmp_path / "test_says_skip.py").write_text("import pytest\ndef test_it(): pytest.skip('no tool')")
    (tmp_path / "test_is_marked.py").write_text("import pytest\n@pytest.mark.skip\ndef test_it(): pass")
    (tmp_path / "test_is_skipped_whole.py").write_text("import pytest\npytest.importorskip('no_such_module')")
    run = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "tests.conftest", "--continue-on-collection-errors", str(tmp_path)],
        cwd=ROOT,
        env={**os.environ, "CI": ci},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (run.returncode, summary in run.stdout) == (exit_code, True), run.stdout
