"""Ports for programs that cannot choose one themselves."""

import random
import socket

from tests.support.missing_tool import NoTool


def need_ipv6() -> None:
    """Raises NoTool where the loopback interface has no IPv6."""
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError:
        raise NoTool("needs IPv6 on the loopback interface: sysctl net.ipv6.conf.lo.disable_ipv6=0") from None


def free_port() -> int:
    """Returns a free port below the ephemeral range, so that no client socket takes the port of a stopped server."""
    for port in random.sample(range(20_000, 32_000), 100):
        with socket.socket() as attempt:
            try:
                attempt.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
    raise RuntimeError("no free port")
