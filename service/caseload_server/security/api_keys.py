"""API keys, and the keys file that lists the principals.

Each line gives a principal's name, its permissions and the hash of a key. A principal that authenticates with a client
certificate alone has no hash.

    billing read,write sha256:9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08
    spiffe://example.org/reports read

Blank lines and lines that begin with # are ignored. A principal has at most two keys, so that a new key can replace the
old one. Each key is on its own line, with the same permissions.

A key is 256 random bits, so a plain SHA-256 is enough. Slow hashes protect passwords, which can be guessed.
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
_MAX_KEYS_PER_PRINCIPAL: Final = 2
_MAX_FILE_BYTES: Final = 1024 * 1024
_FORBIDDEN_MODE: Final = 0o037
"""Mode bits that the keys file must not have.

The group may read it: root owns a Kubernetes secret, and its pod can read it only through a group.
"""


class ApiKeys:
    """The principals of one keys file."""

    def __init__(self, by_name: dict[str, Principal], by_digest: dict[bytes, Principal]) -> None:
        """Args: by_digest, the principals by the SHA-256 of their keys."""
        self._by_name = by_name
        self._by_digest = {digest: (digest, principal) for digest, principal in by_digest.items()}

    def principal_by_name(self, name: str) -> Principal | None:
        """Returns the principal that a client certificate names."""
        return self._by_name.get(name)

    def principal_by_token(self, token: str) -> Principal | None:
        """Returns the principal that the key belongs to."""
        digest = _digest(token)
        # The time of the lookup depends on digests only, which callers cannot choose. The final comparison is
        # constant-time.
        known, principal = self._by_digest.get(digest, (b"", None))
        return principal if hmac.compare_digest(known, digest) else None


def read_keys_file(path: Path) -> ApiKeys:
    """Reads a keys file. Raises SettingError, whose text never quotes the content of the file."""
    try:
        with path.open("rb") as file:
            if os.fstat(file.fileno()).st_mode & _FORBIDDEN_MODE:
                raise SettingError(_SETTING, "is accessible to other users: run chmod 600 or chmod 640 on it")
            content = file.read(_MAX_FILE_BYTES + 1)
    except OSError:
        raise SettingError(_SETTING, "cannot be read") from None
    if len(content) > _MAX_FILE_BYTES:
        raise SettingError(_SETTING, "is larger than 1 MiB")
    return _parse(content.decode("ascii", "replace").splitlines())


def _parse(lines: Iterable[str]) -> ApiKeys:
    by_name: dict[str, Principal] = {}
    by_digest: dict[bytes, Principal] = {}
    for number, line in enumerate(lines, 1):
        if not line.strip() or line.startswith("#"):
            continue
        principal, digest = _parse_line(line.strip(), number)
        if by_name.setdefault(principal.name, principal) != principal:
            raise _line_error(number, "a caller must have the same permissions on all its lines")
        if digest in by_digest:
            raise _line_error(number, "the key is already on another line")
        if digest:
            by_digest[digest] = principal
    most_keys = max(Counter(principal.name for principal in by_digest.values()).values(), default=0)
    if most_keys > _MAX_KEYS_PER_PRINCIPAL:
        raise SettingError(_SETTING, "a caller has more than two keys")
    return ApiKeys(by_name, by_digest)


def _parse_line(line: str, number: int) -> tuple[Principal, bytes]:
    match = _LINE.fullmatch(line)
    if not match or not is_valid_name(match[1]):
        raise _line_error(number, "must be NAME PERMISSIONS sha256:HASH, or NAME PERMISSIONS")
    permissions = match[2].split(",")
    if not set(permissions) <= set(PERMISSIONS):
        raise _line_error(number, "the permissions must be read, write or audit, separated by commas")
    return Principal(match[1], frozenset(permissions)), bytes.fromhex(match[3] or "")


def _line_error(number: int, text: str) -> SettingError:
    return SettingError(_SETTING, f"line {number}: {text}")


def is_valid_name(name: str) -> bool:
    """Returns whether a principal may have the name.

    A name has 1 to 200 visible ASCII characters without " and \\. It does not begin with # or cli:, because the change
    log marks the operator's commands with cli:.
    """
    return _NAME.fullmatch(name) is not None


def generate_key(name: str, permissions: Iterable[str]) -> tuple[str, str]:
    """Generates a key. Returns the token and the line for the keys file."""
    token = f"caseload_{secrets.token_urlsafe(32)}"
    ordered = ",".join(permission for permission in PERMISSIONS if permission in set(permissions))
    return token, f"{name} {ordered} sha256:{_digest(token).hex()}"


def _digest(token: str) -> bytes:
    return hashlib.sha256(token.encode("utf-8", "replace")).digest()
