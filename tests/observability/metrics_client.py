"""Reads the metrics page of a server, as Prometheus does."""

import urllib.request
from collections.abc import Callable

from prometheus_client.parser import text_string_to_metric_families

from tests.support.waiting import HUNG_SECONDS, eventually


def page(address: str | None) -> str:
    """The text of the page."""
    with urllib.request.urlopen(f"http://{address}/metrics", timeout=HUNG_SECONDS) as answer:
        text: str = answer.read().decode()
    return text


class Numbers:
    """The samples of one page."""

    def __init__(self, text: str) -> None:
        self.families = {family.name: family for family in text_string_to_metric_families(text)}
        self.samples = [sample for family in self.families.values() for sample in family.samples]

    def __call__(self, name: str, **labels: str) -> float:
        """The sum of the samples with these labels; 0 if there are none."""
        wanted = labels.items()
        return sum(one.value for one in self.samples if one.name == f"caseload_{name}" and wanted <= one.labels.items())


def numbers(address: str | None) -> Numbers:
    return Numbers(page(address))


def wait_for_metrics(address: str | None, holds: Callable[[Numbers], bool]) -> Numbers:
    """Returns the first page that satisfies the condition; some metrics are sampled only once a second."""

    def look() -> Numbers | None:
        reading = numbers(address)
        return reading if holds(reading) else None

    found = eventually(look, lambda: page(address))
    assert found
    return found
