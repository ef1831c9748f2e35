"""Two ways of calling, side by side: in turn, in many short rounds, so that what disturbs one disturbs the other."""

import statistics
from typing import NamedTuple

from benchmarks.load import Load

_FIRST_CALLS_A_CALLER = 20
_LEAST_CPU_SECONDS = 0.01  # what the kernel counts in


class Sample(NamedTuple):
    """What one load came to."""

    calls_a_second: float
    cpu_us: float
    """Of the server, a call."""


class Side:
    """One load, and how it went so far."""

    def __init__(self, load: Load) -> None:
        """Args: load, none of it made yet."""
        self._load = load
        self._rate = 0.0
        self.made = 0
        """Calls so far that were answered OK."""

    def warm_up(self) -> None:
        """Makes the first calls, which also tell how many make a round."""
        self._sample(self._load.callers.total * _FIRST_CALLS_A_CALLER)

    def sample(self, seconds: float) -> Sample:
        """Load for about so long, going by the load before."""
        return self._sample(max(self._load.callers.total, round(self._rate * seconds)))

    def _sample(self, count: int) -> Sample:
        answer = self._load.ask()
        before = self._load.server.cpu_seconds()
        self._rate = self._load.run(count, answer)
        cpu_seconds = max(self._load.server.cpu_seconds() - before, _LEAST_CPU_SECONDS)
        self._load.ask()
        self.made += 1 + count + 1
        return Sample(self._rate, cpu_seconds / count * 1e6)


class Comparison(NamedTuple):
    """A claim to measure: the first side as a multiple of the second."""

    title: str
    first: Side
    second: Side


class Spread(NamedTuple):
    """One figure over all rounds."""

    median: float
    least: float
    most: float


class Result(NamedTuple):
    """A comparison's figures: the ratios of the rounds, and each side's own medians."""

    title: str
    calls_ratio: Spread
    cpu_ratio: Spread
    first: Sample
    second: Sample


def compare(comparison: Comparison, rounds: int, seconds: float) -> Result:
    """Runs the sides in turn: so many rounds, each side about so long."""
    sides = (comparison.first, comparison.second)
    for side in sides:
        side.warm_up()
    pairs = [tuple(side.sample(seconds) for side in sides) for _ in range(rounds)]
    return result(comparison.title, [(first, second) for first, second in pairs])


def result(title: str, pairs: list[tuple[Sample, Sample]]) -> Result:
    """The figures of the rounds: ratios within a round, and only then the median."""
    return Result(
        title,
        _spread([first.calls_a_second / second.calls_a_second for first, second in pairs]),
        _spread([first.cpu_us / second.cpu_us for first, second in pairs]),
        _medians([first for first, _ in pairs]),
        _medians([second for _, second in pairs]),
    )


def _spread(ratios: list[float]) -> Spread:
    return Spread(statistics.median(ratios), min(ratios), max(ratios))


def _medians(samples: list[Sample]) -> Sample:
    return Sample(*(statistics.median(values) for values in zip(*samples, strict=True)))
