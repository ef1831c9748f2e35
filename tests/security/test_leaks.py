"""No output contains private values: the tests send them in every field of every RPC and search every output."""

import base64
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

import grpc
import pytest
import structlog
from caseload_server.api.change_service import ChangeServicer
from caseload_server.api.page_tokens import PageTokens
from caseload_server.api.patient_service import PatientServicer
from caseload_server.domain import errors
from caseload_server.observability import access_log
from caseload_server.observability.metrics import Metrics
from caseload_server.store import RelationshipStore
from opentelemetry import trace
from prometheus_client import Counter

from tests.conftest import serving
from tests.observability.metrics_client import page
from tests.observability.trace_collector import Collector, collector
from tests.security.canaries import CANARY, Caller, leaking_outputs
from tests.support.api_driver import RPCS, full_name
from tests.support.servers import ServerProcess, free_address

__all__ = ["collector"]

Patch = Callable[[pytest.MonkeyPatch], None]
CREATE: Final = PatientServicer.CreatePatient
VERBS: Final = [name for name, verb in vars(RelationshipStore).items() if callable(verb) and not name.startswith("_")]


def nothing(_: pytest.MonkeyPatch) -> None:
    """Plants no defect."""


def crash_in_the_store(monkeypatch: pytest.MonkeyPatch) -> None:
    """Plants a realistic defect in every verb of the store: the text of its exception quotes the arguments."""

    def crash(_self: RelationshipStore, *arguments: Any, **_: Any) -> Any:
        raise RuntimeError(f"{CANARY} {arguments}") from KeyError(f"{CANARY} {arguments}")

    for verb in VERBS:
        if verb not in {
            "close",
            "head",
            "check",
            "wait_for_commit",
            "stop_waiting",
        }:  # the server's own threads call these
            monkeypatch.setattr(RelationshipStore, verb, crash)


def creating(instead: Callable[[Any, Any, grpc.ServicerContext], Any]) -> Patch:
    """Plants a defect in CreatePatient."""
    return lambda monkeypatch: monkeypatch.setattr(PatientServicer, "CreatePatient", instead)


def log_it(self: Any, request: Any, context: grpc.ServicerContext) -> Any:
    structlog.get_logger().info("created", name=request.patient.display_name)
    return CREATE(self, request, context)


def print_it(self: Any, request: Any, context: grpc.ServicerContext) -> Any:
    print(request.patient.phone_number, file=sys.stderr)
    return CREATE(self, request, context)


def refuse_with_it(_self: Any, request: Any, _context: grpc.ServicerContext) -> Any:
    raise errors.InvalidField(errors.Violation("patient.email", f"{request.patient.email} is no address"))


def tell_it_in_a_detail(_self: Any, request: Any, _context: grpc.ServicerContext) -> Any:
    born = request.patient.birth_date
    raise errors.IdTaken(born=f"{born.year}-{born.month:02}-{born.day:02}")


def trace_it(self: Any, request: Any, context: grpc.ServicerContext) -> Any:
    trace.get_current_span().set_attribute("born", f"{request.patient.birth_date.year}-7-13")
    return CREATE(self, request, context)


def trail_it(self: Any, request: Any, context: grpc.ServicerContext) -> Any:
    context.set_trailing_metadata((("x-name", request.patient.email),))
    return CREATE(self, request, context)


def token_of_the_filter(monkeypatch: pytest.MonkeyPatch) -> None:
    def issue(_self: PageTokens, request: Any, after: str, _after_key: str | int = "") -> str:
        return base64.urlsafe_b64encode(request.SerializeToString()).decode() if after else ""

    monkeypatch.setattr(PageTokens, "issue", issue)


def token_of_the_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(PageTokens, "_encrypt", lambda _self, _request_hash, position: position)


def anything_for_an_id(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(access_log, "only_ids", lambda texts: texts)


def actors_in_changes(monkeypatch: pytest.MonkeyPatch) -> None:
    list_changes = ChangeServicer.ListChanges

    def ListChanges(self: Any, request: Any, context: grpc.ServicerContext) -> Any:
        answer = list_changes(self, request, context)
        answer.change_sets.add(actor=request.filter.actor)
        return answer

    monkeypatch.setattr(ChangeServicer, "ListChanges", ListChanges)


def log_old_versions(monkeypatch: pytest.MonkeyPatch) -> None:
    list_versions = PatientServicer.ListPatientVersions

    def ListPatientVersions(self: Any, request: Any, context: grpc.ServicerContext) -> Any:
        answer = list_versions(self, request, context)
        structlog.get_logger().info("listed", names=[old.patient.display_name for old in answer.versions[1:]])
        return answer

    monkeypatch.setattr(PatientServicer, "ListPatientVersions", ListPatientVersions)


def count_it(monkeypatch: pytest.MonkeyPatch) -> None:
    initialise = Metrics.__init__

    def with_names(metrics: Metrics, worker: int | None) -> None:
        initialise(metrics, worker)
        by_name = Counter("caseload_creations", "", ["name"], registry=metrics.registry)

        def count(self: Any, request: Any, context: grpc.ServicerContext) -> Any:
            by_name.labels(request.patient.display_name).inc()
            return CREATE(self, request, context)

        monkeypatch.setattr(PatientServicer, "CreatePatient", count)

    monkeypatch.setattr(Metrics, "__init__", with_names)


LEAKS: Final[dict[Patch, str]] = {
    creating(log_it): "stdout",
    creating(print_it): "stderr",
    creating(refuse_with_it): "refusal",
    creating(tell_it_in_a_detail): "refusal",
    creating(trail_it): "metadata",
    token_of_the_filter: "answer",
    token_of_the_name: "answer",
    anything_for_an_id: "stderr",
    actors_in_changes: "answer",
    log_old_versions: "stdout",
    creating(trace_it): "traces",
    count_it: "metrics",
}
"""Each planted leak, and the output in which it appears."""


@pytest.fixture
def outputs(
    request: pytest.FixtureRequest,
    capfd: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
    database_url: str,
) -> Iterator[dict[str, str]]:
    """Every output by name, after every call to a server with the defect that the test requests."""
    spans: Collector = request.getfixturevalue("collector")
    if request.param is not crash_in_the_store:
        request.param(monkeypatch)
    with serving(database_url, metrics_address="127.0.0.1:0", access_log=None) as server:  # it goes to standard error
        caller = Caller(server.address)
        caller.prepare()
        if request.param is crash_in_the_store:
            request.param(monkeypatch)
        caller.call_everything()
        caller.close()
        metrics = page(server.metrics_address)
    printed = capfd.readouterr()
    collected = {name: "\n".join(texts) for name, texts in caller.outputs.items()}
    collected |= {"stdout": printed.out, "stderr": printed.err, "library": caplog.text, "metrics": metrics}
    yield {**collected, "traces": spans.text()}
    monkeypatch.undo()


@pytest.mark.parametrize("outputs", [nothing], indirect=True, ids=[""])
def test_no_output_contains_private_values(outputs: dict[str, str]) -> None:
    assert leaking_outputs(outputs) == []
    assert outputs["stderr"].count('"event":"call"') > 500
    assert outputs["refusal"].count("INVALID_FIELD") > 300
    assert "next_page_token=" in outputs["answer"]
    assert "to_revision=" in outputs["answer"]  # what records were before was listed
    assert 'caseload_call_errors_total{reason="INVALID_FIELD"}' in outputs["metrics"]
    assert "PatientService" in outputs["reflection"]
    assert {name for name in RPCS if f'name: "{full_name(name)[1:]}"' in outputs["traces"]} == RPCS.keys()
    assert "store.commit" in outputs["traces"]


@pytest.mark.slow
@pytest.mark.parametrize("outputs", [crash_in_the_store], indirect=True, ids=[""])
def test_no_output_contains_private_values_when_the_store_crashes(outputs: dict[str, str]) -> None:
    assert leaking_outputs(outputs) == []
    assert outputs["refusal"].count("error_id") > 20
    assert outputs["stdout"].count("RuntimeError") > 20
    assert outputs["traces"].count("RuntimeError") > 20


def test_a_time_in_an_output_is_no_leak() -> None:
    assert leaking_outputs({"traces": "start_time_unix_nano: 1796043193171300000"}) == []


@pytest.mark.parametrize("born", ["1931-07-13", "1931-7-13", "19310713", "1931/07/13"])
def test_a_date_of_birth_in_an_output_is_a_leak(born: str) -> None:
    assert leaking_outputs({"traces": f"born: {born}, 17", "other": "born: 1931"}) == ["traces"]


@pytest.mark.slow
@pytest.mark.parametrize(("outputs", "where"), LEAKS.items(), indirect=["outputs"], ids=map(str, range(len(LEAKS))))
def test_a_planted_leak_is_found(outputs: dict[str, str], where: str) -> None:
    assert leaking_outputs(outputs) == [where]


CRASHING: Final = """
from caseload_server.store import RelationshipStore
from caseload_server.commands.main import main
def crash(self, *arguments):
    raise LookupError(str(arguments))
RelationshipStore.list_records = RelationshipStore.update = crash
main()
"""


@pytest.mark.slow
def test_a_server_process_exposes_no_private_values(tmp_path: Path) -> None:
    """Searches its log, access log, metrics, arguments and file names."""
    folder = tmp_path / "data"
    folder.mkdir()
    command = (sys.executable, "-c", CRASHING)
    access = tmp_path / "access.log"
    metrics_address = free_address()
    arguments = ("--access-log", str(access), "--metrics-address", metrics_address)
    with ServerProcess(f"sqlite:///{folder}/caseload.db", *arguments, command=command) as process:
        caller = Caller(process.address)
        caller.prepare()
        caller.call_everything()
        caller.close()
        shown = Path(f"/proc/{process.process.pid}/cmdline").read_text().replace("\0", " ")
        metrics = page(metrics_address)
        files = " ".join(path.name for path in folder.iterdir())
        _, log = process.stop()
    outputs = {"arguments": shown, "files": files, "log": log, "access log": access.read_text(), "metrics": metrics}
    assert leaking_outputs({**outputs, **{name: "\n".join(texts) for name, texts in caller.outputs.items()}}) == []
    assert sum(json.loads(line)["event"] == "call failed" for line in log.splitlines()) > 10
    assert 'caseload_log_events_total{level="error"}' in metrics
    assert "caseload.db" in files
    assert "serve" in shown
