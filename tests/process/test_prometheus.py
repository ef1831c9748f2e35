"""A real Prometheus scrapes the metrics, loads the rules and evaluates every query of the dashboard."""

import json
import shutil
import subprocess
import time
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

import pytest

from tests.observability.shipped_rules import RULES, panel_expressions
from tests.process.command_runner import url
from tests.support.api_driver import ApiDriver, refused
from tests.support.servers import ServerProcess, free_address
from tests.support.waiting import HUNG_SECONDS, eventually

EMPTY: Final = {
    *("Connections to PostgreSQL", "Failures of the database by cause", "Time until certificates expire"),
    *("Oldest transaction in PostgreSQL", "Waiting in PostgreSQL", "Standbys of PostgreSQL", "Replication lag"),
    *("Keys file in effect", "Age of the keys of the identity provider", "Unauthenticated calls by cause"),
}
"""The panels that are empty with SQLite, without TLS, while the database works, or with calls that need no
credentials."""
SLOW: Final = {"CaseloadCallsSlow", "CaseloadCommitsSlow"}
"""The alerts that a slow machine causes too."""


class Prometheus:
    """A Prometheus that scrapes a server every second."""

    def __init__(self, program: str, folder: Path, scraped: str) -> None:
        self.address = free_address()
        settings = {
            "global": {"scrape_interval": "1s", "evaluation_interval": "1s"},
            "rule_files": [str(RULES)],
            "scrape_configs": [{"job_name": "caseload", "static_configs": [{"targets": [scraped]}]}],
        }
        (folder / "prometheus.yml").write_text(json.dumps(settings))  # which is YAML too
        command = [program, f"--config.file={folder}/prometheus.yml", f"--storage.tsdb.path={folder}/data"]
        command.append(f"--web.listen-address={self.address}")
        self.process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    def ask(self, path: str, **parameters: str) -> Any:
        query = urllib.parse.urlencode(parameters)
        with urllib.request.urlopen(f"http://{self.address}/api/v1/{path}?{query}", timeout=HUNG_SECONDS) as answer:
            return json.load(answer)["data"]

    def until(self, holds: Callable[[], Any]) -> Any:
        """Waits until holds() is true. Returns its result."""

        def look() -> Any:
            with suppress(OSError):  # it does not answer yet
                return holds()

        return eventually(look)

    def value(self, expression: str) -> Any:
        return self.ask("query", query=expression)["result"]

    def alerts(self) -> list[tuple[str, str]]:
        """The name and the instance of each pending or firing alert, without those in SLOW."""
        found = [one["labels"] for one in self.ask("alerts")["alerts"]]
        return [(one["alertname"], one["instance"]) for one in found if one["alertname"] not in SLOW]


@pytest.fixture
def server(tmp_path: Path) -> Iterator[tuple[ServerProcess, str]]:
    """A server with two workers, and the address of its metrics."""
    address = free_address()
    arguments = ("--workers", "2", "--metrics-address", address)
    with ServerProcess(url(tmp_path / "caseload.db"), *arguments) as process:
        yield process, address


@pytest.fixture
def prometheus(server: tuple[ServerProcess, str], tmp_path: Path) -> Iterator[Prometheus]:
    program = shutil.which("prometheus")
    if program is None:
        pytest.skip("needs prometheus: apt-get install prometheus")
    running = Prometheus(program, tmp_path, server[1])
    yield running
    running.process.kill()
    running.process.wait(HUNG_SECONDS)


def test_prometheus_scrapes_the_metrics_and_evaluates_the_dashboard_and_the_alerts(
    server: tuple[ServerProcess, str], prometheus: Prometheus
) -> None:
    process, address = server
    prometheus.until(lambda: prometheus.value(f'up{{instance="{address}"}} == 1'))
    with ApiDriver(process.address) as api:
        for number in range(30):  # enough scrapes for a rate
            api.therapists(f"t{number}")
            refused(api.send, "GetTherapist", therapist_id="missing")
            time.sleep(0.1)
    expected_empty = [expression for title, expression in panel_expressions("30s") if title in EMPTY]
    questions = [expression for title, expression in panel_expressions("30s") if title not in EMPTY]
    assert len(questions) > 15
    prometheus.until(lambda: all(prometheus.value(expression) for expression in questions))
    assert not any(prometheus.value(expression) for expression in expected_empty)
    prometheus.until(lambda: {rule["health"] for rule in prometheus.ask("rules")["groups"][0]["rules"]} == {"ok"})
    assert prometheus.alerts() == []
    process.kill()
    assert prometheus.until(prometheus.alerts) == [("CaseloadDown", address)]
