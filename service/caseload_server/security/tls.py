"""TLS: the server's certificate, and the authority that client certificates must come from."""

import codecs
import ssl
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, NamedTuple

import grpc

from caseload_server.config import SettingError
from caseload_server.private_files import read_private, read_public, read_trusted
from caseload_server.security.file_reload import ReloadedFiles

NOT_PEM: Final = "is not a PEM certificate"
NOT_A_PAIR: Final = "is not a PEM certificate, or --tls-key is not its private key in PEM format"


class _Loaded(NamedTuple):
    """The content of the files."""

    configuration: grpc.ServerCertificateConfiguration
    certificates: dict[str, bytes]
    """Each file with certificates, by the name of its setting."""


class Certificates:
    """The server's certificate and key and the authority for client certificates, reloaded when their files change."""

    def __init__(self, cert: Path, key: Path, client_ca: Path | None) -> None:
        """Reads the files. Raises SettingError.

        Args: client_ca, the authority for client certificates; None when clients need no certificate.
        """
        self._cert, self._key, self._client_ca = cert, key, client_ca
        paths = [path for path in (cert, key, client_ca) if path]
        self._files: ReloadedFiles[_Loaded] = ReloadedFiles(paths, self._read)
        self._active = self._files.value()

    def reload(self) -> None:
        """Reads the files at once. The next handshake uses them."""
        self._files.reload()

    def credentials(self) -> grpc.ServerCredentials:
        """Returns the credentials for a port, with TLS 1.2 or later, which is the C core's minimum.

        At every handshake, the C core asks for a changed configuration.
        """
        return grpc.dynamic_ssl_server_credentials(
            self._active.configuration,
            self._changed_configuration,
            require_client_authentication=self._client_ca is not None,
        )

    def _changed_configuration(self) -> Any:
        latest = self._files.value()
        if latest is self._active:
            return None  # the C core keeps its configuration
        self._active = latest
        return latest.configuration

    def expiry_times(self) -> dict[str, Callable[[], float]]:
        """Returns for each file the function that returns when its first certificate expires.

        That is in seconds since 1970. The functions also reload renewed files.
        """
        from caseload_server.security.certificates import earliest_expiry  # `caseload check` does not need it

        return {
            name: lambda name=name: earliest_expiry(self._files.value().certificates[name])  # type: ignore[misc]  # bound now
            for name in self._active.certificates
        }

    def _read(self) -> _Loaded:
        key, cert = self._read_pair()
        authority = _without_mark(read_trusted("--tls-client-ca", self._client_ca)) if self._client_ca else None
        self._check_pair()
        if authority is not None:
            _check_authority(authority)
        if (key, cert) != self._read_pair():
            raise SettingError("--tls-cert", "changed while it was being read")
        certificates = {"tls_cert": cert} | ({"tls_client_ca": authority} if authority else {})
        return _Loaded(grpc.ssl_server_certificate_configuration([(key, cert)], authority), certificates)

    def _read_pair(self) -> tuple[bytes, bytes]:
        return _without_mark(read_private("--tls-key", self._key)), read_file("--tls-cert", self._cert)

    def _check_pair(self) -> None:
        # The C core would accept files that it cannot use, and then fail every handshake.
        try:
            ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(self._cert, self._key, password="")
        except (ssl.SSLError, OSError, ValueError):
            raise SettingError("--tls-cert", NOT_A_PAIR) from None


def _check_authority(authority: bytes) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    try:
        context.load_verify_locations(cadata=authority.decode("ascii", "replace"))
    except (ssl.SSLError, ValueError):
        raise SettingError("--tls-client-ca", NOT_PEM) from None


def read_file(setting: str, path: Path) -> bytes:
    """Returns the content of a file with certificates, which every user may read. Raises SettingError."""
    return _without_mark(read_public(setting, path))


def _without_mark(content: bytes) -> bytes:
    """Removes a byte order mark, which OpenSSL ignores and gRPC does not."""
    return content.removeprefix(codecs.BOM_UTF8)
