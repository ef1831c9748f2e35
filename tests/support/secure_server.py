"""A server with TLS and keys that keeps its address over restarts, for callers in any language."""

import os
from pathlib import Path
from types import TracebackType
from typing import Self

import trustme

from tests.security.server_fixture import KeysFile
from tests.support.servers import ServerProcess, free_address


def write_certificate(folder: Path) -> None:
    """Writes cert.pem and cert.key, a certificate for localhost with its key, and its authority in ca.pem."""
    authority = trustme.CA()
    pair = authority.issue_cert("localhost")
    (folder / "ca.pem").write_bytes(authority.cert_pem.bytes())
    (folder / "cert.pem").write_bytes(b"".join(part.bytes() for part in pair.cert_chain_pems))
    (folder / "cert.key").touch(mode=0o600)
    (folder / "cert.key").write_bytes(pair.private_key_pem.bytes())


class SecureServer:
    """`caseload serve` with TLS and a keys file; starts and ends with the with block.

    The certificate is for localhost. The authority is in `ca.pem` of the folder, and `key` is the token of a caller.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.port = free_address().rpartition(":")[2]
        self.address = f"localhost:{self.port}"
        keys = KeysFile(folder / "keys")
        self.key = keys.add("recipe")
        write_certificate(folder)
        self._arguments = ["--address", f"127.0.0.1:{self.port}", "--keys-file", str(keys.path)]
        self._arguments += ["--tls-cert", str(folder / "cert.pem"), "--tls-key", str(folder / "cert.key")]

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.__exit__(kind, error, trace)

    def restart(self, *, crash: bool = False) -> None:
        """Stops the server as a deployment does, or kills it, and starts it again at the same address."""
        if crash:
            self._process.__exit__(None, None, None)
        else:
            self.stop()
        self.start()

    def stop(self) -> None:
        """Stops the server as a deployment does."""
        code, log = self._process.stop()
        assert code == 0, log

    def start(self) -> None:
        """Starts the server."""
        database = f"sqlite:///{self.folder}/caseload.db"
        self._process = ServerProcess(database, *self._arguments, access_log=os.devnull).__enter__()
