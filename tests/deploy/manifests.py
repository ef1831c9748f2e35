"""Parsed files of docs/deploy/."""

import json
import re
import shlex
import subprocess
from pathlib import Path
from typing import Any, Final

import pytest

from tests.support.waiting import HUNG_SECONDS

ROOT: Final = Path(__file__).parents[2]
DEPLOY: Final = ROOT / "docs" / "deploy"
UNIT: Final = DEPLOY / "systemd" / "caseload.service"
VARIABLES: Final = DEPLOY / "systemd" / "caseload.env"
CONTAINERFILE: Final = DEPLOY / "container" / "Containerfile"
MANIFESTS: Final = sorted((DEPLOY / "kubernetes").glob("*.yaml"))
_PARSE: Final = "import json, sys, yaml; json.dump(list(yaml.safe_load_all(sys.stdin)), sys.stdout)"


def tool(name: str) -> str:
    """A program from the environment that `make check-deploy` creates."""
    path = ROOT / ".tools" / "deploy" / "bin" / name
    if not path.exists():
        pytest.skip(f"needs {path.relative_to(ROOT)}: make check-deploy")
    return str(path)


def manifest(path: Path) -> list[dict[str, Any]]:
    """The YAML documents of a manifest."""
    with path.open() as file:
        done = subprocess.run(
            [tool("python"), "-c", _PARSE], stdin=file, capture_output=True, check=True, timeout=HUNG_SECONDS
        )
    documents: list[dict[str, Any]] = json.loads(done.stdout)
    return documents


def pods() -> list[dict[str, Any]]:
    """The pod specification of every Deployment and Job."""
    made = [one.get("spec", {}).get("template") for path in MANIFESTS for one in manifest(path)]
    return [template["spec"] for template in made if template]


def of_kind(kind: str) -> list[dict[str, Any]]:
    """All documents of a kind."""
    return [one for path in MANIFESTS for one in manifest(path) if one["kind"] == kind]


def directives(name: str) -> list[str]:
    """The values of a unit setting, in order."""
    return re.findall(rf"^{name}=(.*)$", UNIT.read_text(), re.MULTILINE)


def instructions(name: str) -> list[str]:
    """The arguments of each container file instruction of this kind, with continuation lines joined."""
    text = CONTAINERFILE.read_text().replace("\\\n", " ")
    return [" ".join(found.split()) for found in re.findall(rf"^{name} (.*)$", text, re.MULTILINE)]


def commands() -> list[list[str]]:
    """Each `caseload ...` command line in any of the files."""
    _, _, probe = instructions("HEALTHCHECK")[0].partition("CMD ")
    found = [json.loads(probe), json.loads(instructions("ENTRYPOINT")[0]) + json.loads(instructions("CMD")[0])]
    found += [shlex.split(line) for line in directives("ExecStart")]
    for container in (container for pod in pods() for container in pod["containers"]):
        found.append(["caseload", *container["args"]])
        found += [probe["exec"]["command"] for probe in probes(container) if "exec" in probe]
    return found


def probes(container: dict[str, Any]) -> list[dict[str, Any]]:
    """The probes of a container, sorted by name."""
    return [container[name] for name in sorted(container) if name.endswith("Probe")]


def variables() -> list[dict[str, str]]:
    """The plain environment variables of each Deployment, the image and the unit."""
    found = [
        {one["name"]: one["value"] for one in container.get("env", ()) if "value" in one}
        for pod in pods()
        for container in pod["containers"]
    ]
    found.append(dict(re.findall(r"(CASELOAD_\w+)=(\S+)", CONTAINERFILE.read_text())))
    found.append(dict(re.findall(r"^(\w+)=(.*)$", VARIABLES.read_text(), re.MULTILINE)))
    return found
