"""What the two distributions hold, and what the client needs."""

import re
import subprocess
import sys
import zipfile
from email import message_from_bytes
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
NEEDED = {"grpcio", "protobuf", "googleapis-common-protos"}
WITHOUT_OTHERS = """if True:
    import sys
    # typing_extensions is what grpcio needs.
    known = {"caseload", "google", "grpc", "typing_extensions"} | sys.stdlib_module_names
    class OfTheThree:
        @staticmethod
        def find_spec(name, path=None, target=None):
            if name.partition(".")[0] not in known:
                raise ImportError(name)
    sys.meta_path.insert(0, OfTheThree)
    import caseload.client
    caseload.client.connect("127.0.0.1:1").close()"""


@pytest.fixture(scope="module")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> dict[str, zipfile.ZipFile]:
    """Built from the checkout, by name."""
    folder = tmp_path_factory.mktemp("wheels")
    for project in (ROOT / "client", ROOT):
        command = [sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", str(folder)]
        subprocess.run(command, cwd=project, capture_output=True, timeout=60, check=True)
    return {path.name.partition("-")[0]: zipfile.ZipFile(path) for path in folder.glob("*.whl")}


def code(wheel: zipfile.ZipFile) -> set[str]:
    return {name for name in wheel.namelist() if ".dist-info/" not in name}


@pytest.mark.checkout
def test_the_stubs_are_in_the_clients_wheel_and_in_no_other(wheels: dict[str, zipfile.ZipFile]) -> None:
    client, server = code(wheels["caseload"]), code(wheels["caseload_server"])
    generated = {f"caseload/v1/{path.name}" for path in (ROOT / "generated/caseload/v1").iterdir() if path.is_file()}
    assert len(generated) > 20
    assert {name for name in client if name.startswith("caseload/v1/")} == generated
    assert {name.partition("/")[0] for name in server} == {"service"}


@pytest.mark.checkout
def test_what_is_written_by_hand_is_there_with_its_types_and_its_config(wheels: dict[str, zipfile.ZipFile]) -> None:
    written = {path.name for path in (ROOT / "client/caseload/client").iterdir() if path.is_file()}
    assert {"__init__.py", "py.typed", "service_config.json"} <= written
    shipped = {name for name in code(wheels["caseload"]) if not name.startswith("caseload/v1/")}
    assert shipped == {f"caseload/client/{name}" for name in written}


@pytest.mark.checkout
def test_the_client_asks_for_three_packages_and_the_server_for_the_client(wheels: dict[str, zipfile.ZipFile]) -> None:
    assert required(wheels["caseload"]) == NEEDED
    assert "caseload" in required(wheels["caseload_server"])


def required(wheel: zipfile.ZipFile) -> set[str]:
    [name] = [name for name in wheel.namelist() if name.endswith(".dist-info/METADATA")]
    headers = message_from_bytes(wheel.read(name)).get_all("Requires-Dist", [])
    return {re.split("[ <>=;[]", header)[0] for header in headers}


def test_the_client_works_without_any_other_package() -> None:
    subprocess.run([sys.executable, "-c", WITHOUT_OTHERS], timeout=60, check=True)
