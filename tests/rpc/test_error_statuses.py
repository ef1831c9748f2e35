"""Every error reason, caused by a real call and checked at the client."""

import json
import logging
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from caseload.v1 import error_reason_pb2
from caseload_server.config import Config
from caseload_server.domain import errors
from caseload_server.rpc.server import build_server
from caseload_server.rpc.status_map import CODES
from google.rpc import code_pb2
from grpc import StatusCode
from structlog.testing import capture_logs

from tests.api.client_calls import People, full_error_text, refused
from tests.api.error_scenarios import ALL, BROKEN_RULE, ONE, TABLE, assert_error_matches, reason_of
from tests.api.failing_servers import internal, internal_in_watch
from tests.api.fault_injection import CANARY, FaultyServer, faulty_server
from tests.security.server_fixture import await_writes
from tests.support.servers import NO_LOG, Client, ServerProcess, refusal
from tests.support.write_lock import holding_the_lock, wait_for_locks

CATALOGUE = Path(__file__).parents[2] / "protos" / "caseload" / "v1" / "error_reason.proto"


@pytest.fixture
def faulty(database_url: str) -> Iterator[FaultyServer]:
    with faulty_server(database_url) as begun:
        yield begun


@pytest.mark.parametrize("way", TABLE)
def test_a_rejected_call_carries_its_code_reason_and_details_but_no_value(faulty: FaultyServer, way: str) -> None:
    assert_error_matches(way, lambda: TABLE[way][0](faulty))


def reasons_of_classes(root: type[errors.DomainError] = errors.DomainError) -> list[str]:
    """The reasons that subclasses define. One that inherits its reason only has another text."""
    kinds = root.__subclasses__()
    own = [kind.reason for kind in kinds if "reason" in vars(kind)]
    return own + [reason for kind in kinds for reason in reasons_of_classes(kind)]


def comments_of_the_catalogue() -> dict[str, str]:
    """The comment on each reason in error_reason.proto."""
    blocks = re.findall(r"((?:  // .*\n)+)  ERROR_REASON_([A-Z_]+) = ", CATALOGUE.read_text())
    return {reason: comment.replace("  // ", "").replace("\n", " ") for comment, reason in blocks}


def test_every_reason_has_one_class_one_code_and_a_scenario() -> None:
    assert sorted(reasons_of_classes()) == sorted(CODES) == sorted(set(map(reason_of, ALL)))


def test_every_reason_is_in_the_catalogue_under_its_code() -> None:
    said = comments_of_the_catalogue()
    assert {f"ERROR_REASON_{reason}" for reason in said} == set(error_reason_pb2.ErrorReason.keys())
    codes = {reason: code_pb2.Code.Name(code) for reason, code in CODES.items()}
    assert codes == {reason: said[reason].partition(".")[0] for reason in CODES}


def test_the_catalogue_documents_metadata_and_details_of_each_reason() -> None:
    said_of = comments_of_the_catalogue()
    for reason in CODES:
        scenarios = [one for way, one in ALL.items() if reason_of(way) == reason]
        assert ("metadata" in said_of[reason].lower()) <= any(one.metadata for one in scenarios), reason
        carried = {detail for one in scenarios for detail in one.details} - BROKEN_RULE  # the code implies it
        assert set(re.findall(r"google\.rpc\.(\w+)", said_of[reason])) == carried, reason


def test_a_not_found_error_names_the_resource(faulty: FaultyServer) -> None:
    def named(call: Callable[..., object], *arguments: str) -> tuple[str, str]:
        info = refused(call, *arguments).details["ResourceInfo"]
        return info.resource_type, info.resource_name

    faulty.therapists.create("t2")
    assert named(faulty.api.get, ONE) == ("caseload.v1.Assignment", ONE)
    assert named(faulty.api.correct, ONE) == ("caseload.v1.Assignment", ONE)
    assert named(faulty.api.transfer, "t1", "t2", "p1") == ("caseload.v1.Patient", "p1")
    assert named(faulty.api.transfer, "t1", "t2", "unknown") == ("caseload.v1.Patient", "unknown")
    assert named(faulty.api.transfer, "t1", "unknown") == ("caseload.v1.Therapist", "unknown")
    assert named(faulty.api.transfer, "unknown", "t2") == ("caseload.v1.Therapist", "unknown")


def test_error_metadata_has_the_documented_values(faulty: FaultyServer) -> None:
    def metadata(way: str) -> dict[str, str]:
        return refused(TABLE[way][0], faulty).metadata

    assert metadata("THERAPIST_DELETED by transfer") == {"therapist_id": "t2"}
    assert metadata("TOO_MANY_WATCHES") == {"limit": "1"}
    assert metadata("REVISION_PRUNED") == {"oldest_revision": faulty.api.send("ListChanges").oldest_revision}
    assert metadata("TOO_MANY_ASSIGNMENTS") == {"limit": "1000", "current": "1001"}


def test_reads_do_not_wait_for_a_writer(faulty: FaultyServer, database_url: str) -> None:
    with holding_the_lock(database_url):
        assert faulty.patients.get("p1").patient_id == "p1"


def test_a_write_whose_deadline_expires_in_the_queue_is_not_executed(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    wait_for_locks(monkeypatch)
    server = build_server(Config("127.0.0.1:0", database_url, drain_seconds=0, threads=1, access_log=NO_LOG))
    server.start()
    people = People(Client(server.address), "Patient")
    create = people.client.patients.CreatePatient
    order = people.pb.CreatePatientRequest
    with holding_the_lock(database_url):
        first = create.future(order(patient_id="first", patient={"display_name": "A"}))
        await_writes(server, 1)
        late = create.future(order(patient_id="late", patient={"display_name": "B"}), timeout=0.1)
        # The server sheds a call that cannot end in time, if it looks at the queue before the deadline.
        assert late.code() in {StatusCode.DEADLINE_EXCEEDED, StatusCode.RESOURCE_EXHAUSTED}
    assert first.result().patient.patient_id == "first"
    assert refused(people.get, "late").reason == "PATIENT_NOT_FOUND"
    people.client.close()
    server.stop()


@pytest.mark.parametrize(
    ("defect", "method"),
    [(internal, "TherapistService/GetTherapist"), (internal_in_watch, "ChangeService/WatchChanges")],
    ids=["call", "stream"],
)
def test_a_defect_is_logged_with_type_and_location_but_without_its_text(
    faulty: FaultyServer,
    capfd: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
    defect: Callable[[FaultyServer], object],
    method: str,
) -> None:
    caplog.set_level(logging.DEBUG)
    with capture_logs() as lines:
        first, second = (refused(defect, faulty) for _ in range(2))
    assert first.metadata["error_id"] != second.metadata["error_id"]
    assert [line["error_id"] for line in lines] == [first.metadata["error_id"], second.metadata["error_id"]]
    assert lines[0]["type"] == "KeyError"
    assert re.fullmatch(r"fault_injection\.py:\d+", lines[0]["location"])
    assert lines[0]["method"] == f"/caseload.v1.{method}"
    printed = capfd.readouterr()
    assert CANARY not in f"{lines}{printed.out}{printed.err}{caplog.text}"


DEFECTIVE_COMMAND = f"""
from caseload_server.rpc import server
from caseload_server.commands.main import main
class Defective(server.TherapistServicer):
    def GetTherapist(self, request, context):
        try:
            raise ValueError("{CANARY} " + str(request))
        except ValueError as error:
            raise LookupError("{CANARY} again") from error
server.TherapistServicer = Defective
main()
"""


@pytest.mark.slow
def test_a_server_process_logs_a_defect_on_one_line(tmp_path: Path) -> None:
    with ServerProcess(
        f"sqlite:///{tmp_path}/caseload.db", command=(sys.executable, "-c", DEFECTIVE_COMMAND)
    ) as process:
        client = Client(process.address)
        with pytest.raises(grpc.RpcError) as caught:
            People(client, "Therapist").get("t1")
        client.close()
        _, log = process.stop()
    error_id = refusal(caught.value).metadata["error_id"]
    [line] = [json.loads(line) for line in log.splitlines() if error_id in line]
    assert line["type"] == "LookupError"
    assert re.fullmatch(r"<string>:\d+", line["location"])
    assert CANARY not in log + full_error_text(caught.value)


def with_long_ids(faulty: FaultyServer, *, are_deleted: bool = False) -> list[str]:
    """Creates more patients than an error can name, and returns their ids."""
    ids = [f"{n:02}" + "x" * 61 for n in range(20)]
    for one in ids:
        faulty.patients.create(one)
        if are_deleted:
            faulty.patients.delete(one)
    return ids


NAMING = {"PATIENT_NOT_FOUND", "PATIENT_DELETED", "ASSIGNMENT_NOT_FOUND"}
MANY: dict[str, Callable[[FaultyServer], object]] = {
    "missing ids": lambda s: s.patients.call("BatchGet", ids=[f"{n:03}" + "x" * 60 for n in range(100)]),
    "malformed ids": lambda s: s.therapists.call("BatchGet", ids=["X" * 63] * 100),
    "annotations": lambda s: s.therapists.create(
        "X", annotations={f"{n}\x00" + "k" * 80: "\x00" * 2000 for n in range(32)}
    ),
    "identifiers": lambda s: s.therapists.create(
        "X", identifiers=[{"system": "http://hl7.org/fhir/sid/us-npi", "value": "1234567890"}] * 20
    ),
    "mask": lambda s: s.therapists.update("t1", *["x" * 500] * 100, display_name="A"),
    "patients to transfer": lambda s: s.api.transfer("t1", "t2", *[f"{n:04}" + "x" * 59 for n in range(1000)]),
    "malformed patients to transfer": lambda s: s.api.transfer("t1", "t2", *["X" * 63] * 1000),
    "pairs": lambda s: s.api.checked(*[("X" * 63, "")] * 100),
    "mask of a correction": lambda s: s.api.correct(ONE, *["x" * 500] * 100, focus="X"),
    "roles": lambda s: s.api.listed(roles=[2**31 - 1] * 100, states=[-1] * 100, therapist_id="X"),
    "deleted patients": lambda s: s.api.transfer("t1", "t2", *with_long_ids(s, are_deleted=True)),
    "patients of others": lambda s: s.api.transfer("t1", "t2", *with_long_ids(s)),
    "statuses": lambda s: s.therapists.call("List", filter={"statuses": [2**31 - 1] * 100, "specialties": ["X"] * 20}),
}


@pytest.mark.slow
@pytest.mark.parametrize("case", MANY)
def test_error_details_stay_under_4_kib(faulty: FaultyServer, case: str) -> None:
    faulty.therapists.create("t2")
    with pytest.raises(grpc.RpcError) as caught:
        MANY[case](faulty)
    found = refusal(caught.value)
    assert found.reason in {*NAMING, "INVALID_FIELD"}
    assert found.reason in NAMING or len(found.fields) == 20
    error: Any = caught.value
    sent = sum(len(key) + len(value) for key, value in error.trailing_metadata()) + len(error.details())
    assert 500 < sent < 4096


def test_100_missing_ids_are_counted_even_when_not_all_are_named(faulty: FaultyServer) -> None:
    assert refused(MANY["missing ids"], faulty).metadata == {"missing": "100"}
