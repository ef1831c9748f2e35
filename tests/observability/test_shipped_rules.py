"""The metrics page, its documentation, the dashboard and the alert rules name the same metrics."""

import re
import shutil
import subprocess
from pathlib import Path
from typing import Final, NamedTuple

import grpc
import pytest
from caseload_server.rpc.status_map import CODES

from tests.conftest import serving
from tests.docs.doc_blocks import OPERATIONS
from tests.observability.metrics_client import Numbers, numbers
from tests.observability.shipped_rules import RULES, dashboard, metrics_in, panel_expressions, rules_text
from tests.process.command_runner import url
from tests.security.tls_files import Files
from tests.support.api_driver import ApiDriver
from tests.support.postgres.databases import Databases
from tests.support.servers import ServerProcess, free_address
from tests.support.waiting import HUNG_SECONDS

NOT_SHOWN: Final[set[str]] = set()
"""Metrics that the dashboard omits on purpose."""
OF_COMMANDS: Final = {"caseload_last_backup_time_seconds"}
"""Metrics that a command writes for node_exporter."""


class Metric(NamedTuple):
    name: str
    kind: str
    labels: frozenset[str]


def metrics_of(page: Numbers) -> set[Metric]:
    return {
        Metric(
            family.name + ("_total" if family.type == "counter" else ""),
            family.type,
            frozenset(label for sample in family.samples for label in sample.labels) - {"le"},
        )
        for family in page.families.values()
    }


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory, postgres_databases: Databases) -> set[Metric]:
    """The metrics that real servers export, on both databases."""
    found: set[Metric] = set()
    with postgres_databases.acquire() as postgres_url:
        for database in (url(tmp_path_factory.mktemp("exported") / "caseload.db"), postgres_url):
            with serving(database, metrics_address="127.0.0.1:0") as server, ApiDriver(server.address) as api:
                api.therapists("t1")
                found |= metrics_of(numbers(server.metrics_address))
    folder = tmp_path_factory.mktemp("authenticated")
    files = Files.create(folder)
    tls = {"tls_cert": files.cert, "tls_key": files.key}
    oidc = {"oidc_issuer": "https://127.0.0.1:1", "oidc_audience": "caseload"}  # no server listens there
    with serving(url(folder / "db"), metrics_address="127.0.0.1:0", keys_file=files.keys.path, **tls, **oidc) as server:
        found |= metrics_of(numbers(server.metrics_address))
    return found


@pytest.mark.slow
def test_the_documented_metrics_match_the_metrics_page(exported: set[Metric]) -> None:
    text = (OPERATIONS / "metrics-and-alerts.md").read_text()
    rows = re.findall(r"^\| `(caseload_\w+)` \| (\w+) \|(.*?)\| [^|]+ \| [^|]+ \|$", text, re.MULTILINE)
    said = {Metric(name, kind, frozenset(re.findall(r"`(\w+)`", labels))) for name, kind, labels in rows}
    assert said == exported
    assert len(rows) == len(said)


def test_the_dashboard_shows_every_metric_and_no_other(exported: set[Metric]) -> None:
    used = {name for _, expression in panel_expressions("5m") for name in metrics_in(expression)}
    assert used | NOT_SHOWN == {metric.name for metric in exported}
    assert used.isdisjoint(NOT_SHOWN)


def test_the_alert_rules_name_metrics_that_are_exported(exported: set[Metric]) -> None:
    used = metrics_in(rules_text())
    assert len(used) >= 10
    assert used - {metric.name for metric in exported} == OF_COMMANDS


def test_codes_and_reasons_in_rules_and_dashboard_exist_in_the_contract() -> None:
    text = rules_text() + "".join(expression for _, expression in panel_expressions("5m"))
    named = {label: set(re.findall(rf'{label}=~?"([^"]+)"', text)) for label in ("code", "reason")}
    codes, reasons = ({one for names in named[label] for one in names.split("|")} for label in ("code", "reason"))
    assert codes <= {code.name for code in grpc.StatusCode}
    assert reasons <= CODES.keys()
    assert (len(codes), len(reasons)) > (3, 3)


@pytest.mark.slow
def test_workers_export_the_same_metrics_as_one_process(tmp_path: Path) -> None:
    pages = []
    for workers in ("1", "2"):
        address = free_address()
        arguments = ("--workers", workers, "--metrics-address", address)
        with ServerProcess(url(tmp_path / f"{workers}.db"), *arguments) as server:
            with ApiDriver(server.address) as api:
                api.therapists("t1")
            pages.append(numbers(address))
            server.stop()
    one, two = pages
    assert metrics_of(one) == metrics_of(two)
    assert (one("workers"), two("workers")) == (1, 2)
    assert two("watches_limit") == 2 * one("watches_limit")
    assert one("commit_writes_sum") == two("commit_writes_sum") == 1


def test_panels_of_the_dashboard_do_not_overlap() -> None:
    cells = [
        (place["x"] + column, place["y"] + row)
        for place in (panel["gridPos"] for panel in dashboard()["panels"])
        for column in range(place["w"])
        for row in range(place["h"])
    ]
    assert len(set(cells)) == len(cells)
    assert max(column for column, _ in cells) < 24
    assert len({panel["id"] for panel in dashboard()["panels"]}) == len(dashboard()["panels"])


@pytest.fixture(scope="module")
def promtool() -> str:
    found = shutil.which("promtool")
    if found is None:
        pytest.skip("needs promtool: apt-get install prometheus")
    return found


def assert_succeeds(*command: str) -> None:
    done = subprocess.run(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=HUNG_SECONDS, check=False
    )
    assert done.returncode == 0, done.stdout


@pytest.mark.slow
def test_promtool_accepts_the_rules(promtool: str) -> None:
    assert_succeeds(promtool, "check", "rules", str(RULES))


@pytest.mark.slow
def test_each_alert_fires_when_expected_and_not_in_normal_operation(promtool: str) -> None:
    cases = Path(__file__).with_name("alerts.yml")
    assert set(re.findall(r"alert: (\w+)", RULES.read_text())) == set(
        re.findall(r'alertname="(\w+)"', cases.read_text())
    )
    assert_succeeds(promtool, "test", "rules", str(cases))


def test_promtool_accepts_every_expression_of_the_dashboard(promtool: str, tmp_path: Path) -> None:
    rules = "".join(
        f"  - record: x{at}\n    expr: |\n      {one}\n" for at, (_, one) in enumerate(panel_expressions("5m"))
    )
    (tmp_path / "dashboard.yml").write_text(f"groups:\n- name: dashboard\n  rules:\n{rules}")
    assert_succeeds(promtool, "check", "rules", str(tmp_path / "dashboard.yml"))
