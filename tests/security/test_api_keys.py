"""API keys, the keys file, and the errors of an invalid keys file."""

import os
import re
from datetime import UTC, datetime
from pathlib import Path

import pytest
from caseload_server import private_files
from caseload_server.config import SettingError
from caseload_server.security import api_keys
from caseload_server.security.keys_file import read_keys_file
from caseload_server.security.principal import Principal

from tests.process.command_runner import caseload, refusal
from tests.security.server_fixture import KeysFile

SECRET = "do-not-repeat-me"
TOO_OPEN = "is accessible to other users: run chmod 600 or chmod 640 on it"
HASH = "sha256:" + "0" * 64
OTHER = "sha256:" + "1" * 64


def test_keys_create_prints_a_token_and_its_keys_file_line(tmp_path: Path, keys_file: KeysFile) -> None:
    made = caseload(tmp_path, "key", "create", "--name", "billing", "--permission", "write", "--permission", "read")
    assert (made.returncode, made.stderr) == (0, "")
    token, line = made.stdout.splitlines()
    assert re.fullmatch(r"caseload_[\w-]{43}", token)
    assert token.removeprefix("caseload_") not in line
    keys_file.append(line)
    billing = Principal("billing", frozenset({"read", "write"}))
    assert read_keys_file(keys_file.path).keys.principal_by_key(token) == billing
    assert read_keys_file(keys_file.path).keys.principal_by_key(token + "x") is None


@pytest.mark.slow
def test_a_key_can_be_created_with_an_expiry(tmp_path: Path, keys_file: KeysFile) -> None:
    arguments = ("key", "create", "--name", "billing", "--permission", "read", "--expires")
    token, line = caseload(tmp_path, *arguments, "2999-01-01 01:00:00+01:00").stdout.splitlines()
    assert line.endswith(" expires:2999-01-01T00:00:00Z")
    keys_file.append(line)
    found = read_keys_file(keys_file.path).keys.principal_by_key(token)
    assert found
    assert found.valid_until == datetime(2999, 1, 1, tzinfo=UTC).timestamp()
    for text in ("2020-01-01T00:00:00Z", "2999-01-01T00:00:00", SECRET, "9999-12-31T23:59:59-23:59"):
        assert refusal(tmp_path, *arguments, text).startswith("--expires: must be ")


def test_every_key_is_different() -> None:
    assert len({api_keys.generate_key("billing", ["read"]) for _ in range(100)}) == 100


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "setting"),
    [
        (("--permission", "read"), "--name"),
        (("--name", "billing"), "--permission"),
        (("--name", f"two words {SECRET}", "--permission", "read"), "--name"),
        (("--name", f'"{SECRET}', "--permission", "read"), "--name"),
        (("--name", "", "--permission", "read"), "--name"),
        (("--name", f"cli:{SECRET}", "--permission", "read"), "--name"),
        (("--name", f"dns:{SECRET}", "--permission", "read"), "--name"),
        (("--name", "local", "--permission", "read"), "--name"),
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
    keys_file.append("# callers\n\n  uri:spiffe://example.org/reports\tread  ")
    first, second = keys_file.add("billing", "write"), keys_file.add("billing", "write")
    found, faults, _ = read_keys_file(keys_file.path)
    assert faults == ()
    reports = Principal("uri:spiffe://example.org/reports", frozenset({"read"}))
    assert found.principals_by_certificate(["cn:reports", reports.name]) == [reports]
    billing = Principal("billing", frozenset({"write"}))
    assert found.principal_by_key(first) == found.principal_by_key(second) == billing
    assert found.principals_by_certificate(["", "billing"]) == []
    assert found.principal_by_key("") is None


FAULTS = {
    "no permissions": (SECRET, "must be NAME"),
    "no hash": (f"{SECRET} read sha256:", "must be NAME"),
    "a short hash": (f"{SECRET} read {HASH[:-1]}", "must be NAME"),
    "a hash of another kind": (f"{SECRET} read md5:{'0' * 32}", "must be NAME"),
    "the token itself": (f"{SECRET} read caseload_{'x' * 43}", "must be NAME"),
    "more": (f"{SECRET} read {HASH} {HASH}", "must be NAME"),
    "expiry first": (f"{SECRET} read expires:2999-01-01T00:00:00Z {HASH}", "must be NAME"),
    "a control character": (f"{SECRET}\x0b read {HASH}", "must be NAME"),
    "an unknown permission": (f"{SECRET} read,admin {HASH}", "the permissions must be "),
    "an empty permission": (f"{SECRET} read, {HASH}", "the permissions must be "),
    "a permission in upper case": (f"{SECRET} READ {HASH}", "the permissions must be "),
    "a name with a quote": (f'{SECRET}" read {HASH}', "the name must be "),
    "a name that is not ASCII": (f"{SECRET}\u00e9 read {HASH}", "the name must be "),
    "a long name": (f"{SECRET * 20} read {HASH}", "the name must be "),
    "a name like that of a command": (f"cli:{SECRET} read {HASH}", "the name is reserved"),
    "a name like that of the server": (f"System:{SECRET} read {HASH}", "the name is reserved"),
    "a name like that from a token": (f"oidc:{SECRET} read {HASH}", "the name is reserved"),
    "the name without keys": (f"local read {HASH}", "the name is reserved"),
    "a certificate with a key": (f"cn:{SECRET} read {HASH}", "the name must not begin with uri:, dns: or cn:"),
    "a certificate without a prefix": (f"{SECRET} read", "the name needs uri:, dns: or cn:"),
    "an unknown prefix": (f"email:{SECRET} read", "the name needs uri:, dns: or cn:"),
    "no name after the prefix": ("dns: read", "the name must be "),
    "a wildcard": (f"dns:*.{SECRET} read", "the name must not contain [*]"),
    "a time without a zone": (f"{SECRET} read {HASH} expires:2027-01-31T00:00:00", "expires: needs a time"),
    "an age": (f"{SECRET} read {HASH} expires:30d", "expires: needs a time"),
    "an indented comment": (f"  # {SECRET}", "a comment must begin in the first column"),
    "Windows": (f"{SECRET} read {HASH}\r", "ends with CR LF"),
}


@pytest.mark.parametrize(("line", "text"), FAULTS.values(), ids=FAULTS)
def test_a_fault_is_named_by_its_line_and_repeats_nothing_of_it(keys_file: KeysFile, line: str, text: str) -> None:
    keys_file.append(f"# one\n{line}")
    [fault] = read_keys_file(keys_file.path).faults
    assert re.match(f"line 2: {text}", fault)
    assert SECRET not in fault
    assert "0000" not in fault


def test_a_byte_order_mark_and_the_line_ends_of_windows_are_faults_that_lose_no_caller(keys_file: KeysFile) -> None:
    token, line = api_keys.generate_key("billing", ["read"])
    keys_file.path.write_bytes(b"\xef\xbb\xbf" + f"{line}\r\nuri:a read\r\n".encode())
    found, faults, _ = read_keys_file(keys_file.path)
    assert [fault.partition(" ")[2][:9] for fault in faults] == ["1: begins", "1: ends w"]
    assert found.principal_by_key(token)
    assert found.permissions().keys() == {"billing", "uri:a"}


def test_faults_are_in_the_order_of_their_lines(keys_file: KeysFile) -> None:
    keys_file.path.write_bytes(b"\xef\xbb\xbfuri:a read\n #\nuri:b read\r\n #\n")
    assert [fault[:9] for fault in read_keys_file(keys_file.path).faults] == [
        *("line 1: b", "line 2: a", "line 3: e", "line 4: a"),
    ]


CONTRADICTIONS = {
    "one key for two": f"b read {HASH}",
    "two sets of permissions": f"a write {OTHER}",
    "three keys": f"a read {OTHER}\na read sha256:{'2' * 64}",
    "a certificate twice": "uri:a read\nuri:a write",
}


@pytest.mark.parametrize("lines", CONTRADICTIONS.values(), ids=CONTRADICTIONS)
def test_the_later_one_of_two_contradicting_lines_has_no_effect(keys_file: KeysFile, lines: str) -> None:
    keys_file.append(f"a read {HASH}\n{lines}")
    found, [fault], _ = read_keys_file(keys_file.path)
    assert fault.startswith(f"line {2 + lines.count(chr(10))}: ")
    assert {*found.permissions().values()} == {frozenset({"read"})}


@pytest.mark.parametrize("content", ["#" * 1024 * 1024 + "\n", "a\0"], ids=["too large", "UTF-16"])
def test_a_file_that_is_no_keys_file_is_rejected(keys_file: KeysFile, content: str) -> None:
    keys_file.path.write_text(content)
    with pytest.raises(SettingError, match=r"^--keys-file: is "):
        read_keys_file(keys_file.path)


@pytest.mark.slow
def test_a_server_does_not_start_with_a_faulty_keys_file(tmp_path: Path, keys_file: KeysFile) -> None:
    keys_file.append(f"{SECRET}\nbilling read {HASH}\n{SECRET}")
    line = refusal(tmp_path, "serve", "--address", "127.0.0.1:0", "--database", "sqlite:///a.db", "--keys-file", "keys")
    assert line.startswith("--keys-file: line 1: must be NAME ")
    assert line.endswith("(and 1 more: run caseload key check)")


@pytest.mark.slow
def test_a_check_prints_every_fault(tmp_path: Path, keys_file: KeysFile) -> None:
    keys_file.append(f"{SECRET}\nbilling read {HASH}\n # {SECRET}")
    checked = caseload(tmp_path, "key", "check", "keys")
    assert (checked.returncode, checked.stderr) == (1, "")
    assert [line[:8] for line in checked.stdout.splitlines()] == ["line 1: ", "line 3: "]
    assert SECRET not in checked.stdout
    keys_file.replace(f"billing read {HASH}\n")
    assert caseload(tmp_path, "key", "check", "keys").stdout == "ok: 1 caller\n"
    keys_file.replace(f"billing read {HASH}\ndns:a.test read expires:2020-01-01T00:00:00Z\n")
    checked = caseload(tmp_path, "key", "check", "keys")
    assert (checked.returncode, checked.stdout) == (0, "line 2: has expired\nok: 2 callers\n")
    keys_file.path.chmod(0o644)
    checked = caseload(tmp_path, "key", "check", "keys")
    assert (checked.returncode, checked.stdout) == (1, f"the file {TOO_OPEN}\nline 2: has expired\n")
    assert refusal(tmp_path, "key", "check", SECRET) == "FILE: cannot be read"


@pytest.mark.slow
@pytest.mark.parametrize("mode", [0o604, 0o602, 0o601, 0o620, 0o660, 0o610, 0o444])
def test_a_keys_file_that_others_can_read_or_write_is_rejected(tmp_path: Path, keys_file: KeysFile, mode: int) -> None:
    keys_file.add("billing")
    keys_file.path.chmod(mode)
    with pytest.raises(SettingError, match=f"^--keys-file: {TOO_OPEN}"):
        read_keys_file(keys_file.path)
    if mode == 0o604:
        serve = ("serve", "--address", "127.0.0.1:0", "--database", "sqlite:///a.db", "--keys-file", "keys")
        assert refusal(tmp_path, *serve) == f"--keys-file: {TOO_OPEN}"


@pytest.mark.parametrize(
    ("owner", "user", "accepted"), [(1, 1, True), (0, 1, True), (2, 1, False), (2, 0, True)], ids=str
)
def test_a_file_of_another_user_is_rejected(
    keys_file: KeysFile, monkeypatch: pytest.MonkeyPatch, owner: int, user: int, *, accepted: bool
) -> None:
    """The owner of a file can change it. Root may run commands on any file."""
    status = [*keys_file.path.stat()]
    status[4] = owner
    monkeypatch.setattr(os, "geteuid", lambda: user)
    monkeypatch.setattr(os, "fstat", lambda _descriptor: os.stat_result(status))
    if accepted:
        assert private_files.read_private("--keys-file", keys_file.path) == b""
    else:
        with pytest.raises(SettingError, match=r"^--keys-file: belongs to another user"):
            private_files.read_private("--keys-file", keys_file.path)


@pytest.mark.slow
def test_a_missing_keys_file_is_rejected(tmp_path: Path) -> None:
    line = refusal(tmp_path, "serve", "--address", "127.0.0.1:0", "--database", "sqlite:///a.db", "--keys-file", SECRET)
    assert line == "--keys-file: cannot be read"
