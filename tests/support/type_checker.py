"""mypy, asked about code that a test has as text."""

import subprocess
import sys
from pathlib import Path

from tests.support.waiting import HUNG_SECONDS

ROOT = Path(__file__).parents[2]


def mypy(source: str) -> str:
    """What `mypy --strict`, with the settings of the checkout, prints about a module."""
    command = [sys.executable, "-m", "mypy", "--strict", "--cache-dir", str(ROOT / ".mypy_cache"), "-c", source]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=HUNG_SECONDS, check=False)
    return done.stdout
