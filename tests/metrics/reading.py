"""The page of a server's metrics, as Prometheus reads it."""

import time
import urllib.request
from collections.abc import Callable
from typing import Final

from prometheus_client.parser import text_string_to_metric_families

PATIENCE_SECONDS: Final = 10


def page(address: str | None) -> str:
    """The text of the page."""
    with urllib.request.urlopen(f"http://{address}/metrics", timeout=10) as answer:
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


def until(address: str | None, holds: Callable[[Numbers], bool]) -> Numbers:
    """The first reading of which it holds: what is looked at once a second comes late."""
    give_up = time.monotonic() + PATIENCE_SECONDS
    while not holds(reading := numbers(address)):
        assert time.monotonic() < give_up, page(address)
        time.sleep(0.1)
    return reading
