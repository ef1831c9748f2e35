"""A real nginx or HAProxy with the shipped configuration, in front of servers on loopback."""

import getpass
import os
import shutil
import signal
import socket
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final, NamedTuple

from tests.deploy.manifests import DEPLOY
from tests.support.missing_tool import NoTool
from tests.support.servers import free_address
from tests.support.waiting import HUNG_SECONDS, eventually

SHIPPED: Final = {"nginx": DEPLOY / "nginx" / "nginx.conf", "haproxy": DEPLOY / "haproxy" / "haproxy.cfg"}
_DEBIAN: Final = "/usr/sbin"
"""Debian installs both programs here, which is outside PATH for most users."""
_RELOAD: Final = {"nginx": signal.SIGHUP, "haproxy": signal.SIGUSR2}
_TEMPORARY: Final = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")


class ReverseProxy(NamedTuple):
    """A running proxy."""

    program: str
    target: str
    """HOST:PORT of its listener with TLS."""
    log: Path
    process: "subprocess.Popen[bytes]"

    def reload(self) -> None:
        """Reads the configuration again, as an operator does who has renewed a certificate."""
        self.process.send_signal(_RELOAD[self.program])


@contextmanager
def reverse_proxy(
    program: str, folder: Path, backends: Sequence[str], *, encrypted: bool = False, caller: str = ""
) -> Iterator[ReverseProxy]:
    """Runs "nginx" or "haproxy" with its shipped file. Raises NoTool.

    Args: folder, has `cert.pem` and `cert.key` for localhost, and `ca.pem`; backends, the addresses of two servers;
    encrypted, uses TLS to the servers too, as the comments of the file say; caller, the address that the proxy sees.
    """
    found = shutil.which(program, path=f"{os.environ.get('PATH', '')}:{_DEBIAN}")
    if found is None:
        raise NoTool(f"needs {program}: apt-get install {program}")
    listen = free_address()
    configuration = folder / SHIPPED[program].name
    text = SHIPPED[program].read_text()
    for shipped, here in zip(("127.0.0.1:50051", "127.0.0.1:50052"), backends, strict=True):
        text = replaced(text, shipped, here)
    configure = _nginx if program == "nginx" else _haproxy
    configuration.write_text(configure(text, folder, listen, encrypted=encrypted))
    if caller:
        configuration.write_text(
            replaced(configuration.read_text(), {"nginx": "$remote_addr", "haproxy": "%[src]"}[program], caller)
        )
    log = folder / f"{program}.log"
    arguments = (
        ["-p", str(folder), "-e", str(log), "-c", str(configuration), "-g", f"daemon off; pid {folder}/nginx.pid;"]
        if program == "nginx"
        else ["-W", "-f", str(configuration)]
    )
    with log.open("ab") as output:
        process = subprocess.Popen(["setpriv", "--pdeathsig", "KILL", found, *arguments], stdout=output, stderr=output)
    try:
        eventually(lambda: process.poll() is not None or _listens(listen), log.read_text)
        assert process.poll() is None, log.read_text()
        yield ReverseProxy(program, f"localhost:{listen.rpartition(':')[2]}", log, process)
    finally:
        process.terminate()
        process.wait(HUNG_SECONDS)


def replaced(text: str, shipped: str, here: str) -> str:
    """The text of a file with one string replaced, which it must have once."""
    assert text.count(shipped) == 1, shipped
    return text.replace(shipped, here)


def _listens(address: str) -> bool:
    host, _, port = address.rpartition(":")
    with suppress(OSError), socket.create_connection((host, int(port)), HUNG_SECONDS):
        return True
    return False


def _nginx(text: str, folder: Path, listen: str, *, encrypted: bool) -> str:
    text = replaced(text, "user www-data;", f"user {getpass.getuser()};")
    text = replaced(text, "listen 443 ", f"listen {listen} ")
    text = replaced(text, "/etc/nginx/caseload.pem", str(folder / "cert.pem"))
    text = replaced(text, "/etc/nginx/caseload.key", str(folder / "cert.key"))
    folders = " ".join(f"{name}_temp_path {folder}/{name};" for name in _TEMPORARY)
    text = replaced(text, "http {", "http { " + folders)
    if encrypted:
        text = replaced(text, "grpc_pass grpc://", "grpc_pass grpcs://").replace("#grpc_ssl", "grpc_ssl")
        text = replaced(text, "/etc/nginx/caseload-ca.pem", str(folder / "ca.pem"))
        text = replaced(text, "grpc_ssl_name caseload.example.org", "grpc_ssl_name localhost")
    return text


def _haproxy(text: str, folder: Path, listen: str, *, encrypted: bool) -> str:
    pair = folder / "haproxy.pem"
    pair.touch(mode=0o600)
    pair.write_text((folder / "cert.pem").read_text() + (folder / "cert.key").read_text())
    text = replaced(text, "bind :443 ", f"bind {listen} ")
    text = replaced(text, "/etc/haproxy/caseload.pem", str(pair))
    if encrypted:
        [tls] = [line.partition('"')[2].partition('"')[0] for line in text.splitlines() if "ssl verify" in line]
        text = replaced(text, "default-server ", f"default-server {tls.replace('caseload.example.org', 'localhost')} ")
        text = text.replace("/etc/haproxy/caseload-ca.pem", str(folder / "ca.pem"))
    return text
