"""Says why the server cannot listen on an address."""

import errno
import socket
from typing import Final

_TEXTS: Final = {
    errno.EACCES: "only root may use its port",
    errno.EADDRINUSE: "its port is in use",
    errno.EADDRNOTAVAIL: "it does not belong to this machine",
    errno.EAFNOSUPPORT: "this machine has no IPv6",
}
_UNKNOWN: Final = "it is in use, or does not belong to this machine"


def cannot_listen(error: OSError | None) -> str:
    """Returns the text of a SettingError. Args: error, of the bind; None if it is not known."""
    known = _TEXTS.get(error.errno or 0, _UNKNOWN) if error else _UNKNOWN
    return f"cannot listen on this address: {known}"


def bind_error(host: str, port: int, *, shared: bool) -> OSError | None:
    """Returns the error of listening on an address, or None if that is possible.

    Args: host, in brackets if it is IPv6; shared, whether other processes of the server listen on the port too.
    """
    try:
        with socket.socket(socket.AF_INET6 if host.startswith("[") else socket.AF_INET) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # connections may be in TIME_WAIT
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, shared)
            probe.bind((host.strip("[]"), port))
            probe.listen()
    except OSError as error:
        return error
    return None
