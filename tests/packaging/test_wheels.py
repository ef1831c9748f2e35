"""The two wheels: what they contain, what they require, and that they install by name and work."""

import os
import re
import subprocess
import sys
import threading
import tomllib
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from email import message_from_bytes
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from shutil import copy
from typing import NamedTuple

import pytest

from tests.docs.doc_blocks import blocks, run
from tests.support.waiting import HUNG_SECONDS

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("proxies")]

ROOT = Path(__file__).parents[2]
CLIENT_REQUIREMENTS = {"grpcio", "protobuf", "googleapis-common-protos"}
IMPORT_CLIENT_ALONE = """if True:
    import sys
    # grpcio needs typing_extensions.
    allowed = {"caseload", "google", "grpc", "typing_extensions"} | sys.stdlib_module_names
    class DenyOthers:
        @staticmethod
        def find_spec(name, path=None, target=None):
            if name.partition(".")[0] not in allowed:
                raise ImportError(name)
    sys.meta_path.insert(0, DenyOthers)
    import caseload.client.aio
    caseload.client.connect("127.0.0.1:1").close()"""
CALL_SERVER = """if True:
    import sys
    from caseload.client import connect
    from caseload.v1.therapist_service_pb2 import CreateTherapistRequest
    with connect(sys.argv[1]) as caseload:
        created = caseload.therapists.CreateTherapist(CreateTherapistRequest(therapist={"display_name": "Ada Roe"}))
        print(created.therapist.display_name)"""


@pytest.fixture(scope="module")
def wheel_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with both wheels, built from the checkout."""
    folder = tmp_path_factory.mktemp("wheels")
    for project in ("client", "service"):
        command = [sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", str(folder)]
        subprocess.run(command, cwd=ROOT / project, capture_output=True, timeout=HUNG_SECONDS, check=True)
    return folder


@pytest.fixture(scope="module")
def wheels(wheel_folder: Path) -> dict[str, zipfile.ZipFile]:
    """The wheels by the name of their distribution, as file names spell it."""
    return {path.name.partition("-")[0]: zipfile.ZipFile(path) for path in wheel_folder.glob("*.whl")}


def code(wheel: zipfile.ZipFile) -> set[str]:
    return {name for name in wheel.namelist() if ".dist-info/" not in name}


@pytest.mark.checkout
def test_each_wheel_installs_one_top_level_package(wheels: dict[str, zipfile.ZipFile]) -> None:
    packages = {name: {file.partition("/")[0] for file in code(wheel)} for name, wheel in wheels.items()}
    assert packages == {"caseload_client": {"caseload"}, "caseload_server": {"caseload_server"}}


@pytest.mark.checkout
def test_the_stubs_and_the_contract_are_in_the_wheel_of_the_client(wheels: dict[str, zipfile.ZipFile]) -> None:
    folders = (ROOT / "generated/caseload/v1", ROOT / "protos/caseload/v1")
    files = {f"caseload/v1/{path.name}" for folder in folders for path in folder.iterdir() if path.is_file()}
    assert len(files) > 26
    assert {"caseload/v1/caseload.binpb", "caseload/v1/resources.proto"} < files
    assert {name for name in code(wheels["caseload_client"]) if name.startswith("caseload/v1/")} == files


@pytest.mark.checkout
def test_the_client_package_is_in_its_wheel_with_types_and_service_config(wheels: dict[str, zipfile.ZipFile]) -> None:
    folder = ROOT / "client"
    paths = {path for path in folder.glob("caseload/**/*") if path.is_file() and "__pycache__" not in path.parts}
    files = {str(path.relative_to(folder)) for path in paths}
    assert {
        f"caseload/client/{name}" for name in ("__init__.py", "aio/__init__.py", "py.typed", "service_config.json")
    } <= files
    assert "caseload/testing/plugin.py" in files
    assert {name for name in code(wheels["caseload_client"]) if not name.startswith("caseload/v1/")} == files


@pytest.mark.checkout
def test_every_file_of_the_server_package_is_in_its_wheel(wheels: dict[str, zipfile.ZipFile]) -> None:
    folder = ROOT / "service"
    files = {str(path.relative_to(folder)) for path in folder.glob("caseload_server/**/*") if path.is_file()}
    files = {name for name in files if "__pycache__" not in name}
    assert any(name.endswith(".sql") for name in files)
    assert code(wheels["caseload_server"]) == files


@pytest.mark.checkout
def test_the_client_requires_three_packages_and_the_server_requires_the_client(
    wheels: dict[str, zipfile.ZipFile],
) -> None:
    assert required(wheels["caseload_client"]) == CLIENT_REQUIREMENTS
    assert "caseload-client" in required(wheels["caseload_server"])
    assert "caseload" not in required(wheels["caseload_server"])


def required(wheel: zipfile.ZipFile) -> set[str]:
    [name] = [name for name in wheel.namelist() if name.endswith(".dist-info/METADATA")]
    headers = message_from_bytes(wheel.read(name)).get_all("Requires-Dist", [])
    return {re.split("[ <>=;[]", header)[0] for header in headers if "extra ==" not in header}


def test_the_client_works_without_any_other_package() -> None:
    subprocess.run([sys.executable, "-c", IMPORT_CLIENT_ALONE], timeout=HUNG_SECONDS, check=True)


# --- installed by name, in a clean environment


@pytest.fixture(scope="module")
def requirements(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the wheels of every third-party package that the server requires, pinned and hashed."""
    folder = tmp_path_factory.mktemp("requirements")
    pinned = ROOT / "requirements" / "runtime.txt"
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--only-binary", ":all:", "--dest", str(folder)]
    done = subprocess.run(
        [*command, "--require-hashes", "-r", str(pinned)],
        capture_output=True,
        text=True,
        timeout=2 * HUNG_SECONDS,
        check=False,
    )
    if done.returncode:
        pytest.skip(f"needs a package index for requirements/runtime.txt: {done.stderr.strip().splitlines()[-1:]}")
    return folder


class Environment:
    """A virtual environment without any package."""

    def __init__(self, folder: Path) -> None:
        subprocess.run(
            [sys.executable, "-m", "venv", "--without-pip", str(folder)], timeout=2 * HUNG_SECONDS, check=True
        )
        self.bin = folder / "bin"
        self.outside = folder / "outside"  # the checkout must not be importable
        self.outside.mkdir()

    def pip_install(self, *arguments: str, **variables: str) -> "subprocess.CompletedProcess[str]":
        """Runs pip for this environment, without the pip settings of this machine."""
        own = {name: value for name, value in os.environ.items() if not name.startswith(("PIP_", "PYTHON"))}
        environment = {**own, "PIP_CONFIG_FILE": os.devnull, "PIP_DISABLE_PIP_VERSION_CHECK": "1", **variables}
        command = [sys.executable, "-m", "pip", "--python", str(self.bin / "python"), "install", *arguments]
        return subprocess.run(
            command,
            cwd=self.outside,
            env=environment,
            capture_output=True,
            text=True,
            timeout=2 * HUNG_SECONDS,
            check=False,
        )

    def installed(self) -> set[str]:
        """The names of all installed distributions."""
        listed = self.run("import importlib.metadata as m; print(*(d.name for d in m.distributions()))")
        return set(listed.stdout.split())

    def run(self, source: str, *arguments: str) -> "subprocess.CompletedProcess[str]":
        """Runs a Python program."""
        command = [str(self.bin / "python"), "-I", "-c", source, *arguments]
        return subprocess.run(
            command, cwd=self.outside, capture_output=True, text=True, timeout=HUNG_SECONDS, check=True
        )


@pytest.mark.checkout
def test_both_wheels_install_by_name_and_serve_a_call(wheel_folder: Path, requirements: Path, tmp_path: Path) -> None:
    environment = Environment(tmp_path / "venv")
    folders = ("--find-links", str(wheel_folder), "--find-links", str(requirements))
    done = environment.pip_install("--no-index", *folders, "caseload-server")
    assert done.returncode == 0, done.stdout + done.stderr
    assert {"caseload-client", "caseload-server"} <= environment.installed()
    assert "caseload" not in environment.installed()
    with serving(environment, tmp_path / "caseload.db") as address:
        assert environment.run(CALL_SERVER, address).stdout == "Ada Roe\n"


@pytest.mark.checkout
def test_the_commands_of_the_clients_readme_install_it(wheel_folder: Path, tmp_path: Path) -> None:
    shown = [block for block in blocks(ROOT / "client" / "README.md") if block.language == "sh"]
    from_file, building, installing = shown
    client = tomllib.loads((ROOT / "client" / "pyproject.toml").read_text())["project"]
    assert re.findall('"(.*?)"', building.text) == client["dependencies"]
    (tmp_path / "dist").symlink_to(wheel_folder)
    for fetching in (from_file, building):
        done = run(fetching, tmp_path)
        if done.returncode:
            pytest.skip(f"needs a package index for the requirements of the client: {done.stdout.strip()}")
    installed = run(installing, tmp_path)
    assert installed.returncode == 0, installed.stdout
    for folder in ("callers-venv", "offline-venv"):
        command = [str(tmp_path / folder / "bin" / "python"), "-I", "-c", "import caseload.client.aio"]
        subprocess.run(command, timeout=HUNG_SECONDS, check=True)


@contextmanager
def serving(environment: Environment, database: Path) -> Iterator[str]:
    """The installed `caseload serve`: its address."""
    settings = ("--address", "127.0.0.1:0", "--database", f"sqlite:///{database}", "--drain-seconds", "0")
    command = [str(environment.bin / "caseload"), "serve", *settings]
    with subprocess.Popen(
        command, cwd=environment.outside, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as server:
        try:
            assert server.stdout is not None
            yield server.stdout.readline().removeprefix("caseload: serving on ").strip()
        finally:
            server.terminate()
            assert server.wait(HUNG_SECONDS) == 0


class Index(NamedTuple):
    """A package index on loopback. It offers only a foreign project named `caseload`."""

    url: str
    requests: list[str]
    """The paths that pip asked for."""


@pytest.fixture
def index(tmp_path: Path) -> Iterator[Index]:
    requests: list[str] = []
    wheel = foreign_wheel(tmp_path)

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            requests.append(self.path)
            pages = {
                "/simple/caseload/": f'<a href="/files/{wheel.name}">{wheel.name}</a>'.encode(),
                f"/files/{wheel.name}": wheel.read_bytes(),
            }
            page = pages.get(self.path)
            self.send_response(404 if page is None else 200)
            self.send_header("Content-Type", "text/html" if self.path.endswith("/") else "application/zip")
            self.end_headers()
            self.wfile.write(page or b"")

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the name of the base class
            """Logs nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield Index(f"http://127.0.0.1:{server.server_port}/simple/", requests)
        server.shutdown()
        thread.join()


def foreign_wheel(folder: Path) -> Path:
    """Builds a wheel of a foreign project named caseload."""
    path = folder / "caseload-0.1.0-py3-none-any.whl"
    info = "caseload-0.1.0.dist-info"
    with zipfile.ZipFile(path, "w") as wheel:
        wheel.writestr("caseload/foreign.py", "")
        wheel.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: caseload\nVersion: 0.1.0\n")
        wheel.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr(f"{info}/RECORD", "")
    return path


@pytest.mark.checkout
def test_the_server_alone_fails_to_install_and_fetches_no_project_named_caseload(
    wheel_folder: Path, requirements: Path, tmp_path: Path, index: Index
) -> None:
    alone = tmp_path / "alone"
    alone.mkdir()
    [wheel] = wheel_folder.glob("caseload_server-*.whl")
    copy(wheel, alone)
    environment = Environment(tmp_path / "venv")
    folders = ("--find-links", str(alone), "--find-links", str(requirements))
    done = environment.pip_install(*folders, "caseload-server", PIP_INDEX_URL=index.url)
    assert done.returncode != 0
    assert "No matching distribution found for caseload-client" in done.stderr
    assert "/simple/caseload-client/" in index.requests
    assert not [path for path in index.requests if path.startswith(("/simple/caseload/", "/files/"))]
    assert not {name for name in environment.installed() if name.startswith("caseload")}
    asked_for = environment.pip_install("caseload", PIP_INDEX_URL=index.url)
    assert asked_for.returncode == 0, "the index of this test must offer a project named caseload"
    assert "caseload" in environment.installed()
