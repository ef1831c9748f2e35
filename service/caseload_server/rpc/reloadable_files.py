"""The keys file, the certificates and the access log of a server, which can be reloaded."""

import sys

import grpc
import structlog

from caseload_server.config import Config, SettingError
from caseload_server.observability import logs
from caseload_server.observability.log_file import LogFile, LogSink
from caseload_server.private_files import check_log_file
from caseload_server.security.keys_file import Callers
from caseload_server.security.tls import Certificates
from caseload_server.write_faults import with_fault, write_fault

_log = structlog.get_logger()


class ReloadableFiles:
    """The files of one server."""

    def __init__(self, config: Config) -> None:
        """Reads the callers and the certificates. Raises SettingError."""
        if config.access_log and check_log_file("--access-log", config.access_log):
            _log.warning("access log open to others", setting="--access-log")
        self.callers = Callers(config.keys_file) if config.keys_file else None
        self.certificates: Certificates | None = None
        if config.tls_cert and config.tls_key:
            self.certificates = Certificates(config.tls_cert, config.tls_key, config.tls_client_ca)
        self._access_log: LogFile | None = None

    def credentials(self) -> grpc.ServerCredentials | None:
        """Returns the credentials of the port, or None for plain text."""
        return self.certificates.credentials() if self.certificates else None

    def open_access_log(self, config: Config) -> LogSink:
        """Returns what takes the lines of the access log. Raises SettingError."""
        if not config.access_log:
            return logs.ConsoleSink() if sys.stderr.isatty() else logs.STDERR
        try:
            self._access_log = LogFile(config.access_log)
        except OSError as error:
            text = with_fault("cannot be written", write_fault(config.access_log, error))
            raise SettingError("--access-log", text) from None
        return self._access_log

    def reload(self) -> None:
        """Opens the access log again, and reads the callers and the certificates again, even if they look unchanged."""
        if self._access_log:
            self._access_log.reopen()
        for files in (self.callers, self.certificates):
            if files:
                files.reload()
