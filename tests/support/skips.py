"""Reports skipped tests, one line per cause. In CI, where every tool is installed, a skip is a failure."""

import os
from collections import Counter
from collections.abc import Generator, Iterable
from typing import Final, TypeVar

import pytest

from tests.support.missing_tool import NoTool

Report = TypeVar("Report", pytest.TestReport, pytest.CollectReport)
_NEEDS: Final = "needs "
"""The prefix of a skip reason for a missing tool; the rest names the tool and how to install it."""


@pytest.hookimpl(wrapper=True)
def pytest_runtest_setup() -> Generator[None, None, None]:
    yield from _skipping_without_tool()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call() -> Generator[None, None, None]:
    yield from _skipping_without_tool()


def _skipping_without_tool() -> Generator[None, None, None]:
    """Skips the test if it, or one of its fixtures, needs a missing tool."""
    try:
        yield
    except NoTool as error:
        pytest.skip(str(error))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    return _failed_when_skipped_in_ci((yield))


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report() -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    return _failed_when_skipped_in_ci((yield))


def _failed_when_skipped_in_ci(report: Report) -> Report:
    """Turns a skip in CI into a failure, because a silent skip hides a lost check."""
    if report.skipped and os.environ.get("CI") and not hasattr(report, "wasxfail"):
        report.outcome = "failed"
        report.longrepr = f"skipped in CI: {report.longrepr}"
    return report


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Called once per run, even with pytest-xdist."""
    skipped = terminalreporter.stats.get("skipped", [])
    if skipped:
        terminalreporter.section("skipped", sep="=")
    for line in causes(skipped):
        terminalreporter.write_line(line)


def causes(reports: Iterable[pytest.TestReport | pytest.CollectReport]) -> list[str]:
    """One line per reason, the most frequent first. A completely skipped module is named."""
    counts = Counter((_module(report), _reason(report)) for report in reports)
    return [_line(count, module, reason) for (module, reason), count in counts.most_common()]


def _module(report: pytest.TestReport | pytest.CollectReport) -> str:
    return report.nodeid if isinstance(report, pytest.CollectReport) else ""


def _reason(report: pytest.TestReport | pytest.CollectReport) -> str:
    *_, reason = report.longrepr if isinstance(report.longrepr, tuple) else [report.longreprtext]
    return str(reason).removeprefix("Skipped: ")


def _line(count: int, module: str, reason: str) -> str:
    who = f"all of {module}" if module else f"{count:,} test{'s' * (count != 1)}"
    if not reason.startswith(_NEEDS):
        return f"{who} skipped: {reason}"
    return f"{who} {'needs' if module or count == 1 else 'need'} {reason.removeprefix(_NEEDS)}"
