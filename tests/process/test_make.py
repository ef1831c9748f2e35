"""`make` on a machine without a suitable Python, grpcurl or Go."""

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Generator
from pathlib import Path

import pytest

from tests.support.servers import free_address
from tests.support.waiting import HUNG_SECONDS

pytestmark = pytest.mark.checkout

ROOT = Path(__file__).parents[2]
READ_BY_MAKE = ["Makefile", "pyproject.toml", "client/pyproject.toml", "service/pyproject.toml"]
READ_BY_MAKE += ["requirements/dev.txt", "requirements/proto.txt"]


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """The files that an install needs, without a .venv."""
    folder = tmp_path / "checkout"
    for name in READ_BY_MAKE:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, folder / name)
    return folder


def python(folder: Path, begins_with: str) -> str:
    """A Python that runs the given code before its `-c` argument, for a checkout in this folder.

    Its path is relative: PYTHON is a list, so no name in it can contain a space.
    """
    program = folder / "python"
    program.write_text(f'#!/bin/sh\n[ "$1" = -c ] && exec "{sys.executable}" -c "{begins_with}; $2"\nexit 1\n')
    program.chmod(0o700)
    return f"../{program.name}"


def make(folder: Path, *arguments: str) -> "subprocess.CompletedProcess[str]":
    # Under `make test`, the outer make's flags would make this one print its folder.
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MAKE")}
    return subprocess.run(
        ["make", *arguments],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=HUNG_SECONDS,
        check=False,
    )


@pytest.mark.parametrize("target", ["install", "run"])
@pytest.mark.parametrize(
    ("begins_with", "words"),
    [
        ("import sys; sys.version_info = (3, 10, 14, 'final', 0)", "no Python 3.11 or later"),
        ("import sys; sys.modules['ensurepip'] = None", "lacks the venv module"),
        ("import sys; sys.modules['venv'] = None", "lacks the venv module"),
    ],
)
def test_an_unsuitable_python_is_rejected_in_one_line(
    checkout: Path, tmp_path: Path, target: str, begins_with: str, words: str
) -> None:
    before = sorted(checkout.rglob("*"))
    ended = make(checkout, target, f"PYTHON={python(tmp_path, begins_with)}")
    assert (ended.returncode, ended.stdout) == (2, "")
    assert ended.stderr.count("\n") == 1, ended.stderr
    assert words in ended.stderr
    assert sorted(checkout.rglob("*")) == before


def test_a_missing_python_is_reported_in_one_line(checkout: Path) -> None:
    before = sorted(checkout.rglob("*"))
    ended = make(checkout, "install", "PYTHON=no-such-python")
    assert (ended.returncode, ended.stdout) == (2, "")
    assert ended.stderr.count("\n") == 1, ended.stderr
    assert "no Python 3.11 or later" in ended.stderr
    assert sorted(checkout.rglob("*")) == before


def test_make_proto_names_the_versions_of_python_that_protoc_needs(checkout: Path, tmp_path: Path) -> None:
    (checkout / ".venv").symlink_to(sys.prefix)
    before = sorted(checkout.rglob("*"))
    newer = python(tmp_path, "import sys; sys.version_info = (3, 13, 0, 'final', 0)")
    ended = make(checkout, "-o", ".venv/installed", "proto", f"PROTO_PYTHON={newer}")
    assert (ended.returncode, ended.stdout) == (2, "")
    assert ended.stderr.count("\n") == 1, ended.stderr
    assert "protoc needs Python 3.11 or 3.12" in ended.stderr
    assert sorted(checkout.rglob("*")) == before


@pytest.fixture
def without_grpcurl(checkout: Path, tmp_path: Path) -> Path:
    """An installed checkout without grpcurl, with a Go that only records its call."""
    (checkout / ".venv").symlink_to(sys.prefix)
    programs = tmp_path / "bin"
    programs.mkdir()
    (programs / "go").write_text(f'#!/bin/sh\necho "$@" >>"{tmp_path}/go-called"\necho no network >&2\nexit 1\n')
    (programs / "go").chmod(0o700)
    for name in ("make", "mkdir", "sh", "timeout"):
        found = shutil.which(name)
        assert found
        (programs / name).symlink_to(found)
    return checkout


def test_make_run_serves_without_building_grpcurl(without_grpcurl: Path, tmp_path: Path) -> None:
    address = free_address()
    lines = lines_of_make_run(without_grpcurl, address, tmp_path / "bin")
    assert next(lines).startswith("try: grpcurl -plaintext ")
    assert next(lines) == "grpcurl is not installed: make grpcurl"
    assert next(lines) == f"caseload: serving on {address}"
    lines.close()
    assert not (tmp_path / "go-called").exists()


def lines_of_make_run(checkout: Path, address: str, path: Path) -> Generator[str, None, None]:
    """The printed lines; closing the generator ends make and every process that it started."""
    # -o: copied files may be newer than the environment, which is shared and must not be rebuilt.
    command = ["make", "-o", ".venv/installed", "run", f"ADDRESS={address}"]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MAKE")}
    with subprocess.Popen(
        command,
        cwd=checkout,
        env={**environment, "PATH": str(path)},
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        start_new_session=True,
    ) as running:
        try:
            assert running.stdout is not None
            yield from (line.rstrip("\n") for line in running.stdout)
        finally:
            os.killpg(running.pid, signal.SIGTERM)
            running.wait(HUNG_SECONDS)


def test_make_grpcurl_shows_why_it_cannot_be_built(without_grpcurl: Path, tmp_path: Path) -> None:
    ended = make(without_grpcurl, "grpcurl", f"PATH={tmp_path}/bin")
    assert ended.returncode == 2
    assert "no network" in ended.stderr
    assert "go install" not in ended.stderr
    assert "grpcurl/cmd/grpcurl@" in (tmp_path / "go-called").read_text()


def test_make_grpcurl_without_go_says_where_to_get_it(without_grpcurl: Path, tmp_path: Path) -> None:
    (tmp_path / "bin" / "go").unlink()
    ended = make(without_grpcurl, "grpcurl", f"PATH={tmp_path}/bin")
    assert ended.returncode == 2
    assert "https://go.dev/dl" in ended.stderr


def test_make_gateway_with_an_old_go_or_none_says_what_it_needs(without_grpcurl: Path, tmp_path: Path) -> None:
    built = ("-o", ".tools/proto/installed", "-o", ".tools/gateway/plugins")
    for _ in range(2):
        ended = make(without_grpcurl, *built, "gateway", f"PATH={tmp_path}/bin")
        assert ended.returncode == 2
        assert ended.stderr.startswith("cannot build the gateway: it needs Go 1.26 (https://go.dev/dl), or make go")
        (tmp_path / "bin" / "go").unlink(missing_ok=True)


def test_tests_run_when_grpcurl_cannot_be_built(without_grpcurl: Path, tmp_path: Path) -> None:
    ended = make(without_grpcurl, "grpcurl-where-go", f"PATH={tmp_path}/bin")
    assert ended.returncode == 0, ended.stderr
    (tmp_path / "bin" / "go").unlink()
    ended = make(without_grpcurl, "grpcurl-where-go", f"PATH={tmp_path}/bin")
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "", "")


def test_make_fresh_test_names_its_requirements_in_one_line(without_grpcurl: Path, tmp_path: Path) -> None:
    """This PATH has no debootstrap; other users and systems get the same line."""
    script = Path("tests", "fresh_machine.sh")
    (without_grpcurl / script.parent).mkdir()
    shutil.copy(ROOT / script, without_grpcurl / script)
    bash = shutil.which("bash")
    assert bash
    (tmp_path / "bin" / "bash").symlink_to(bash)
    ended = make(without_grpcurl, "fresh-test", f"PATH={tmp_path}/bin")
    assert (ended.returncode, ended.stdout) == (2, "")
    said, by_make = ended.stderr.splitlines()
    assert said == "fresh-test needs root on Debian, and debootstrap: apt-get install debootstrap"
    assert "fresh-test" in by_make
