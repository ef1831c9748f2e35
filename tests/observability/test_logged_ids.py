"""The ids of records in the access log: of every response, up to a limit, and never invalid ones."""

import re
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import grpc
import pytest
from caseload_server.domain.limits import MAX_LOGGED_IDS
from caseload_server.rpc.server import CaseloadServer

from tests.api.sample_values import is_map
from tests.observability.log_lines import lines_after, status_of
from tests.security.server_fixture import LogReader, logging
from tests.store.store_builders import run
from tests.support.api_driver import ApiDriver, full_name, refused, request


@pytest.fixture(scope="module")
def crowd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[ApiDriver, LogReader]]:
    """A therapist with a thousand patients, one of them shared with a second therapist."""
    with logging(tmp_path_factory.mktemp("crowd")) as (_, api, reader):
        api.therapists("t1", "t2")
        for start in range(0, MAX_LOGGED_IDS, 100):
            ids = CROWD[start : start + 100]
            patients = [{"patient_id": one, "patient": {"display_name": "Bob Ray"}} for one in ids]
            api.send("BatchCreatePatients", requests=patients)
            api.send("BatchAssign", requests=[{"therapist_id": "t1", "patient_id": one} for one in ids])
        api.assign("t2", CROWD[0], role=1)
        yield api, reader


CROWD = [f"p{number:04}" for number in range(MAX_LOGGED_IDS)]
DISCLOSING: dict[str, dict[str, Any]] = {
    "GetPatient": {"patient_id": CROWD[0]},
    "BatchGetPatients": {"patient_ids": CROWD[:100]},
    "ListPatients": {"page_size": MAX_LOGGED_IDS},
    "ListTherapists": {"page_size": MAX_LOGGED_IDS},
    "ListTherapistPatients": {"therapist_id": "t1", "page_size": MAX_LOGGED_IDS},
    "ListPatientTherapists": {"patient_id": CROWD[0]},
    "ListAssignments": {"page_size": MAX_LOGGED_IDS, "filter": {"therapist_id": "t1"}},
    "CheckAssignments": {"pairs": [{"therapist_id": "t1", "patient_id": one} for one in CROWD[:100]]},
    "UpdatePatient": {"patient": {"patient_id": CROWD[1], "display_name": "B"}},
    "DeletePatient": {"patient_id": CROWD[1], "force": True, "validate_only": True},
    "ListTherapistVersions": {"therapist_id": "t1"},
    "ListPatientVersions": {"patient_id": CROWD[0]},
    "ListChanges": {"page_size": 400},
    "MergePatients": {
        "source_patient_id": CROWD[0],
        "target_patient_id": CROWD[1],
        "request_id": "0190a3c4-0000-7000-8000-000000000002",
        "validate_only": True,
    },
    "BatchCreatePatients": {
        "requests": [{"patient_id": f"new-{number}", "patient": {"display_name": "B"}} for number in range(100)],
        "validate_only": True,
    },
    "BatchAssign": {
        "requests": [{"therapist_id": "t2", "patient_id": one, "ignore_capacity": True} for one in CROWD[1:101]],
        "validate_only": True,
    },
    "TransferPatients": {
        "source_therapist_id": "t1",
        "target_therapist_id": "t2",
        "patient_ids": CROWD[2:],
        "ignore_capacity": True,
        "request_id": "0190a3c4-0000-7000-8000-000000000001",
        "validate_only": True,
    },
}


@pytest.mark.parametrize("rpc", DISCLOSING)
def test_a_line_names_every_record_of_the_response(crowd: tuple[ApiDriver, LogReader], rpc: str) -> None:
    api, reader = crowd
    answer = api.send(rpc, **DISCLOSING[rpc])
    line = reader.lines()[-1]
    assert line["method"] == full_name(rpc)
    disclosed = set(people_in(answer))
    assert disclosed or rpc == "CheckAssignments"
    named = {(kind, one) for kind in ("therapist", "patient") for one in line.get(f"{kind}_ids", ())}
    asked = set(people_in(request(rpc, **DISCLOSING[rpc])))
    assert named == disclosed | asked
    assert not any(name.endswith("left_out") for name in line)


def people_in(message: Any) -> Iterator[tuple[str, str]]:
    """Every therapist and patient id at any depth of a message."""
    for field, value in message.ListFields():
        for one in value if field.is_repeated else [value]:
            kind = re.search("(therapist|patient)_ids?$", field.name)
            if field.message_type and "seconds" not in field.message_type.fields_by_name and not is_map(field):
                yield from people_in(one)
            elif kind:
                yield kind[1], one


def test_a_watch_names_up_to_1000_records_per_kind_and_marks_truncation(
    logged: tuple[CaseloadServer, ApiDriver, LogReader],
) -> None:
    server, api, reader = logged
    start = api.head()
    store: Any = server.store
    run(
        store,
        "INSERT INTO change_set (revision, committed_us, actor, method, request_id, hash_version)"
        " VALUES (1, 0, 'importer', 'm', '', 1)",
    )
    run(
        store,
        "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 1500)"
        " INSERT INTO change SELECT 1, i, 2, '', '', 'p' || i, '', NULL, NULL FROM n",
    )
    run(store, "UPDATE store SET head_revision = 1")
    watch = api.watch(start)
    assert len(next(watch).change_sets[0].changes) == 1500
    watch.cancel()
    line = lines_after(reader, 3)[-1]
    assert line["patient_ids"] == [f"p{number}" for number in range(1, MAX_LOGGED_IDS + 1)]
    assert line["patient_ids_left_out"] is True
    assert line["caller"] == "local"


def test_an_invalid_id_is_not_in_the_log(
    logged: tuple[CaseloadServer, ApiDriver, LogReader],
) -> None:
    """It may be a person's name. Fields that the server does not read are not logged either."""
    _, api, reader = logged
    with suppress(grpc.RpcError):
        api.send("GetPatient", patient_id="Do Not Repeat Me")
    with suppress(grpc.RpcError):
        api.send("BatchGetPatients", patient_ids=["do not repeat me", "p1"])
    with suppress(grpc.RpcError):
        api.send("DeletePatient", patient_id="p1", request_id="do-not-repeat-me")
    api.patients("p1", patient_id="not-p1", primary_therapist_id="not-t1")
    lines = lines_after(reader, 4)
    assert "repeat" not in reader.path.read_text().lower()
    assert [line.get("patient_ids") for line in lines] == [None, ["p1"], ["p1"], ["p1"]]
    assert [line for line in lines if "therapist_ids" in line or "request_id" in line] == []


def test_a_line_names_the_record_that_an_error_names(
    logged: tuple[CaseloadServer, ApiDriver, LogReader],
) -> None:
    """The caller learns that this patient has the identifier."""
    _, api, reader = logged
    api.patients("p1", identifiers=[{"system": "urn:x", "value": "1"}])
    assert refused(api.patients, "p2", identifiers=[{"system": "urn:x", "value": "1"}]).reason == "IDENTIFIER_TAKEN"
    assert [line["patient_ids"] for line in lines_after(reader, 2)] == [["p1"], ["p2", "p1"]]


def test_a_line_of_an_invalid_request_has_the_first_hundred_entries_of_its_lists(
    logged: tuple[CaseloadServer, ApiDriver, LogReader],
) -> None:
    """They may have any length: to look at all of them could cost more than a valid call."""
    _, api, reader = logged
    pairs = [{"therapist_id": "t1", "patient_id": one} for one in CROWD[:101]]
    assert status_of(lambda: api.send("CheckAssignments", pairs=pairs)) == "INVALID_ARGUMENT"
    assert status_of(lambda: api.send("BatchGetPatients", patient_ids=CROWD[:101])) == "INVALID_ARGUMENT"
    assert status_of(lambda: api.transfer("t1", "t2", *CROWD, request_id="x")) == "INVALID_ARGUMENT"
    assert [line["patient_ids"] for line in lines_after(reader, 3)] == [CROWD[:100]] * 3
