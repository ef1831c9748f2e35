"""Results as Markdown tables, written into a document."""

import os
import platform
import statistics
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Final, NamedTuple

import apsw
import grpc

BEGIN: Final = "<!-- make bench writes from here -->"
END: Final = "<!-- to here -->"
_CLAIMS: Final = """\
| comparison | figure | target | both sides | CPU per call |
|---|---|---|---|---|
"""
_OTHERS: Final = """\
| comparison | figure | both sides | CPU per call |
|---|---|---|---|
"""


class Spread(NamedTuple):
    """One figure over all rounds."""

    median: float
    least: float
    most: float


class Target(NamedTuple):
    """The bound of a figure."""

    value: float
    at_most: bool = False
    """Whether the bound is a maximum; otherwise a minimum."""


class Result(NamedTuple):
    """One row: a figure, and the measurements behind it."""

    title: str
    """Such as "GetTherapist / no-op"."""
    figure: Spread
    target: Target | None = None
    unit: str = ""
    """Of the figure and of its target, such as "MB"; a ratio has none."""
    sides: str = ""
    """The two values, such as "2189 / 2660 per second"."""
    cpu: str = ""
    """CPU time of the server per call."""

    @property
    def is_met(self) -> bool:
        """Whether the figure meets its target; true without one."""
        if self.target is None:
            return True
        figure = round(self.figure.median, 2)  # as it is printed
        return figure <= self.target.value if self.target.at_most else figure >= self.target.value


def spread(values: Sequence[float]) -> Spread:
    """The median and range of the rounds."""
    return Spread(statistics.median(values), min(values), max(values))


def tables(results: Sequence[Result]) -> str:
    """A line about the machine, the results with a target, then the others."""
    claims = _CLAIMS + "".join(_row(result, _target(result)) for result in results if result.target)
    others = _OTHERS + "".join(_row(result) for result in results if not result.target)
    return "\n".join([f"{machine()}\n", *(part for part in (claims, others) if part not in (_CLAIMS, _OTHERS))])


def machine() -> str:
    """The machine and the versions of the measurement."""
    cores = len(os.sched_getaffinity(0))
    versions = (
        f"Python {platform.python_version()}",
        f"grpcio {grpc.__version__}",
        f"SQLite {apsw.sqlite_lib_version()}",
    )
    return f"On {cores} shared cores, {', '.join(versions)}:"


def _row(result: Result, *target: str) -> str:
    return _line((result.title, figure(result), *target, result.sides, result.cpu))


def _line(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |\n"


def _target(result: Result) -> str:
    return target_text(result) if result.is_met else f"{target_text(result)}: **missed**"


def target_text(result: Result) -> str:
    """The target as text, in the figure's unit; empty without one."""
    if result.target is None:
        return ""
    bound = "at most" if result.target.at_most else "at least"
    return f"{bound} {result.target.value:,g}"


def figure(result: Result) -> str:
    """The figure as text, with its range if measured more than once."""
    median, least, most = result.figure
    between = "" if least == most else f" ({_number(least)} to {_number(most)})"
    return f"{_number(median)} {result.unit}".rstrip() + between


def relative_to_target(result: Result) -> Spread:
    """The figure relative to its target; inverted for a maximum, so that more is always better."""
    median, least, most = result.figure
    if result.target is None:
        raise ValueError(result.title)
    value, at_most = result.target
    return (
        Spread(value / median, value / most, value / least)
        if at_most
        else Spread(*(one / value for one in result.figure))
    )


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.2f}" if value < 10 else f"{value:.1f}"


def titles(text: str) -> list[str]:
    """The first column of the tables in a text."""
    rows = [line.removeprefix("| ").split(" | ")[0] for line in text.splitlines() if line.startswith("| ")]
    return [title for title in rows if title != "comparison"]


def written(document: Path, begins: str = BEGIN) -> str:
    """The text of a document between the marker where it begins, and the next END."""
    return document.read_text().partition(begins)[2].partition(END)[0]


def write(document: Path, text: str, begins: str = BEGIN) -> None:
    """Replaces the text between the marker where it begins, and the next END of the document."""
    before, begin, rest = document.read_text().partition(begins)
    _, end, after = rest.partition(END)
    if not (begin and end):
        raise ValueError(f"{document.name} lacks the markers")
    document.write_text(f"{before}{begin}\n\n{text}\n{END}{after}")
