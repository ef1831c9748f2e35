"""A small identity provider: discovery and keys over TLS, and tokens that it signs."""

import json
import ssl
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Final

import jwt
import trustme
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa

from tests.support.waiting import HUNG_SECONDS

AUDIENCE: Final = "caseload"
_RSA: Final = rsa.generate_private_key(65537, 2048)
"""Made once, because it takes long."""


class SigningKey:
    """A key of the issuer, and its public half as a JSON Web Key."""

    def __init__(self, algorithm: str, key_id: str = "", private: Any = None) -> None:
        """Args: key_id, by default one that no other key has."""
        made: dict[str, Any] = {
            "RS256": lambda: _RSA,
            "ES256": lambda: ec.generate_private_key(ec.SECP256R1()),
            "EdDSA": ed25519.Ed25519PrivateKey.generate,
        }
        self.algorithm, self.id = algorithm, key_id or uuid.uuid4().hex
        self.private: Any = private or made[algorithm]()
        public = jwt.get_algorithm_by_name(algorithm).to_jwk(self.private.public_key(), as_dict=True)
        self.jwk: dict[str, Any] = {**public, "kid": self.id, "alg": algorithm, "use": "sig"}


class Issuer:
    """The identity provider. Its attributes can change at any time."""

    def __init__(self, server: ThreadingHTTPServer) -> None:
        self.url = f"https://localhost:{server.server_port}"
        self.keys = [SigningKey(algorithm, algorithm.lower()) for algorithm in ("RS256", "ES256", "EdDSA")]
        self.discovery: dict[str, Any] = {"issuer": self.url, "jwks_uri": f"{self.url}/keys"}
        self.responds = threading.Event()
        self.responds.set()
        self.status = 200
        self.is_moved = False
        """Whether its document redirects to another address."""
        self.drips = False
        """Whether it sends an endless header, byte by byte, until the reader gives up."""
        self.was_given_up = threading.Event()
        self.requests: list[str] = []

    def answer(self, path: str) -> dict[str, Any]:
        self.requests.append(path)
        self.responds.wait()
        return {"keys": [key.jwk for key in self.keys]} if path == "/keys" else self.discovery

    def token(self, key: SigningKey | None = None, *, headers: dict[str, Any] | None = None, **claims: Any) -> str:
        """A valid token, apart from what is given. A claim or header that is None is left out."""
        key = key or self.keys[1]
        now = int(time.time())
        valid = {"iss": self.url, "aud": AUDIENCE, "sub": "billing", "iat": now, "exp": now + 3600}
        content = {**valid, "permissions": ["read"], **claims}
        marks = {"kid": key.id, **(headers or {})}
        return jwt.encode(
            {name: value for name, value in content.items() if value is not None},
            key.private,
            key.algorithm,
            {name: value for name, value in marks.items() if value is not None},
        )


@contextmanager
def issuing(folder: Path) -> Iterator[tuple[Issuer, Path]]:
    """Serves an issuer. Yields it, and the file of the authority to trust."""
    authority = trustme.CA()
    authority.cert_pem.write_to_path(folder / "issuer-ca.pem")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("localhost").configure_cert(context)
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
    server.daemon_threads = True
    server.socket = context.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
    issuer = Issuer(server)
    server.issuer = issuer  # type: ignore[attr-defined]
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield issuer, folder / "issuer-ca.pem"
    finally:
        issuer.responds.set()
        server.shutdown()
        thread.join()
        server.server_close()


class _Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        issuer: Issuer = self.server.issuer  # type: ignore[attr-defined]
        content = json.dumps(issuer.answer(self.path)).encode()
        try:
            if issuer.drips:
                self._drip()
            is_moved = issuer.is_moved and self.path.startswith("/.well-known")
            self.send_response(302 if is_moved else issuer.status)
            self.send_header("Location", f"{issuer.url}/moved")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)
        except OSError:  # the reader has given up
            self.close_connection = True
            issuer.was_given_up.set()

    def _drip(self) -> None:
        self.wfile.write(b"HTTP/1.1 200 OK\r\nEndless: ")
        for _ in range(int(HUNG_SECONDS / 0.02)):
            self.wfile.write(b"a")
            time.sleep(0.02)

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the name of the base class
        """Prints nothing."""
