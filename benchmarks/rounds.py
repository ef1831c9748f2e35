"""Two ways of calling, side by side: in turn, in many short rounds, so that what disturbs one disturbs the other."""

import statistics
from collections.abc import Sequence
from typing import Final, NamedTuple

from benchmarks.load import Load
from benchmarks.table import Result, Target, spread

_FIRST_CALLS_A_CALLER = 20
_LEAST_CPU_SECONDS = 0.01  # what the kernel counts in


class Effort(NamedTuple):
    """How much measuring: rounds, and the seconds that each side has in one."""

    rounds: int
    seconds: float
    is_smoke: bool = False
    """Only to see that it runs: what takes long is made small, and the figures mean nothing."""


FULL: Final = Effort(rounds=9, seconds=1.5)
SMOKE: Final = Effort(rounds=2, seconds=0.1, is_smoke=True)


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
    target: Target | None = None
    counts: int = 1
    """What a call of the first side counts for: one that gets a hundred records counts for a hundred."""


def compare(comparison: Comparison, effort: Effort) -> Result:
    """Runs the sides in turn: so many rounds, each side about so long; which comes first alternates too."""
    title, first, second, target, counts = comparison
    first.warm_up()
    second.warm_up()
    pairs: list[tuple[Sample, Sample]] = []
    for number in range(effort.rounds):
        if number % 2:
            later = second.sample(effort.seconds)
            pairs.append((first.sample(effort.seconds), later))
        else:
            pairs.append((first.sample(effort.seconds), second.sample(effort.seconds)))
    return result(title, pairs, target, counts)


def result(title: str, pairs: list[tuple[Sample, Sample]], target: Target | None = None, counts: int = 1) -> Result:
    """The figures of the rounds: ratios within a round, and only then the median."""
    firsts, seconds = zip(*pairs, strict=True)
    cpu_ratio = statistics.median(first.cpu_us / second.cpu_us for first, second in pairs)
    return Result(
        title,
        spread([counts * first.calls_a_second / second.calls_a_second for first, second in pairs]),
        target,
        sides=f"{counts * _rate(firsts):,.0f} / {_rate(seconds):,.0f} per second",
        cpu=f"{_cpu_us(firsts):,.0f} / {_cpu_us(seconds):,.0f} us ({cpu_ratio:.2f})",
    )


def _rate(samples: Sequence[Sample]) -> float:
    return statistics.median(sample.calls_a_second for sample in samples)


def _cpu_us(samples: Sequence[Sample]) -> float:
    return statistics.median(sample.cpu_us for sample in samples)
