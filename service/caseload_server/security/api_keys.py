"""API keys and the file that lists the callers.

A line is a caller: its name, its permissions, and the hash of a key, or none where a certificate alone names it.

    billing read,write sha256:9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08
    spiffe://example.org/reports read

Blank lines and those that begin with # are skipped. A caller has at most two keys, so that one can replace the other,
each on a line of its own with the same permissions.

A key is 256 random bits. A plain SHA-256 is enough for that: slow hashes protect passwords, which can be guessed.
"""

import hashlib
import hmac
import os
import re
import secrets
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from caseload_server.config import SettingError
from caseload_server.security.principal import PERMISSIONS, Principal

_SETTING: Final = "--keys-file"
_NAME: Final = re.compile(r"(?!#|cli:)[!#-\[\]-~]{1,200}")
_LINE: Final = re.compile(r"(\S+)[ \t]+([a-z,]+)(?:[ \t]+sha256:([0-9a-f]{64}))?")
_KEYS_A_CALLER: Final = 2
_MOST_BYTES: Final = 1024 * 1024
_OPEN: Final = 0o037
"""The group may read, for a Kubernetes secret is root's, and its pod's only through a group."""


class Keys:
    """The callers of one keys file."""

    def __init__(self, by_name: dict[str, Principal], by_digest: dict[bytes, Principal]) -> None:
        """Args: by_digest, by the SHA-256 of the key."""
        self._by_name = by_name
        self._by_digest = {digest: (digest, caller) for digest, caller in by_digest.items()}

    def of_name(self, name: str) -> Principal | None:
        """The caller whom a certificate names."""
        return self._by_name.get(name)

    def of_token(self, token: str) -> Principal | None:
        """The caller whose key it is."""
        digest = _digest(token)
        # How long the look-up takes tells of digests only, and nobody can choose those; the last word is constant-time.
        known, caller = self._by_digest.get(digest, (b"", None))
        return caller if hmac.compare_digest(known, digest) else None


def read(path: Path) -> Keys:
    """Reads a keys file. Raises SettingError, without a word of what is in it."""
    try:
        with path.open("rb") as file:
            if os.fstat(file.fileno()).st_mode & _OPEN:
                raise SettingError(_SETTING, "is open to others: chmod 600, or 640")
            content = file.read(_MOST_BYTES + 1)
    except OSError:
        raise SettingError(_SETTING, "cannot be read") from None
    if len(content) > _MOST_BYTES:
        raise SettingError(_SETTING, "is larger than 1 MiB")
    return _parsed(content.decode("ascii", "replace").splitlines())


def _parsed(lines: Iterable[str]) -> Keys:
    by_name: dict[str, Principal] = {}
    by_digest: dict[bytes, Principal] = {}
    for number, line in enumerate(lines, 1):
        if not line.strip() or line.startswith("#"):
            continue
        caller, digest = _entry(line.strip(), number)
        if by_name.setdefault(caller.name, caller) != caller:
            raise _fault(number, "a caller has the same permissions on each of its lines")
        if digest in by_digest:
            raise _fault(number, "a key stands on one line only")
        if digest:
            by_digest[digest] = caller
    most = max(Counter(caller.name for caller in by_digest.values()).values(), default=0)
    if most > _KEYS_A_CALLER:
        raise SettingError(_SETTING, "a caller has at most two keys")
    return Keys(by_name, by_digest)


def _entry(line: str, number: int) -> tuple[Principal, bytes]:
    found = _LINE.fullmatch(line)
    if not found or not is_name(found[1]):
        raise _fault(number, "must be NAME PERMISSIONS sha256:HASH, or without the hash")
    permissions = found[2].split(",")
    if not set(permissions) <= set(PERMISSIONS):
        raise _fault(number, "permissions are read, write and audit, with commas between them")
    return Principal(found[1], frozenset(permissions)), bytes.fromhex(found[3] or "")


def _fault(number: int, text: str) -> SettingError:
    return SettingError(_SETTING, f"line {number}: {text}")


def is_name(name: str) -> bool:
    """Whether it can be a caller's: 1 to 200 visible ASCII characters, no " or \\, and no # or cli: at the start.

    By cli: the change log tells the operator's commands from callers.
    """
    return _NAME.fullmatch(name) is not None


def create(name: str, permissions: Iterable[str]) -> tuple[str, str]:
    """A new key: the token, and the line for the keys file."""
    token = f"caseload_{secrets.token_urlsafe(32)}"
    wanted = ",".join(one for one in PERMISSIONS if one in set(permissions))
    return token, f"{name} {wanted} sha256:{_digest(token).hex()}"


def _digest(token: str) -> bytes:
    return hashlib.sha256(token.encode("utf-8", "replace")).digest()
