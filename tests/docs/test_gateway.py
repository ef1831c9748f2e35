"""docs/deploy/gateway translates HTTP calls: what it passes on, and how errors look to an HTTP caller."""

import re
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import grpc
import pytest

from tests.client.fake_server import fake_server
from tests.docs.doc_blocks import ROOT
from tests.support.gateway import Answer, curl, find_gateway, gateway
from tests.support.secure_server import SecureServer
from tests.support.waiting import HUNG_SECONDS

pytestmark = [pytest.mark.slow, pytest.mark.checkout]


class Http(NamedTuple):
    """An HTTP caller with a key."""

    url: str
    key: str
    folder: Path
    server: SecureServer

    def call(self, call: str, data: Any = None, *arguments: str) -> Answer:
        """Calls for instance "GET /v1/therapists/ada"."""
        method, path = call.split(" ", 1)
        sent = ("--cacert", str(self.folder / "ca.pem"), "--header", f"Authorization: Bearer {self.key}", *arguments)
        return curl(self.url + path, *sent, data=data, method=method)


@pytest.fixture(scope="module")
def http(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Http]:
    """A gateway with TLS on both sides, before a server with keys."""
    find_gateway()
    folder = tmp_path_factory.mktemp("gateway")
    with SecureServer(folder) as server:
        pair = ("-tls-cert", str(folder / "cert.pem"), "-tls-key", str(folder / "cert.key"))
        backend = ("-backend", f"dns:///{server.address}", "-backend-ca", str(folder / "ca.pem"))
        with gateway(*pair, *backend) as address:
            yield Http(f"https://{address.replace('127.0.0.1', 'localhost')}", server.key, folder, server)


@pytest.fixture
def patient(http: Http) -> str:
    """The id of a patient with an e-mail address."""
    created = http.call("POST /v1/patients", {"display_name": "Jane Doe", "email": "jane@example.org"})
    assert created.status == 200, created
    return str(created.body["patient"]["patient_id"])


def test_names_of_fields_are_those_of_the_contract_and_defaults_are_shown(http: Http, patient: str) -> None:
    shown = http.call(f"GET /v1/patients/{patient}").body["patient"]
    assert shown["display_name"] == "Jane Doe"
    assert shown["active_therapist_count"] == 0
    assert "delete_time" not in shown


def test_no_cache_may_keep_an_answer(http: Http, patient: str) -> None:
    headers = str(http.folder / "headers")
    for call in (f"GET /v1/patients/{patient}", "GET /v1/patients/missing"):
        http.call(call, None, "--dump-header", headers)
        assert "cache-control: no-store" in Path(headers).read_text().lower()


def test_an_update_sets_the_fields_of_its_mask(http: Http, patient: str) -> None:
    new = {"display_name": "Jane Poe", "email": ""}
    updated = http.call(f"PATCH /v1/patients/{patient}?update_mask=email", new).body["patient"]
    assert (updated["display_name"], updated["email"]) == ("Jane Doe", "")


def test_an_update_without_a_mask_sets_what_is_populated_as_in_grpc(http: Http, patient: str) -> None:
    new = {"display_name": "Jane Poe", "email": ""}
    updated = http.call(f"PATCH /v1/patients/{patient}", new).body["patient"]
    assert (updated["display_name"], updated["email"]) == ("Jane Poe", "jane@example.org")


def test_a_request_id_makes_a_create_take_effect_once(http: Http) -> None:
    call = f"POST /v1/therapists?request_id={uuid.uuid4()}"
    first, second = (http.call(call, {"display_name": "Ada Roe"}).body for _ in range(2))
    assert first == second


def test_a_search_has_its_filter_and_order_in_the_body(http: Http) -> None:
    entries: list[dict[str, Any]] = [
        {"patient": {"display_name": f"Zoë {name}", "birth_date": {"year": 1987, "month": 3}}}
        for name in ("Poe", "Lee")
    ]
    created = http.call("POST /v1/patients:batchCreate", {"requests": entries})
    assert created.status == 200, created
    wanted = {"filter": {"name_prefix": "zoe", "birth_date": {"year": 1987}}, "order_by": "display_name"}
    found = http.call("POST /v1/patients:search", {**wanted, "include_total_size": True}).body
    assert [one["display_name"] for one in found["patients"]] == ["Zoë Lee", "Zoë Poe"]
    assert found["patients"][0]["birth_date"] == {"year": 1987, "month": 3, "day": 0}
    assert found["total_size"] == 2
    assert "total_size" not in http.call("POST /v1/patients:search", wanted).body


def test_an_error_of_a_batch_names_the_entry(http: Http) -> None:
    entries = [{"therapist_id": "same", "therapist": {"display_name": "Ada Roe"}}] * 2
    refused = http.call("POST /v1/therapists:batchCreate", {"requests": entries})
    assert (refused.status, refused.reason) == (409, "ID_TAKEN")
    assert refused.detail("ErrorInfo")["metadata"] == {"index": "1", "other_index": "0"}


def test_an_error_has_its_reason_and_metadata(http: Http) -> None:
    missing = http.call("GET /v1/therapists/nobody")
    assert (missing.status, missing.reason) == (404, "THERAPIST_NOT_FOUND")
    assert missing.detail("ResourceInfo")["resource_name"] == "nobody"


def test_an_invalid_field_is_named(http: Http) -> None:
    refused = http.call("POST /v1/patients", {"display_name": "", "phone_number": "Canary-Zq9"})
    assert (refused.status, refused.reason) == (400, "INVALID_FIELD")
    assert refused.fields == ["patient.display_name", "patient.phone_number"]
    assert "Canary" not in refused.text


@pytest.mark.parametrize(
    ("call", "data"),
    [
        ("POST /v1/patients", '{"display_name": "Canary-Zq9"'),
        ("POST /v1/patients", {"display_name": {"Canary-Zq9": 1}}),
        ("POST /v1/patients", {"Canary-Zq9": "Canary-Zq9"}),
        ("POST /v1/patients", {"status": "Canary-Zq9"}),
        ("POST /v1/patients:search", {"page_size": "Canary-Zq9"}),
        ("GET /v1/assignments?page_size=Canary-Zq9", None),
        ("GET /v1/assignments?canary=Canary-Zq9", None),
        ("GET /v1/patients/jane?display_name=Canary-Zq9", None),
        ("POST /v1/patients:search?filter.name_prefix=Canary-Zq9", {}),
        ("POST /v1/patients/jane:undelete?patient_id=Canary-Zq9", {}),
        ("POST /v1/patients?patient.display_name=Canary-Zq9", {"display_name": "Jane Doe"}),
        ("DELETE /v1/patients/jane?patientId=Canary-Zq9", None),
        ("DELETE /v1/patients/jane", {"etag": "Canary-Zq9"}),
        ("GET /v1/assignments", {"therapist_id": "Canary-Zq9"}),
        ("POST /v1/patients", '{"display_name": "Jane Doe"} {"email": "Canary-Zq9"}'),
        ("POST /v1/patients", '{"display_name": "Jane Doe"} Canary-Zq9'),
        ("GET /v1/patients/Canary-%ff", None),
        ("GET /v1/assignments?page_token=Canary-%ff", None),
    ],
)
def test_a_call_that_does_not_match_the_contract_is_refused_and_not_repeated(http: Http, call: str, data: Any) -> None:
    refused = http.call(call, data)
    assert (refused.status, refused.reason, refused.fields) == (400, "INVALID_FIELD", [""])
    assert "canary" not in refused.text.lower()


@pytest.mark.parametrize("slash", ["%2F", "%2f", "%252F"])
def test_an_id_with_an_escaped_slash_makes_no_other_call(http: Http, patient: str, slash: str) -> None:
    therapist = http.call("POST /v1/therapists", {"display_name": "Ada Roe"}).body["therapist"]["therapist_id"]
    assigned = http.call(f"POST /v1/therapists/{therapist}/patients/{patient}", {})
    refused = http.call(f"DELETE /v1/patients/{patient}{slash}therapists{slash}{therapist}")
    assert (refused.status, refused.fields) == (400, ["patient_id"])
    found = http.call(f"GET /v1/assignments/{assigned.body['assignment']['assignment_id']}").body["assignment"]
    assert found["state"] == "STATE_ACTIVE"


def test_an_id_with_an_escaped_colon_makes_no_other_call(http: Http, patient: str) -> None:
    assert http.call(f"POST /v1/patients/{patient}%3Aundelete", {}).status == 405
    assert http.call("GET /v1/patients%3AbatchGet").status == 404


def test_an_unknown_path_and_method_have_their_http_status(http: Http) -> None:
    assert http.call("GET /v1/nothing").status == 404
    assert http.call("PUT /v1/patients").status == 405


def test_a_call_without_a_key_is_unauthenticated(http: Http) -> None:
    refused = http._replace(key="wrong").call("GET /v1/therapists/ada")
    assert (refused.status, refused.reason) == (401, "UNAUTHENTICATED")


def test_an_etag_that_does_not_match_is_a_conflict(http: Http, patient: str) -> None:
    refused = http.call(f"DELETE /v1/patients/{patient}?etag=0123456789abcdef")
    assert (refused.status, refused.reason) == (409, "ETAG_MISMATCH")


def test_no_call_fails_while_the_server_restarts(http: Http, patient: str) -> None:
    with ThreadPoolExecutor(2) as callers:
        running = callers.submit(lambda: [http.call(f"GET /v1/patients/{patient}").status for _ in range(60)])
        for _ in range(2):
            http.server.restart()
        assert set(running.result(HUNG_SECONDS)) == {200}


def test_the_end_user_of_a_call_is_in_the_change_log(http: Http) -> None:
    user = ("--header", "Caseload-On-Behalf-Of: user:7")
    created = http.call("POST /v1/therapists", {"display_name": "Ada Roe"}, *user).body
    found = http.call("POST /v1/changes:search", {"filter": {"on_behalf_of": "user:7"}}).body["change_sets"]
    assert [(change["revision"], change["on_behalf_of"]) for change in found] == [(created["revision"], "user:7")]


@pytest.mark.parametrize("users", [("jane@example.org",), ("Jané",), ("user:7", "user:8")])
def test_a_malformed_end_user_is_refused(http: Http, users: tuple[str, ...]) -> None:
    headers = [text for user in users for text in ("--header", f"Caseload-On-Behalf-Of: {user}")]
    refused = http.call("POST /v1/therapists", {"display_name": "Ada Roe"}, *headers)
    assert (refused.status, refused.fields) == (400, ["metadata.caseload-on-behalf-of"])


def test_the_health_of_the_servers_is_shown(http: Http) -> None:
    assert http.call("GET /healthz").body == {"status": "SERVING"}


@pytest.mark.parametrize(
    "arguments", [("-listen", "0.0.0.0:0"), ("-backend", "dns:///192.0.2.1:50051", "-backend-plaintext")]
)
def test_the_gateway_refuses_plain_text_beyond_loopback(arguments: tuple[str, ...]) -> None:
    with pytest.raises(AssertionError), gateway("-backend-plaintext", *arguments):
        pass


@pytest.mark.parametrize(("asked", "longest"), [("", 10), ("60S", 10), ("0S", 10), ("9S", 9)])
def test_a_caller_can_shorten_the_deadline_and_not_extend_it(asked: str, longest: float) -> None:
    header = ("--header", f"Grpc-Timeout: {asked}") if asked else ()
    with fake_server() as peer, gateway("-backend", peer.address, "-backend-plaintext") as address:
        assert curl(f"http://{address}/v1/patients/jane", *header).status == 200
    [attempt] = peer.attempts
    assert 0 < attempt.seconds_left <= longest


def channel_options(text: str) -> list[str]:
    """The lines of the Go code that set the options of a channel, from its service config on."""
    _, _, options = text.partition("grpc.WithDefaultServiceConfig")
    largest = re.findall(r"largestReplyBytes = (\d+ << \d+)", text)
    lines = options.partition("\n}")[0].replace("largestReplyBytes", "".join(largest).replace(" ", "")).splitlines()
    return [line.strip() for line in lines]


def test_the_gateway_has_the_channel_options_of_the_page_on_go() -> None:
    options = channel_options((ROOT / "docs" / "deploy" / "gateway" / "main.go").read_text())
    assert options[-1] == "grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(16<<20)))"
    assert options == channel_options((ROOT / "docs" / "clients" / "go.md").read_text())


class HeaderRecorder(grpc.GenericRpcHandler):
    """Refuses every call, and keeps its metadata."""

    def __init__(self) -> None:
        self.seen: list[tuple[str, str | bytes]] = []

    def service(self, call: grpc.HandlerCallDetails) -> None:
        self.seen += call.invocation_metadata


def test_only_known_headers_reach_the_server() -> None:
    recorder = HeaderRecorder()
    server = grpc.server(ThreadPoolExecutor(1), handlers=[recorder])
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    sent = {"Authorization": "Bearer abc", "Caseload-On-Behalf-Of": "user:7", "Cookie": "session=1"}
    sent["Traceparent"] = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    sent["Grpc-Metadata-Authorization"] = "Bearer other"
    arguments = [text for header in sent.items() for text in ("--header", ": ".join(header))]
    arguments += ["--header", "Caseload-On-Behalf-Of: Jané"]
    try:
        with gateway("-backend", f"127.0.0.1:{port}", "-backend-plaintext") as address:
            assert curl(f"http://{address}/v1/patients/jane", *arguments).status == 501
    finally:
        server.stop(None).wait(HUNG_SECONDS)
    ours = {key for key, _ in recorder.seen} - {"user-agent", "x-forwarded-for", "x-forwarded-host"}
    assert ours == {"authorization", "caseload-on-behalf-of", "traceparent"}
    assert [value for key, value in recorder.seen if key == "authorization"] == ["Bearer abc"]
    assert [value for key, value in recorder.seen if key == "caseload-on-behalf-of"] == ["user:7", "?"]
