"""The keys file, which lists the callers.

Each line has a caller's name, its permissions, and the hash of its key. The line of a client certificate has no hash:
its name is one of the names in the certificate. Each line can have a time at which it expires.

    billing read,write sha256:9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08
    uri:spiffe://example.org/reports read expires:2027-01-31T00:00:00Z

Blank lines and lines that begin with # are ignored. A caller has at most two keys, so that a new key can replace the
old one. Each key is on its own line, with the same permissions.
"""

import codecs
import math
import re
from collections import Counter
from collections.abc import Iterable
from datetime import datetime
from pathlib import Path
from typing import Final, NamedTuple

import structlog

from caseload_server.config import SettingError
from caseload_server.private_files import read_private, read_with_fault
from caseload_server.security.api_keys import ApiKeys, certificate_name_fault, name_fault
from caseload_server.security.file_reload import ReloadedFiles
from caseload_server.security.principal import PERMISSIONS, Principal

_log = structlog.get_logger()
SETTING: Final = "--keys-file"
_MAX_KEYS_PER_CALLER: Final = 2
_MAX_FILE_BYTES: Final = 1024 * 1024
_MAX_LOGGED: Final = 100
"""The most names or faults in one log line."""
_LINE: Final = re.compile(r"(\S+)[ \t]+(\S+)(?:[ \t]+sha256:([0-9a-f]{64}))?(?:[ \t]+expires:(\S+))?")
_FORM: Final = "must be NAME PERMISSIONS sha256:HASH, or CERTIFICATE PERMISSIONS, and may end with expires:TIME"


class KeysFile(NamedTuple):
    """The content of a keys file."""

    keys: ApiKeys
    """The callers of the lines that can be used."""
    faults: tuple[str, ...]
    """What is wrong, each with the number of its line. A fault never quotes the line."""
    expired: tuple[int, ...]
    """The numbers of lines that have expired. They are no faults."""


class _LineFault(Exception):
    """A line that has no effect. The text says why."""


def read_keys_file(path: Path) -> KeysFile:
    """Reads a keys file. Raises SettingError for a file that cannot be used at all."""
    return _parse(SETTING, read_private(SETTING, path, _MAX_FILE_BYTES + 1))


def check_keys_file(setting: str, path: Path) -> tuple[KeysFile, str]:
    """Reads a keys file with any mode and owner. Returns its content, and what is wrong with the mode or owner.

    Raises SettingError for a file that cannot be used at all. Args: setting, for the error.
    """
    content, fault = read_with_fault(setting, path, _MAX_FILE_BYTES + 1)
    return _parse(setting, content), fault


def _parse(setting: str, content: bytes) -> KeysFile:
    if len(content) > _MAX_FILE_BYTES:
        raise SettingError(setting, "is larger than 1 MiB")
    if b"\0" in content:
        raise SettingError(setting, "is not plain text: save it as UTF-8")
    return _Parser().parse(content)


class _Parser:
    """Reads line by line. A line that contradicts an earlier one is the faulty one."""

    def __init__(self) -> None:
        self._by_digest: dict[bytes, Principal] = {}
        self._by_certificate: dict[str, Principal] = {}
        self._permissions: dict[str, frozenset[str]] = {}
        self._keys: Counter[str] = Counter()
        self._faults: list[str] = []
        self._expired: list[int] = []

    def parse(self, content: bytes) -> KeysFile:
        without_mark = content.removeprefix(codecs.BOM_UTF8)
        if without_mark != content:
            self._report(1, "begins with a byte order mark: save the file without it")
        lines = without_mark.split(b"\n")
        first_return = next((number for number, line in enumerate(lines, 1) if line.endswith(b"\r")), None)
        for number, line in enumerate(lines, 1):
            if number == first_return:
                self._report(number, "ends with CR LF, as on Windows: save the file with LF")
            try:
                self._parse_line(number, line.decode("ascii", "replace").removesuffix("\r"))
            except _LineFault as fault:
                self._report(number, str(fault))
        return KeysFile(ApiKeys(self._by_digest, self._by_certificate), tuple(self._faults), tuple(self._expired))

    def _report(self, number: int, text: str) -> None:
        self._faults.append(f"line {number}: {text}")

    def _parse_line(self, number: int, line: str) -> None:
        text = line.strip(" \t")
        if not text or line.startswith("#"):
            return
        if text.startswith("#"):
            raise _LineFault("a comment must begin in the first column")
        match = _LINE.fullmatch(text)
        if not match:
            raise _LineFault(_FORM)
        name, permissions, key_hash, expires = match.groups()
        if fault := (name_fault if key_hash else certificate_name_fault)(name):
            raise _LineFault(f"the name {fault}")
        principal = Principal(name, _permissions(permissions), _time(expires))
        self._add(principal, bytes.fromhex(key_hash or ""))
        if principal.is_expired():
            self._expired.append(number)

    def _add(self, principal: Principal, digest: bytes) -> None:
        name = principal.name
        if digest in self._by_digest:
            raise _LineFault("the key is already on another line")
        if name in self._by_certificate:
            raise _LineFault("the certificate is already on another line")
        if self._permissions.get(name, principal.permissions) != principal.permissions:
            raise _LineFault("a caller must have the same permissions on all its lines")
        if self._keys[name] == _MAX_KEYS_PER_CALLER:
            raise _LineFault("a caller has more than two keys")
        self._permissions[name] = principal.permissions
        if digest:
            self._keys[name] += 1
            self._by_digest[digest] = principal
        else:
            self._by_certificate[name] = principal


def _permissions(text: str) -> frozenset[str]:
    permissions = frozenset(text.split(","))
    if not permissions <= set(PERMISSIONS):
        raise _LineFault("the permissions must be read, write or audit, separated by commas")
    return permissions


def _time(text: str | None) -> float:
    try:
        return parse_expiry(text) if text else math.inf
    except ValueError:
        raise _LineFault("expires: needs a time with a time zone, such as 2027-01-31T00:00:00Z") from None


def parse_expiry(text: str) -> float:
    """Parses a time (RFC 3339). Returns seconds since 1970 (UTC). Raises ValueError."""
    parsed = datetime.fromisoformat(text)
    if parsed.tzinfo is None:
        raise ValueError
    return parsed.timestamp()


class Callers:
    """The callers of a keys file that is read again when it changes.

    At the start, the file must have no faults. Later, a faulty line has no effect, and every other line takes effect.
    So a fault never keeps a removed key valid. Only if the file cannot be read at all, the previous callers stay.
    """

    def __init__(self, path: Path) -> None:
        """Reads the file. Raises SettingError for the first fault."""
        self._path = path
        self._faults: tuple[str, ...] = ()
        first = read_keys_file(path)
        if first.faults:
            more = f" (and {len(first.faults) - 1} more: run caseload key check)" if len(first.faults) > 1 else ""
            raise SettingError(SETTING, first.faults[0] + more)
        self._permissions = first.keys.permissions()
        self._file = ReloadedFiles([path], self._read)

    def current(self) -> ApiKeys:
        """Returns the callers, as of at most a second ago."""
        return self._file.value()

    def reload(self) -> None:
        """Reads the file at once."""
        self._file.reload()

    def is_file_ok(self) -> bool:
        """Returns whether the whole file is in use, without a fault."""
        self._file.value()
        return not (self._faults or self._file.is_failing())

    def _read(self) -> ApiKeys:
        found = read_keys_file(self._path)
        if found.faults:
            _log.error("keys file has faults", faults=found.faults[:_MAX_LOGGED], count=len(found.faults))
        self._faults = found.faults
        self._log_changes(found.keys.permissions())
        return found.keys

    def _log_changes(self, permissions: dict[str, frozenset[str]]) -> None:
        before, self._permissions = self._permissions, permissions
        changes = {
            "added": permissions.keys() - before,
            "removed": before.keys() - permissions,
            "changed": {name for name in permissions.keys() & before if permissions[name] != before[name]},
        }
        if any(changes.values()):
            _log.info("callers changed", **{kind: _names(names) for kind, names in changes.items() if names})


def _names(names: Iterable[str]) -> list[str]:
    ordered = sorted(names)
    return [*ordered[:_MAX_LOGGED], *(["..."] if len(ordered) > _MAX_LOGGED else [])]
