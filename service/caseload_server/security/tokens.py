"""Tokens of an identity provider: signed JSON Web Tokens (RFC 7519), verified as RFC 8725 advises."""

import hashlib
import re
from typing import Any, Final

import jwt

from caseload_server.config import Config
from caseload_server.domain import limits
from caseload_server.domain.errors import Unauthenticated
from caseload_server.security.issuer_keys import ALGORITHMS, IssuerKeys, KeySet
from caseload_server.security.principal import ISSUER_PREFIX, PERMISSIONS, Principal

_NAME: Final = re.compile(r"[!#-\[\]-~]{1,195}")
_TYPES: Final = ("jwt", "at+jwt", "application/at+jwt")
"""Accepted types of tokens, in lower case. The issuer signs other types for other purposes, such as a logout."""
_MAX_CACHED: Final = 10_000
_CAUSES: Final = (
    (jwt.ExpiredSignatureError, "expired_token"),
    (jwt.ImmatureSignatureError, "premature_token"),
    (jwt.InvalidAudienceError, "wrong_audience"),
    (jwt.InvalidIssuerError, "wrong_issuer"),
    (jwt.InvalidSignatureError, "wrong_signature"),
)


class Tokens:
    """Verifies the tokens of one issuer."""

    def __init__(self, config: Config, keys: IssuerKeys) -> None:
        """Args: config, with the settings --oidc-...; keys, the issuer's."""
        self._config = config
        self._keys = keys
        self._verified: tuple[KeySet | None, dict[bytes, Principal]] = (None, {})
        """The callers of verified tokens by the SHA-256 of the token, for one set of keys."""

    def close(self) -> None:
        """Stops fetching keys."""
        self._keys.close()

    def keys(self) -> KeySet | None:
        """Returns the current keys of the issuer, the same object until they change."""
        return self._keys.current()

    def principal(self, token: str) -> Principal:
        """Returns the caller that a token names. Raises Unauthenticated."""
        keys = self._keys.current()
        if keys is None:
            raise Unauthenticated("issuer_unavailable")
        of_keys, verified = self._verified
        if of_keys is not keys or len(verified) >= _MAX_CACHED:  # tokens of a withdrawn key must be verified again
            verified = {}
            self._verified = keys, verified
        digest = hashlib.sha256(token.encode("utf-8", "replace")).digest()
        principal = verified.get(digest)
        if principal is None:
            verified[digest] = principal = self._verify(token, keys)
        if principal.is_expired():
            raise Unauthenticated("expired_token")
        return principal

    def _verify(self, token: str, keys: KeySet) -> Principal:
        try:
            return self._principal(self._claims(token, keys))
        except Unauthenticated:
            raise
        except Exception as error:  # noqa: BLE001 - anyone can send anything, and no defect may accept it
            raise Unauthenticated(_cause(error)) from None

    def _claims(self, token: str, keys: KeySet) -> dict[str, Any]:
        """Returns the verified claims.

        The header only says which key to use. Keys in it, and addresses of keys, are ignored. The key determines the
        algorithm.
        """
        header = jwt.get_unverified_header(token)
        if header["alg"] not in ALGORITHMS:
            raise Unauthenticated("wrong_algorithm")
        if "crit" in header or str(header.get("typ", "jwt")).lower() not in _TYPES:
            raise Unauthenticated("malformed_token")
        key = keys.find(header.get("kid"), header["alg"])
        if key is None:
            raise Unauthenticated("unknown_token_key", self._keys.when_refreshed)
        claims: dict[str, Any] = jwt.decode(
            token,
            key.public_key,
            algorithms=[key.algorithm],
            issuer=self._config.oidc_issuer,
            audience=self._config.oidc_audience,
            leeway=limits.TOKEN_LEEWAY_SECONDS,
            options={"require": ["exp", "iss", "aud"]},
        )
        return claims

    def _principal(self, claims: dict[str, Any]) -> Principal:
        name, expires = claims.get(self._config.oidc_name_claim), claims["exp"]
        if not (isinstance(name, str) and _NAME.fullmatch(name)):
            raise Unauthenticated("invalid_token_name")
        permissions = _permissions(claims.get(self._config.oidc_permissions_claim))
        return Principal(ISSUER_PREFIX + name, permissions, expires + limits.TOKEN_LEEWAY_SECONDS)


def _cause(error: Exception) -> str:
    return next((cause for kind, cause in _CAUSES if isinstance(error, kind)), "malformed_token")


def _permissions(claim: object) -> frozenset[str]:
    """Returns the permissions in a claim: a list, or words separated by spaces (RFC 8693). Other values are ignored."""
    values = claim.split(" ") if isinstance(claim, str) else claim
    return frozenset(PERMISSIONS).intersection(filter(_is_text, values) if isinstance(values, list) else ())


def _is_text(value: object) -> bool:
    return isinstance(value, str)
