"""PEM files for tests of TLS."""

from pathlib import Path

import trustme


class PemFiles:
    """PEM files of an authority, and of a certificate that it issued."""

    def __init__(self, folder: Path, name: str) -> None:
        authority = trustme.CA()
        made = authority.issue_cert("127.0.0.1", common_name=name)
        self.ca, self.cert, self.key = (folder / f"{name}.{part}" for part in ("ca", "cert", "key"))
        authority.cert_pem.write_to_path(self.ca)
        self.key.touch(mode=0o600)
        made.private_key_pem.write_to_path(self.key)
        self.cert.write_bytes(b"".join(part.bytes() for part in made.cert_chain_pems))
