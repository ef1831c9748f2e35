"""Client certificates of callers. The C core has verified them against the authority when the connection began."""

from functools import lru_cache
from typing import Final

from cryptography import x509

_CACHED: Final = 4096
"""A certificate is parsed once: each call of a connection brings the same one."""


@lru_cache(maxsize=_CACHED)
def valid_until(pem: bytes) -> float:
    """Returns the notAfter of a certificate, in seconds since 1970 (UTC). Raises ValueError.

    A connection outlives its certificate, so a look at the handshake is not enough.
    """
    return x509.load_pem_x509_certificate(pem).not_valid_after_utc.timestamp()
