"""The files of docs/deploy/ pass their linters and match the server. The tests do not deploy them."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import trustme
from caseload_server import supervisor
from caseload_server.commands import main
from caseload_server.config import Config
from caseload_server.observability.readiness import LIVENESS_SERVICE, READINESS_SERVICES

from tests.deploy import manifests
from tests.deploy.manifests import CONTAINERFILE, DEPLOY, MANIFESTS, ROOT, UNIT, VARIABLES
from tests.process.command_runner import caseload, url
from tests.security.server_fixture import KeysFile
from tests.support.servers import ServerProcess
from tests.support.waiting import HUNG_SECONDS

pytestmark = pytest.mark.checkout

COMMANDS = main.commands.commands
OLDEST_KUBERNETES = "1.30"
STOP_SECONDS = Config.drain_seconds + Config.grace_seconds + supervisor._STOP_MARGIN_SECONDS
"""The maximum duration of a stop with the defaults."""


def command_output(*command: str) -> tuple[int, str]:
    done = subprocess.run(command, capture_output=True, text=True, timeout=2 * HUNG_SECONDS, check=False)
    return done.returncode, done.stdout + done.stderr


def is_valid(path: Path) -> bool:
    for options in ((), ("--kubernetes-version", OLDEST_KUBERNETES)):
        code, text = command_output(manifests.tool("kubernetes-validate"), "--strict", *options, str(path))
        if code:
            print(text)
            return False
    return True


@pytest.mark.parametrize("path", MANIFESTS, ids=lambda path: path.name)
def test_kubernetes_accepts_the_manifest(path: Path) -> None:
    assert is_valid(path)


@pytest.mark.parametrize(
    ("right", "wrong"),
    [("replicas: 3", "replicas: three"), ("replicas: 3", "replica: 3"), ("grpc: {port: 50051}", "grpc: {}")],
)
def test_the_test_detects_an_invalid_manifest(tmp_path: Path, right: str, wrong: str) -> None:
    text = (DEPLOY / "kubernetes" / "deployment-in-a-mesh.yaml").read_text()
    assert right in text
    (tmp_path / "manifest.yaml").write_text(text.replace(right, wrong))
    assert not is_valid(tmp_path / "manifest.yaml")


def test_hadolint_accepts_the_container_file() -> None:
    assert command_output(manifests.tool("hadolint"), str(CONTAINERFILE)) == (0, "")


def test_the_test_detects_an_invalid_container_file(tmp_path: Path) -> None:
    (tmp_path / "Containerfile").write_text(CONTAINERFILE.read_text() + "RUN cd / && sudo pip install caseload\n")
    assert command_output(manifests.tool("hadolint"), str(tmp_path / "Containerfile"))[0] == 1


def verified(folder: Path, text: str) -> str:
    """The output of systemd-analyze for the unit, with the command replaced by that of this environment."""
    if not shutil.which("systemd-analyze"):
        pytest.skip("needs systemd-analyze: apt-get install systemd")
    unit = folder / "caseload.service"
    unit.write_text(text.replace("/opt/caseload/bin/caseload", str(Path(sys.executable).with_name("caseload"))))
    code, words = command_output("systemd-analyze", "verify", "--man=no", str(unit))
    return words if not code or words else f"exit code {code}"


def test_systemd_accepts_the_unit(tmp_path: Path) -> None:
    assert verified(tmp_path, UNIT.read_text()) == ""


@pytest.mark.parametrize(
    ("right", "wrong"), [("TimeoutStopSec=", "TimeoutStopSecs="), ("TimeoutStopSec=60", "TimeoutStopSec=long")]
)
def test_the_test_detects_an_invalid_unit(tmp_path: Path, right: str, wrong: str) -> None:
    assert right in UNIT.read_text()
    assert "caseload.service:" in verified(tmp_path, UNIT.read_text().replace(right, wrong))


def test_the_unit_always_restarts_the_server() -> None:
    """At boot, an unavailable PostgreSQL ends the server with exit code 2, as an invalid setting does."""
    assert manifests.directives("Restart") == ["always"]
    assert manifests.directives("RestartPreventExitStatus") == []
    assert manifests.directives("StartLimitIntervalSec") == ["0"]
    assert float(manifests.directives("RestartSec")[0]) >= 5


def test_no_tls_port_is_named_cleartext() -> None:
    for service in manifests.of_kind("Service"):
        assert [one.get("appProtocol") for one in service["spec"]["ports"]] == [None]


def test_systemd_rates_the_unit_as_safe() -> None:
    if not shutil.which("systemd-analyze"):
        pytest.skip("needs systemd-analyze: apt-get install systemd")
    code, words = command_output("systemd-analyze", "security", "--offline=true", "--threshold=20", str(UNIT))
    assert code == 0, words


def test_every_command_and_flag_exists_in_caseload() -> None:
    found = manifests.commands()
    assert len(found) >= 8
    for command in found:
        assert Path(command[0]).name == "caseload"
        flags = {flag for parameter in COMMANDS[command[1]].params for flag in parameter.opts}
        assert {part for part in command[2:] if part.startswith("--")} <= flags, command


def test_every_variable_is_a_setting() -> None:
    known = {parameter.envvar for command in COMMANDS.values() for parameter in command.params if parameter.envvar}
    named = {
        name
        for path in DEPLOY.rglob("*")
        if path.is_file()
        for name in re.findall(r"CASELOAD_[A-Z_]+", path.read_text())
    }
    assert named - known == {"CASELOAD_PORT"}  # Kubernetes would set it, but service links are disabled
    assert len(named) >= 10


def test_termination_grace_periods_cover_a_full_stop() -> None:
    [unit] = manifests.directives("TimeoutStopSec")
    drained = {
        name: value for one in manifests.variables() for name, value in one.items() if name == "CASELOAD_DRAIN_SECONDS"
    }
    longer = max(map(float, drained.values())) - Config.drain_seconds
    assert float(unit) > STOP_SECONDS
    for deployment in manifests.of_kind("Deployment"):
        assert deployment["spec"]["template"]["spec"]["terminationGracePeriodSeconds"] > STOP_SECONDS + longer
    assert f"--time {int(unit)}" in CONTAINERFILE.read_text()


def test_all_manifests_run_as_the_same_non_root_user() -> None:
    assert manifests.instructions("USER") == ["10001:10001"]
    assert "-o 10001 -g 10001" in CONTAINERFILE.read_text()
    for pod in manifests.pods():
        known = pod["securityContext"]
        assert (known["runAsUser"], known["runAsGroup"], known["runAsNonRoot"]) == (10001, 10001, True)
        for container in pod["containers"]:
            assert container["securityContext"] == {
                "allowPrivilegeEscalation": False,
                "readOnlyRootFilesystem": True,
                "capabilities": {"drop": ["ALL"]},
            }


def test_the_image_installs_only_hash_pinned_packages_and_our_wheels() -> None:
    installs = [part for run in manifests.instructions("RUN") for part in run.split("&&") if " pip install " in part]
    assert len(installs) == 3
    assert all("--require-hashes" in one or "--no-deps" in one for one in installs)


def test_the_ports_match_what_the_server_listens_on() -> None:
    port = Config.address.rpartition(":")[2]
    assert manifests.instructions("EXPOSE") == [port]
    for known in manifests.variables():
        assert known.get("CASELOAD_ADDRESS", f":{port}").endswith(f":{port}")
    for deployment in manifests.of_kind("Deployment"):
        [container] = deployment["spec"]["template"]["spec"]["containers"]
        ports = {one["name"]: str(one["containerPort"]) for one in container["ports"]}
        plain = {one["name"]: one.get("value", "") for one in container["env"]}
        assert ports == {"grpc": port, "metrics": plain["CASELOAD_METRICS_ADDRESS"].rpartition(":")[2]}
        for probe in manifests.probes(container):
            assert str(probe.get("grpc", {}).get("port", port)) == port
    [service] = manifests.of_kind("Service")
    assert [str(one["port"]) for one in service["spec"]["ports"]] == [port]
    assert service["spec"]["clusterIP"] == "None"


def test_the_base_image_is_named_by_a_digest() -> None:
    bases = {image for image in manifests.instructions("FROM") if "@" in image.partition(" ")[0]}
    assert {image.partition(" ")[0] for image in bases} == {"docker.io/library/python@${PYTHON_DIGEST}"}
    assert len(manifests.instructions("FROM")) == len(bases) == 3
    assert manifests.instructions("ARG") == ["PYTHON_DIGEST"]  # without a default


def test_the_memory_limits_are_what_a_process_may_need() -> None:
    [documented] = re.findall(r"stays below (\d+) MiB", (ROOT / "docs/operations/limits-and-overload.md").read_text())
    workers = int(dict(re.findall(r"^(\w+)=(.*)$", VARIABLES.read_text(), re.MULTILINE))["CASELOAD_WORKERS"])
    assert manifests.directives("MemoryMax") == [f"{int(documented) * workers}M"]
    limited = [
        container["resources"]["limits"]["memory"]
        for deployment in manifests.of_kind("Deployment")
        for container in deployment["spec"]["template"]["spec"]["containers"]
    ]
    assert limited == [f"{documented}Mi"] * 2
    assert f"--memory {documented}m" in (ROOT / "docs/deployment.md").read_text()


def test_no_metrics_page_is_on_every_address() -> None:
    addresses = [one["CASELOAD_METRICS_ADDRESS"] for one in manifests.variables() if "CASELOAD_METRICS_ADDRESS" in one]
    assert sorted(address.rpartition(":")[0] for address in addresses) == ["$(POD_IP)", "$(POD_IP)", "127.0.0.1"]
    for deployment in manifests.of_kind("Deployment"):
        [container] = deployment["spec"]["template"]["spec"]["containers"]
        names = [one["name"] for one in container["env"]]
        assert names.index("POD_IP") < names.index("CASELOAD_METRICS_ADDRESS")  # it is expanded only then


def test_the_network_policy_admits_callers_to_grpc_and_prometheus_to_metrics() -> None:
    [policy] = [one["spec"] for one in manifests.of_kind("NetworkPolicy")]
    assert policy["policyTypes"] == ["Ingress", "Egress"]
    admitted = {port["port"]: rule["from"] for rule in policy["ingress"] for port in rule["ports"]}
    assert all(admitted.values())  # an empty list would admit everyone
    for deployment in manifests.of_kind("Deployment"):
        template = deployment["spec"]["template"]
        assert policy["podSelector"]["matchLabels"] == template["metadata"]["labels"]
        [container] = template["spec"]["containers"]
        assert admitted.keys() == {port["name"] for port in container["ports"]}
    assert all(rule["to"] and rule["ports"] for rule in policy["egress"])


def test_probes_use_service_names_that_health_knows() -> None:
    [container] = [
        container
        for pod in manifests.pods()
        for container in pod["containers"]
        if "grpc" in container.get("livenessProbe", {})
    ]
    asked = {name: probe["grpc"].get("service", "") for name, probe in container.items() if name.endswith("Probe")}
    assert asked["startupProbe"] == asked["livenessProbe"] == LIVENESS_SERVICE
    assert asked["readinessProbe"] in READINESS_SERVICES


def test_a_probe_waits_longer_than_the_command_it_runs() -> None:
    waits = []
    for container in (container for pod in manifests.pods() for container in pod["containers"]):
        for probe in manifests.probes(container):
            if "exec" in probe:
                command = probe["exec"]["command"]
                waits.append((probe["timeoutSeconds"], int(command[command.index("--timeout") + 1])))
    assert len(waits) == 3
    assert all(probe >= 2 * command for probe, command in waits)


def test_service_environment_variables_are_not_read_as_settings() -> None:
    for pod in manifests.pods():
        assert pod["enableServiceLinks"] is False
        assert pod["automountServiceAccountToken"] is False


def test_every_volume_and_selector_matches() -> None:
    for deployment in manifests.of_kind("Deployment"):
        labels = deployment["spec"]["template"]["metadata"]["labels"]
        pod = deployment["spec"]["template"]["spec"]
        assert deployment["spec"]["selector"]["matchLabels"] == labels
        [container] = pod["containers"]
        assert {one["name"] for one in container["volumeMounts"]} == {one["name"] for one in pod["volumes"]}
        [service], [budget] = manifests.of_kind("Service"), manifests.of_kind("PodDisruptionBudget")
        assert service["spec"]["selector"] == budget["spec"]["selector"]["matchLabels"] == labels
        mounted = [one["mountPath"] for one in container["volumeMounts"]]
        for one in container["env"]:
            if one.get("value", "").startswith("/"):
                assert str(Path(one["value"]).parent) in mounted


def test_the_two_deployments_differ_in_tls_and_probes_only() -> None:
    plain, encrypted = sorted(manifests.of_kind("Deployment"), key=lambda one: "tls" in str(one))
    for deployment in (plain, encrypted):
        pod = deployment["spec"]["template"]["spec"]
        [container] = pod["containers"]
        for name in [name for name in container if name.endswith("Probe")]:
            del container[name]
        container["env"] = [one for one in container["env"] if not re.search("TLS|INSECURE", one["name"])]
        container["volumeMounts"] = [one for one in container["volumeMounts"] if one["name"] != "tls"]
        pod["volumes"] = [one for one in pod["volumes"] if one["name"] != "tls"]
    assert plain == encrypted


def environments() -> list[Any]:
    kinds = ["caseload.yaml", "deployment-in-a-mesh.yaml"]
    return [pytest.param(name, id=name) for name in (*kinds, "caseload.env")]


@pytest.mark.parametrize("name", environments())
def test_a_server_starts_with_the_shipped_settings_and_becomes_ready(tmp_path: Path, name: str) -> None:
    """The files are in a folder that the test can write, and group-readable as when mounted."""
    if name.endswith(".env"):
        settings = dict(re.findall(r"^(\w+)=(.*)$", VARIABLES.read_text(), re.MULTILINE))
    else:
        [deployment] = [one for one in manifests.manifest(DEPLOY / "kubernetes" / name) if one["kind"] == "Deployment"]
        [container] = deployment["spec"]["template"]["spec"]["containers"]
        settings = {one["name"]: one["value"] for one in container["env"] if "value" in one}
    authority = trustme.CA()
    made = authority.issue_cert("caseload.example.org")
    contents = {
        "CASELOAD_TLS_CERT": made.cert_chain_pems[0].bytes(),
        "CASELOAD_TLS_KEY": made.private_key_pem.bytes(),
        "CASELOAD_TLS_CA": authority.cert_pem.bytes(),
    }
    for setting, content in contents.items():
        if setting in settings:
            (tmp_path / setting).touch(mode=0o640)
            (tmp_path / setting).write_bytes(content)
            (tmp_path / setting).chmod(0o440)
            settings[setting] = str(tmp_path / setting)
    keys = KeysFile(tmp_path / "keys")
    keys.add("billing")
    keys.path.chmod(0o440)
    database = url(tmp_path / "caseload.db")
    settings |= {
        "CASELOAD_DATABASE": database,
        "CASELOAD_KEYS_FILE": str(keys.path),
        "CASELOAD_METRICS_ADDRESS": "127.0.0.1:0",
    }
    address = settings["CASELOAD_ADDRESS"].replace(":50051", ":0")
    with ServerProcess(database, "--address", address, environment=settings, access_log=os.devnull) as server:
        settings["CASELOAD_ADDRESS"] = server.address
        ended = caseload(tmp_path, "check", **settings)
    assert (ended.returncode, ended.stdout) == (0, "caseload: ready\n"), ended.stderr
