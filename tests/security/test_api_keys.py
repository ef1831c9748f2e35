"""API keys, the keys file, and the errors of an invalid keys file."""

import re
from pathlib import Path

import pytest
from caseload_server.config import SettingError
from caseload_server.security import api_keys
from caseload_server.security.principal import Principal

from tests.process.command_runner import caseload, refusal
from tests.security.server_fixture import KeysFile

SECRET = "do-not-repeat-me"
HASH = "sha256:" + "0" * 64
OTHER = "sha256:" + "1" * 64


@pytest.fixture
def keys_file(tmp_path: Path) -> KeysFile:
    return KeysFile(tmp_path / "keys")


def test_keys_create_prints_a_token_and_its_keys_file_line(tmp_path: Path, keys_file: KeysFile) -> None:
    made = caseload(tmp_path, "key", "create", "--name", "billing", "--permission", "write", "--permission", "read")
    assert (made.returncode, made.stderr) == (0, "")
    token, line = made.stdout.splitlines()
    assert re.fullmatch(r"caseload_[\w-]{43}", token)
    assert token.removeprefix("caseload_") not in line
    keys_file.append(line)
    billing = Principal("billing", frozenset({"read", "write"}))
    assert api_keys.read_keys_file(keys_file.path).principal_by_token(token) == billing
    assert api_keys.read_keys_file(keys_file.path).principal_by_token(token + "x") is None


def test_every_key_is_different() -> None:
    assert len({api_keys.generate_key("billing", ["read"]) for _ in range(100)}) == 100


@pytest.mark.parametrize(
    ("arguments", "setting"),
    [
        (("--permission", "read"), "--name"),
        (("--name", "billing"), "--permission"),
        (("--name", f"two words {SECRET}", "--permission", "read"), "--name"),
        (("--name", f'"{SECRET}', "--permission", "read"), "--name"),
        (("--name", "", "--permission", "read"), "--name"),
        (("--name", f"cli:{SECRET}", "--permission", "read"), "--name"),
        (("--name", "billing", "--permission", SECRET), "--permission"),
    ],
)
def test_keys_create_rejects_a_name_the_keys_file_cannot_hold(
    tmp_path: Path, arguments: tuple[str, ...], setting: str
) -> None:
    line = refusal(tmp_path, "key", "create", *arguments)
    assert line.startswith(f"{setting}: ")
    assert SECRET not in line


def test_a_keys_file_may_have_comments_certificates_and_two_keys_per_caller(keys_file: KeysFile) -> None:
    keys_file.append("# callers\n\nspiffe://example.org/reports read")
    first, second = keys_file.add("billing", "write"), keys_file.add("billing", "write")
    found = api_keys.read_keys_file(keys_file.path)
    reports = Principal("spiffe://example.org/reports", frozenset({"read"}))
    assert found.principal_by_name("spiffe://example.org/reports") == reports
    assert (
        found.principal_by_token(first)
        == found.principal_by_token(second)
        == Principal("billing", frozenset({"write"}))
    )
    assert found.principal_by_name("") is None
    assert found.principal_by_token("") is None


BROKEN = {
    "no permissions": "do-not-repeat-me",
    "no hash": f"{SECRET} read sha256:",
    "a short hash": f"{SECRET} read {HASH[:-1]}",
    "a hash of another kind": f"{SECRET} read md5:{'0' * 32}",
    "the token itself": f"{SECRET} read caseload_{'x' * 43}",
    "an unknown permission": f"{SECRET} read,admin {HASH}",
    "an empty permission": f"{SECRET} read, {HASH}",
    "a name with a quote": f'{SECRET}" read {HASH}',
    "a name that is not ASCII": f"{SECRET}\u00e9 read {HASH}",
    "a name like that of a command": f"cli:{SECRET} read {HASH}",
    "a long name": f"{SECRET * 20} read {HASH}",
    "more": f"{SECRET} read {HASH} {HASH}",
}


@pytest.mark.parametrize("line", BROKEN.values(), ids=BROKEN)
def test_an_invalid_line_is_named_by_its_number(keys_file: KeysFile, line: str) -> None:
    keys_file.append(f"# one\n{line}")
    with pytest.raises(SettingError, match=r"^--keys-file: line 2: ") as caught:
        api_keys.read_keys_file(keys_file.path)
    assert SECRET not in str(caught.value)
    assert "0000" not in str(caught.value)


@pytest.mark.parametrize(
    "lines",
    [
        f"a read {HASH}\nb read {HASH}",
        f"a read {HASH}\na write {OTHER}",
        "\n".join(f"a read sha256:{number:064}" for number in range(3)),
        "#" * 1024 * 1024,
    ],
    ids=["one key for two", "two sets of permissions", "three keys", "too large"],
)
def test_contradicting_lines_are_rejected(keys_file: KeysFile, lines: str) -> None:
    keys_file.append(lines)
    with pytest.raises(SettingError, match=r"^--keys-file: "):
        api_keys.read_keys_file(keys_file.path)


@pytest.mark.parametrize("mode", [0o604, 0o602, 0o601, 0o620, 0o660, 0o610, 0o444])
def test_a_keys_file_that_others_can_read_or_write_is_rejected(tmp_path: Path, keys_file: KeysFile, mode: int) -> None:
    keys_file.add("billing")
    keys_file.path.chmod(mode)
    line = refusal(tmp_path, "serve", "--address", "127.0.0.1:0", "--database", "sqlite:///a.db", "--keys-file", "keys")
    assert line == "--keys-file: is accessible to other users: run chmod 600 or chmod 640 on it"


def test_a_missing_keys_file_is_rejected(tmp_path: Path) -> None:
    line = refusal(tmp_path, "serve", "--address", "127.0.0.1:0", "--database", "sqlite:///a.db", "--keys-file", SECRET)
    assert line == "--keys-file: cannot be read"
