"""service_config.json, compared with the contract."""

import json
from importlib import resources
from typing import Any

import pytest
from caseload.client.settings import service_config
from caseload_server.observability.readiness import READINESS_SERVICES
from google.api import field_behavior_pb2
from google.protobuf.descriptor import MethodDescriptor

from tests.support.api_driver import READS, RPCS

SHIPPED: dict[str, Any] = json.loads(resources.files("caseload.client").joinpath("service_config.json").read_text())
OURS: dict[str, Any] = json.loads(service_config())
IDEMPOTENT = 2
CREATES = {"CreateTherapist", "CreatePatient", "BatchCreateTherapists", "BatchCreatePatients"}


def of_methods(config: dict[str, Any]) -> dict[tuple[str, str], dict[str, Any]]:
    """The configuration of each method."""
    entries = [(name, entry) for entry in config["methodConfig"] for name in entry["name"]]
    found = {(name["service"], name["method"]): entry for name, entry in entries}
    assert len(found) == len(entries)
    return found


def full_name(rpc: MethodDescriptor) -> tuple[str, str]:
    return str(rpc.containing_service.full_name), str(rpc.name)


def needs_a_request_id(rpc: Any) -> bool:
    field = rpc.input_type.fields_by_name.get("request_id")
    return (
        field is not None
        and field_behavior_pb2.REQUIRED in field.GetOptions().Extensions[field_behavior_pb2.field_behavior]
    )


def is_repeatable(rpc: MethodDescriptor) -> bool:
    """Whether the contract says so for every caller."""
    return rpc.name in READS or rpc.GetOptions().idempotency_level == IDEMPOTENT or needs_a_request_id(rpc)


def test_the_service_config_names_every_method_exactly_once() -> None:
    assert of_methods(SHIPPED).keys() == of_methods(OURS).keys() == {full_name(rpc) for rpc in RPCS.values()}


def test_exactly_the_methods_that_the_contract_calls_repeatable_are_retried() -> None:
    entries = of_methods(SHIPPED)
    retried = {rpc for rpc in RPCS if "retryPolicy" in entries[full_name(RPCS[rpc])]}
    assert retried == {name for name, rpc in RPCS.items() if is_repeatable(rpc)}
    assert set(RPCS) - retried == CREATES


def test_python_retries_everything_since_each_write_has_a_request_id() -> None:
    ours, shipped = of_methods(OURS), of_methods(SHIPPED)
    creates = {full_name(RPCS[name]) for name in CREATES}
    assert {name for name, entry in ours.items() if entry != shipped[name]} == creates
    assert all("retryPolicy" in entry for entry in ours.values())
    assert {name: value for name, value in OURS.items() if name != "methodConfig"} == {
        name: value for name, value in SHIPPED.items() if name != "methodConfig"
    }


def test_every_method_waits_for_a_connection_and_has_no_deadline() -> None:
    """grpcio 1.85 counts a timeout of the configuration from the wrong moment: one of a second expires at once."""
    assert [entry["waitForReady"] for entry in of_methods(SHIPPED).values()] == [True] * len(RPCS)
    assert "timeout" not in str(SHIPPED)


def test_a_watch_that_exceeds_the_limit_is_not_retried() -> None:
    watch = of_methods(SHIPPED)["caseload.v1.ChangeService", "WatchChanges"]
    assert "RESOURCE_EXHAUSTED" not in watch["retryPolicy"]["retryableStatusCodes"]


def test_the_health_check_names_a_service_that_the_server_reports() -> None:
    assert SHIPPED["healthCheckConfig"]["serviceName"] in READINESS_SERVICES


@pytest.mark.parametrize("config", [SHIPPED, OURS], ids=["shipped", "of Python"])
def test_the_service_config_stays_within_the_limits_of_every_grpc_library(config: dict[str, Any]) -> None:
    assert config["loadBalancingConfig"] == [{"round_robin": {}}]
    assert 0 < config["retryThrottling"]["maxTokens"] <= 1000
    policies = [entry["retryPolicy"] for entry in config["methodConfig"] if "retryPolicy" in entry]
    assert {policy["maxAttempts"] for policy in policies} == {5}  # every library limits a higher number to five
    back_off = {(policy["initialBackoff"], policy["maxBackoff"], policy["backoffMultiplier"]) for policy in policies}
    assert back_off == {("0.1s", "2s", 2)}
