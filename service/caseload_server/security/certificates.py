"""Client certificates of callers. The C core verified them against the authority when the connection began.

The C core also returns the names in a certificate. But it truncates each name at a NUL, and does not return its kind.
So this module parses the certificate itself.
"""

import re
from collections.abc import Iterator
from functools import lru_cache
from typing import Final, NamedTuple

from cryptography import x509
from cryptography.x509.oid import NameOID

_CACHED: Final = 4096
_CONTROL: Final = re.compile(r"[\x00-\x1f\x7f-\x9f]")


class ClientCertificate(NamedTuple):
    """What the server needs to know of a client certificate."""

    names: frozenset[str]
    """Its URIs, DNS names and common names, each with its prefix."""
    valid_until: float
    """Its notAfter, in seconds since 1970 (UTC). A connection can outlive it."""


@lru_cache(maxsize=_CACHED)
def read_certificate(pem: bytes) -> ClientCertificate:
    """Parses a certificate in PEM. The result is cached, because each call of a connection has the same certificate.

    Raises ValueError if it cannot be parsed, or if a name in it contains a control character.
    """
    try:
        certificate = x509.load_pem_x509_certificate(pem)
        names = frozenset(_names(certificate))
    except Exception as error:
        raise ValueError from error
    if any(_CONTROL.search(name) for name in names):
        raise ValueError
    valid_until = certificate.not_valid_after_utc.timestamp()
    return ClientCertificate(names, valid_until)


@lru_cache(maxsize=8)
def earliest_expiry(pem: bytes) -> float:
    """Returns the first notAfter of the certificates in a PEM file, in seconds since 1970 (UTC).

    Raises ValueError if one cannot be parsed.
    """
    return min(one.not_valid_after_utc.timestamp() for one in x509.load_pem_x509_certificates(pem))


def _names(certificate: x509.Certificate) -> Iterator[str]:
    try:
        alternative = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        pass
    else:
        yield from (f"uri:{uri}" for uri in alternative.get_values_for_type(x509.UniformResourceIdentifier))
        yield from (f"dns:{name}" for name in alternative.get_values_for_type(x509.DNSName))
    for attribute in certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME):
        yield f"cn:{attribute.value!s}"
