"""The page of a server's metrics, as Prometheus reads it."""

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
    """What one reading of a page says."""

    def __init__(self, text: str) -> None:
        self.families = {family.name: family for family in text_string_to_metric_families(text)}
        self.samples = [sample for family in self.families.values() for sample in family.samples]

    def __call__(self, name: str, **labels: str) -> float:
        """The sum of the samples that have these labels; 0 where there are none."""
        wanted = labels.items()
        return sum(one.value for one in self.samples if one.name == f"caseload_{name}" and wanted <= one.labels.items())


def numbers(address: str | None) -> Numbers:
    return Numbers(page(address))


def wait_for_metrics(address: str | None, holds: Callable[[Numbers], bool]) -> Numbers:
    """The first reading of which it holds: what is looked at once a second comes late."""

    def look() -> Numbers | None:
        reading = numbers(address)
        return reading if holds(reading) else None

    found = eventually(look, lambda: page(address))
    assert found
    return found
