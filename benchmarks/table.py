"""Results as a Markdown table, and its place in the document."""

import os
import platform
from pathlib import Path
from typing import Final

import apsw
import grpc

from benchmarks.rounds import Result, Spread

BEGIN: Final = "<!-- make bench writes from here -->"
END: Final = "<!-- to here -->"
_HEAD: Final = """\
| compared | calls a second, ratio | CPU a call, ratio | calls a second | CPU a call |
|---|---|---|---|---|
"""


def table(results: list[Result]) -> str:
    """One row a comparison, and what machine it was."""
    return f"{_machine()}\n\n{_HEAD}{''.join(map(_row, results))}"


def _machine() -> str:
    cores = len(os.sched_getaffinity(0))
    versions = (
        f"Python {platform.python_version()}",
        f"grpcio {grpc.__version__}",
        f"SQLite {apsw.sqlite_lib_version()}",
    )
    return f"On {cores} shared cores, {', '.join(versions)}:"


def _row(result: Result) -> str:
    first, second = result.first, result.second
    cells = (
        result.title,
        _ratio(result.calls_ratio),
        _ratio(result.cpu_ratio),
        f"{first.calls_a_second:.0f} / {second.calls_a_second:.0f}",
        f"{first.cpu_us:.0f} / {second.cpu_us:.0f} us",
    )
    return f"| {' | '.join(cells)} |\n"


def _ratio(spread: Spread) -> str:
    return f"{spread.median:.2f} ({spread.least:.2f} to {spread.most:.2f})"


def write(document: Path, text: str) -> None:
    """Puts the text between the document's two markers; the rest stays as it is."""
    before, begin, rest = document.read_text().partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end):
        raise ValueError(f"{document.name} lacks the markers")
    document.write_text(f"{before}{BEGIN}\n\n{text}\n{END}{after}")
