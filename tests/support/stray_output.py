"""Hides what test processes write to standard error between tests, unless the run fails.

pytest captures during a test. A server in the same process may log a call when its test has just ended.
"""

import os
import tempfile
from collections.abc import Generator
from contextlib import contextmanager
from typing import IO, Final

import pytest

_STANDARD_ERROR: Final = 2
_kept: Final = pytest.StashKey[IO[bytes]]()


@pytest.hookimpl(wrapper=True)
def pytest_sessionstart(session: pytest.Session) -> Generator[None, None, None]:
    """The workers of pytest-xdist start in this hook. They inherit the standard error of this moment."""
    if not session.config.getoption("numprocesses", None):
        yield
        return
    session.config.stash[_kept] = kept = tempfile.TemporaryFile("a+b")  # noqa: SIM115 - closed with the session
    with _redirected(kept):
        yield


@contextmanager
def _redirected(file: IO[bytes]) -> Generator[None, None, None]:
    original = os.dup(_STANDARD_ERROR)
    os.dup2(file.fileno(), _STANDARD_ERROR)
    try:
        yield
    finally:
        os.dup2(original, _STANDARD_ERROR)
        os.close(original)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, exitstatus: int, config: pytest.Config) -> None:
    kept = config.stash.get(_kept, None)
    if not kept:
        return
    with kept:
        kept.seek(0)
        text = kept.read().decode(errors="replace")
    if text and exitstatus:
        terminalreporter.section("standard error of the test processes, between tests", sep="=")
        terminalreporter.write_line(text.rstrip("\n"))
