"""Compares two loads in many short alternating rounds, so that noise of the machine affects both."""

import statistics
from collections.abc import Sequence
from typing import Final, NamedTuple

from benchmarks.load import Load
from benchmarks.table import Result, Target, spread

_FIRST_CALLS_A_CALLER = 20
_LEAST_CPU_SECONDS = 0.01  # the resolution of the kernel's CPU times


class Effort(NamedTuple):
    """The length of a measurement: rounds, and seconds of each side in a round."""

    rounds: int
    seconds: float
    is_smoke: bool = False
    """A smoke test with small data; the figures mean nothing."""


FULL: Final = Effort(rounds=9, seconds=1.5)
SMOKE: Final = Effort(rounds=2, seconds=0.1, is_smoke=True)


class Sample(NamedTuple):
    """The figures of one load."""

    calls_a_second: float
    cpu_us: float
    """CPU time of the server per call, in microseconds."""


class Side:
    """One side of a comparison: a load, and its calls so far."""

    def __init__(self, load: Load) -> None:
        """Args: load, which has made no calls yet."""
        self._load = load
        self._rate = 0.0
        self.succeeded = 0
        """Calls so far with status OK."""

    def warm_up(self) -> None:
        """Makes the first calls, which also determine the size of a round."""
        self._sample(self._load.callers.total * _FIRST_CALLS_A_CALLER)

    def sample(self, seconds: float) -> Sample:
        """Runs the load for about the given seconds, estimated from the rate before."""
        return self._sample(max(self._load.callers.total, round(self._rate * seconds)))

    def _sample(self, count: int) -> Sample:
        answer = self._load.send()
        before = self._load.server.cpu_seconds()
        self._rate = self._load.run(count, answer)
        cpu_seconds = max(self._load.server.cpu_seconds() - before, _LEAST_CPU_SECONDS)
        self._load.send()
        self.succeeded += 1 + count + 1
        return Sample(self._rate, cpu_seconds / count * 1e6)


class Comparison(NamedTuple):
    """Two sides to compare: the result is the first as a multiple of the second."""

    title: str
    first: Side
    second: Side
    target: Target | None = None
    records_per_call: int = 1
    """How many records a call of the first side counts for, such as 100 for a batch of 100."""


def compare(comparison: Comparison, effort: Effort) -> Result:
    """Measures a comparison. Returns its result."""
    return result(comparison.title, sample_pairs(comparison, effort), comparison.target, comparison.records_per_call)


def sample_pairs(comparison: Comparison, effort: Effort) -> list[tuple[Sample, Sample]]:
    """Runs both sides in each round; which comes first alternates."""
    _, first, second, _, _ = comparison
    first.warm_up()
    second.warm_up()
    pairs: list[tuple[Sample, Sample]] = []
    for number in range(effort.rounds):
        if number % 2:
            later = second.sample(effort.seconds)
            pairs.append((first.sample(effort.seconds), later))
        else:
            pairs.append((first.sample(effort.seconds), second.sample(effort.seconds)))
    return pairs


def result(
    title: str, pairs: list[tuple[Sample, Sample]], target: Target | None = None, records_per_call: int = 1
) -> Result:
    """The result of the rounds: the median of the ratios within each round."""
    firsts, seconds = zip(*pairs, strict=True)
    cpu_ratio = statistics.median(first.cpu_us / second.cpu_us for first, second in pairs)
    return Result(
        title,
        spread([records_per_call * first.calls_a_second / second.calls_a_second for first, second in pairs]),
        target,
        sides=f"{records_per_call * _rate(firsts):,.0f} / {_rate(seconds):,.0f} per second",
        cpu=f"{_cpu_us(firsts):,.0f} / {_cpu_us(seconds):,.0f} us ({cpu_ratio:.2f})",
    )


def cpu_result(title: str, pairs: list[tuple[Sample, Sample]], target: Target | None = None) -> Result:
    """The ratio of the CPU times per call: the median of the ratios within each round."""
    return Result(title, spread([first.cpu_us / second.cpu_us for first, second in pairs]), target)


def _rate(samples: Sequence[Sample]) -> float:
    return statistics.median(sample.calls_a_second for sample in samples)


def _cpu_us(samples: Sequence[Sample]) -> float:
    return statistics.median(sample.cpu_us for sample in samples)
