"""TLS: the certificate that is shown, and whose certificates are asked for."""

import ssl
from pathlib import Path
from typing import Any

import grpc

from caseload_server.config import SettingError
from caseload_server.security.file_reload import Reloading


class Certificates:
    """A certificate with its key, and the authority of the callers' certificates, renewed as their files are."""

    def __init__(self, cert: Path, key: Path, client_ca: Path | None) -> None:
        """Args: client_ca, None where callers need no certificate. Raises SettingError."""
        self._cert, self._key, self._client_ca = cert, key, client_ca
        paths = [path for path in (cert, key, client_ca) if path]
        self._files: Reloading[grpc.ServerCertificateConfiguration] = Reloading(paths, self._read)
        self._shown = self._files.value()

    def credentials(self) -> grpc.ServerCredentials:
        """For a port. TLS 1.2 or later, as the C core has it; it asks for news with every handshake."""
        return grpc.dynamic_ssl_server_credentials(
            self._shown, self._news, require_client_authentication=self._client_ca is not None
        )

    def _news(self) -> Any:
        now = self._files.value()
        if now is self._shown:
            return None  # the C core goes on with what it has
        self._shown = now
        return now

    def _read(self) -> grpc.ServerCertificateConfiguration:
        key, cert = content("--tls-key", self._key), content("--tls-cert", self._cert)
        authority = content("--tls-client-ca", self._client_ca) if self._client_ca else None
        self._check_pair()
        if authority is not None:
            _check_authority(authority)
        if (key, cert) != (content("--tls-key", self._key), content("--tls-cert", self._cert)):
            raise SettingError("--tls-cert", "changes while it is read")
        return grpc.ssl_server_certificate_configuration([(key, cert)], authority)

    def _check_pair(self) -> None:
        # The C core would take what it cannot use, and then refuse every handshake.
        try:
            ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(self._cert, self._key, password="")
        except (ssl.SSLError, OSError, ValueError):
            raise SettingError("--tls-cert", "is no PEM certificate, or --tls-key is not its key, in PEM") from None


def _check_authority(authority: bytes) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    try:
        context.load_verify_locations(cadata=authority.decode("ascii", "replace"))
    except (ssl.SSLError, ValueError):
        raise SettingError("--tls-client-ca", "is no PEM certificate") from None


def content(setting: str, path: Path) -> bytes:
    """What is in the file. Raises SettingError."""
    try:
        return path.read_bytes()
    except OSError:
        raise SettingError(setting, "cannot be read") from None
