"""docs/operations/encryption-at-rest.md: its commands do what they say, as far as they need no device."""

import re
import shutil
import subprocess
import sys
from pathlib import Path
from shlex import quote
from typing import Final

import pytest

from tests.docs.doc_blocks import OPERATIONS
from tests.process.command_runner import caseload, url
from tests.support.api_driver import ApiDriver
from tests.support.servers import ServerProcess
from tests.support.waiting import HUNG_SECONDS

pytestmark = pytest.mark.checkout
PAGE: Final = OPERATIONS / "encryption-at-rest.md"
NAME: Final = "Canary-Zq9 Roe"


def documented(first_words: str) -> str:
    """The one command of the page that begins like this."""
    [command] = re.findall(rf"^{re.escape(first_words)}.*$", PAGE.read_text(), re.MULTILINE)
    return str(command)


def run(folder: Path, command: str, **variables: str) -> str:
    """Runs a command of the page in a folder, with the `caseload` of this environment; returns its output."""
    for tool in ("age", "age-keygen", "cryptsetup"):
        if tool in command and not shutil.which(tool, path="/usr/sbin:/usr/bin:/sbin:/bin"):
            pytest.skip(f"needs {tool}: apt-get install age cryptsetup-bin")
    path = f"{Path(sys.executable).parent}:/usr/sbin:/usr/bin:/sbin:/bin"
    done = subprocess.run(
        ["bash", "-o", "pipefail", "-c", command],
        cwd=folder,
        env={"PATH": path, **variables},
        capture_output=True,
        text=True,
        timeout=HUNG_SECONDS,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_an_encrypted_export_hides_its_content_and_can_be_restored(tmp_path: Path) -> None:
    database = url(tmp_path / "caseload.db")
    with ServerProcess(database) as server, ApiDriver(server.address) as api:
        api.patients("jane", display_name=NAME)
        server.stop()
    run(tmp_path, documented("age-keygen -o"))
    run(tmp_path, documented("age-keygen -y"))
    run(tmp_path, documented("caseload export - |"), CASELOAD_DATABASE=database)
    encrypted = (tmp_path / "caseload.jsonl.age").read_bytes()
    assert NAME.encode() not in encrypted
    assert encrypted.startswith(b"age-encryption.org/")
    run(tmp_path, documented("age --decrypt"))
    exported = [
        caseload(tmp_path, "export", "-", CASELOAD_DATABASE=one) for one in (database, url(tmp_path / "restored.db"))
    ]
    assert NAME in exported[0].stdout
    assert exported[0].stdout.splitlines()[1:] == exported[1].stdout.splitlines()[1:]


def test_a_failed_export_is_noticed(tmp_path: Path) -> None:
    (tmp_path / "recipient").write_text("age1ql3z7hjy54pw3hyww5ayyfg7zqgvc7w3j2elw8zmrj2kg5sfn9aqmcac8p\n")
    with pytest.raises(AssertionError):
        run(tmp_path, documented("caseload export - |"), CASELOAD_DATABASE=url(tmp_path / "missing.db"))


def test_the_luks_options_make_a_header_with_the_named_cipher(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    with disk.open("wb") as file:
        file.truncate(64 * 2**20)
    (tmp_path / "key").write_text("a passphrase of this test")
    command = documented("cryptsetup luksFormat").replace("/dev/vdb", quote(str(disk)))
    # The key derivation of a real partition takes seconds and a gigabyte, by design.
    run(tmp_path, f"{command} --batch-mode --pbkdf pbkdf2 --pbkdf-force-iterations 1000 --key-file key")
    assert "cipher: aes-xts-plain64" in run(tmp_path, f"cryptsetup luksDump {quote(str(disk))}")
