"""The shipped dashboard and alert rules, and the metric names in them."""

import json
import re
from collections.abc import Iterator
from typing import Any, Final

from tests.docs.doc_blocks import ROOT

DASHBOARD: Final = ROOT / "docs" / "deploy" / "grafana" / "caseload.json"
RULES: Final = ROOT / "docs" / "deploy" / "prometheus" / "caseload.rules.yml"


def dashboard() -> Any:
    return json.loads(DASHBOARD.read_text())


def panel_expressions(interval: str) -> Iterator[tuple[str, str]]:
    """Each title and expression of the dashboard, with Grafana's variables replaced."""
    for panel in dashboard()["panels"]:
        for target in panel["targets"]:
            expression = target["expr"].replace("$__rate_interval", interval).replace("$instance", ".*")
            assert "$" not in expression
            yield panel["title"], expression


def metrics_in(text: str) -> set[str]:
    """The metrics that an expression names; the three series of a histogram count as one."""
    return {re.sub("_(bucket|sum|count)$", "", name) for name in re.findall(r"\bcaseload_\w+", text)}


def rules_text() -> str:
    """The rules without comments and annotations, which may name metrics in prose."""
    return re.sub(r"^ +(description|summary):.*|#.*", "", RULES.read_text(), flags=re.MULTILINE)
