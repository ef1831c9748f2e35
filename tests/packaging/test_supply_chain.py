"""Dependencies are pinned, hashed, audited and listed."""

import json
import os
import re
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from tests.support.waiting import HUNG_SECONDS

pytestmark = pytest.mark.checkout

ROOT = Path(__file__).parents[2]
REQUIREMENTS = sorted((ROOT / "requirements").glob("*.txt"))
SBOM = ROOT / "dist" / "caseload-server.cdx.json"
PIN = re.compile(r"^([a-z0-9-]+)==([^ ;\\]+)", re.MULTILINE)

needs_audit = pytest.mark.skipif(
    not (ROOT / ".tools" / "audit" / "installed").exists(), reason="needs .tools/audit: `make audit` sets it up"
)


def make(target: str, **variables: str) -> "subprocess.CompletedProcess[str]":
    # Under `make test`, inherited flags would make this make print the folder it enters.
    alone = {name: value for name, value in os.environ.items() if not name.startswith("MAKE")}
    return subprocess.run(
        ["make", target],
        cwd=ROOT,
        env=alone | variables,
        capture_output=True,
        text=True,
        timeout=2 * HUNG_SECONDS,
        check=False,
    )


@pytest.mark.parametrize("path", REQUIREMENTS, ids=lambda path: str(path.name))
def test_every_requirement_is_one_version_with_hashes(path: Path) -> None:
    entries = re.sub(r"\\\n|^ *#.*\n", "", path.read_text(), flags=re.MULTILINE).split("\n")
    entries = [entry for entry in entries if entry]
    loose = [entry for entry in entries if not (PIN.match(entry) and " --hash=sha256:" in entry)]
    assert entries
    assert loose == []


def test_every_third_party_package_is_installed_by_hash() -> None:
    lines = (ROOT / "Makefile").read_text().splitlines() + (ROOT / ".ci" / "run").read_text().splitlines()
    installs = [line for line in lines if re.search(r"\(PIP_INSTALL\) |^[^:]*\bpip (install|wheel|download)\b", line)]
    assert len(installs) >= 6
    hashed = re.compile(r"--require-hashes -r requirements/[\w$*-]+\.txt|--no-deps ")
    assert [line for line in installs if not hashed.search(line)] == []


@pytest.mark.slow
@needs_audit
def test_the_sbom_lists_every_pinned_package_of_the_server_with_its_hashes_and_licence() -> None:
    made = make("sbom")
    assert (made.returncode, made.stderr) == (0, "")
    sbom = json.loads(SBOM.read_text())
    assert (sbom["bomFormat"], sbom["metadata"]["component"]["name"]) == ("CycloneDX", "caseload-server")
    listed = {(one["name"], one["version"]): one for one in sbom["components"]}
    pinned = set(PIN.findall((ROOT / "requirements" / "runtime.txt").read_text()))
    assert len(pinned) >= 10
    assert {name for name, _ in listed.keys() - pinned} == {"caseload-client"}  # our own stubs, released together
    assert pinned - listed.keys() == set()
    assert [pin for pin in pinned if not listed[pin]["externalReferences"][0]["hashes"]] == []
    assert [name for (name, _), one in listed.items() if not one.get("licenses")] == []
    assert listed["tzdata", dict(pinned)["tzdata"]]["licenses"] == [{"expression": "Apache-2.0"}]  # only on Windows
    assert listed["grpcio", dict(pinned)["grpcio"]]["licenses"] == [{"expression": "Apache-2.0"}]


@contextmanager
def advisories(*vulnerable: str) -> Iterator[str]:
    """Runs an advisory source with one advisory for every version of these packages; yields its URL."""

    class Source(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            package = json.loads(self.rfile.read(int(self.headers["Content-Length"])))["package"]
            known = [{"id": "TEST-1", "affected": [{"package": package}]}] if package["name"] in vulnerable else []
            self.send_response(200)
            self.end_headers()
            self.wfile.write(json.dumps({"vulns": known} if known else {}).encode())

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the name in the base class
            """Logs nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Source) as source:
        threading.Thread(target=source.serve_forever).start()
        yield f"http://127.0.0.1:{source.server_port}"
        source.shutdown()


@pytest.mark.slow
@needs_audit
@pytest.mark.parametrize(
    ("vulnerable", "exit_code", "said"),
    [
        (["django"], 0, "No known vulnerabilities found"),
        (["django", "grpcio"], 2, "grpcio"),
        ([], 0, "NOT AUDITED"),
    ],
    ids=["sound", "a vulnerable package", "a source that knows nothing"],
)
def test_a_known_vulnerability_fails_the_audit(vulnerable: list[str], exit_code: int, said: str) -> None:
    with advisories(*vulnerable) as url:
        audited = make("audit", PIP_AUDIT_VULNERABILITY_SERVICE="osv", PIP_AUDIT_OSV_URL=url)
    assert audited.returncode == exit_code, audited.stderr
    assert said in audited.stdout + audited.stderr
    assert ("NOT AUDITED" in audited.stderr) == (said == "NOT AUDITED")


@pytest.mark.slow
@needs_audit
def test_an_unreachable_advisory_source_is_reported_and_does_not_fail_the_audit() -> None:
    with advisories() as url:
        pass
    audited = make("audit", PIP_AUDIT_VULNERABILITY_SERVICE="osv", PIP_AUDIT_OSV_URL=url)
    assert audited.returncode == 0
    assert audited.stderr == "NOT AUDITED: the source of advisories cannot be reached from here\n"


@needs_audit
@pytest.mark.slow
def test_an_unreachable_advisory_source_fails_an_audit_that_is_required() -> None:
    with advisories() as url:
        pass
    tried = make("audit", PIP_AUDIT_VULNERABILITY_SERVICE="osv", PIP_AUDIT_OSV_URL=url, AUDIT_REQUIRED="true")
    assert tried.returncode == 2
    assert tried.stderr.startswith("NOT AUDITED: the source of advisories cannot be reached from here\n")


@pytest.mark.slow
@needs_audit
def test_a_required_audit_passes_where_advisories_can_be_looked_up() -> None:
    with advisories("django") as url:
        audited = make("audit", PIP_AUDIT_VULNERABILITY_SERVICE="osv", PIP_AUDIT_OSV_URL=url, AUDIT_REQUIRED="true")
    assert (audited.returncode, "NOT AUDITED" in audited.stderr) == (0, False), audited.stderr


def test_every_debian_package_of_ci_has_an_upstream_version() -> None:
    """The Debian revision is left open, so that security fixes do not break the run."""
    listed = re.findall(r"packages\+?=\(([^)]*)\)", (ROOT / ".ci" / "run").read_text())
    packages = " ".join(listed).split()
    assert len(packages) >= 10
    assert [package for package in packages if not re.fullmatch(r"[a-z0-9.+-]+=[0-9:.]+[0-9][.+~-]\*", package)] == []
