"""The callers of a keys file, each with keys or a client certificate. Generates new keys.

A key is 256 random bits, so a plain SHA-256 is enough. Slow hashes protect passwords, which can be guessed.
"""

import hashlib
import hmac
import re
import secrets
from collections.abc import Collection, Iterable, Mapping
from typing import Final

from caseload_server.security.principal import (
    CERTIFICATE_PREFIXES,
    PERMISSIONS,
    RESERVED_NAMES,
    RESERVED_PREFIXES,
    Principal,
)

_NAME: Final = re.compile(r"(?!#)[!#-\[\]-~]{1,200}")
NAME_RULE: Final = 'must be 1 to 200 visible ASCII characters without " and \\, and must not begin with #'
RESERVED_RULE: Final = "is reserved, like local and every name that begins with cli:, system: or oidc:"
CERTIFICATE_RULE: Final = "must not begin with uri:, dns: or cn:, which are for callers with a certificate"


class ApiKeys:
    """The callers of one keys file."""

    def __init__(self, by_digest: Mapping[bytes, Principal], by_certificate: Mapping[str, Principal]) -> None:
        """Args: by_digest, the callers by the SHA-256 of their keys; by_certificate, by a name in their certificate."""
        self._by_digest = {digest: (digest, principal) for digest, principal in by_digest.items()}
        self._by_certificate = by_certificate

    def principal_by_key(self, key: str) -> Principal | None:
        """Returns the caller that the key belongs to, or None for an unknown key. The key may have expired."""
        digest = _digest(key)
        # The time of the lookup depends on digests only, which callers cannot choose. The final comparison is
        # constant-time.
        known, principal = self._by_digest.get(digest, (b"", None))
        return principal if hmac.compare_digest(known, digest) else None

    def principals_by_certificate(self, names: Iterable[str]) -> list[Principal]:
        """Returns the callers that a certificate with these names belongs to: those of lines without a key."""
        return [self._by_certificate[name] for name in names if name in self._by_certificate]

    def permissions(self) -> dict[str, frozenset[str]]:
        """Returns the permissions of each caller, by its name."""
        principals = (*(principal for _, principal in self._by_digest.values()), *self._by_certificate.values())
        return {principal.name: principal.permissions for principal in principals}


def name_fault(name: str) -> str:
    """Returns why no caller with a key may have the name; empty if it may."""
    if not _NAME.fullmatch(name):
        return NAME_RULE
    lowered = name.lower()
    if lowered in RESERVED_NAMES or lowered.startswith(RESERVED_PREFIXES):
        return RESERVED_RULE
    return CERTIFICATE_RULE if lowered.startswith(CERTIFICATE_PREFIXES) else ""


def certificate_name_fault(name: str) -> str:
    """Returns why no caller with a certificate may have the name; empty if it may."""
    if not name.startswith(CERTIFICATE_PREFIXES):
        return "needs uri:, dns: or cn: before it, because the line has no key"
    if not (_NAME.fullmatch(name) and name.partition(":")[2]):
        return NAME_RULE
    return "must not contain *, because a wildcard names no single caller" if "*" in name else ""


def generate_key(name: str, permissions: Collection[str]) -> tuple[str, str]:
    """Generates a key. Returns the key and the line for the keys file.

    Args: name, of the caller, already checked.
    """
    key = f"caseload_{secrets.token_urlsafe(32)}"
    ordered = ",".join(permission for permission in PERMISSIONS if permission in permissions)
    return key, f"{name} {ordered} sha256:{_digest(key).hex()}"


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode("utf-8", "replace")).digest()
