"""Cleans and checks the environment variables of a command, and finds those that Kubernetes or Docker injected."""

import ipaddress
import re
from collections.abc import Collection, Mapping, MutableMapping
from typing import Final

from caseload_server.config import SettingError, clean_value

PREFIX: Final = "CASELOAD_"
_TEST_PREFIX: Final = "CASELOAD_TEST_"
_OF_LIBRARIES: Final = re.compile("PG[A-Z]+|SSL_CERT_(?:FILE|DIR)|(?:https?|HTTPS?|grpc|all|ALL)_(?:proxy|PROXY)")
"""Variables of libpq, OpenSSL and gRPC that the server relies on."""
_TRACES: Final = "OTEL_"

_LOOPBACK: Final = "localhost,127.0.0.0/8,127.0.0.1,::1"
_NO_PROXY: Final = ("no_grpc_proxy", "no_proxy", "NO_PROXY")
"""Of two that are set, a library reads the first one that it knows."""

_URL: Final = re.compile(r"(?:tcp|udp|sctp)://(.+):([0-9]{1,5})")
_PROTOCOL: Final = re.compile("tcp|udp|sctp")
_PORT: Final = re.compile("[0-9]{1,5}")
_CONTAINER: Final = re.compile("/[^/]+/([^/]+)")
_OF_PORT: Final = "PORT_[0-9]{1,5}_(?:TCP|UDP|SCTP)"


def _is_ip(value: str) -> bool:
    try:
        ipaddress.ip_address(value)
    except ValueError:
        return False
    return True


def _is_url(value: str) -> bool:
    match = _URL.fullmatch(value)
    return match is not None and _is_ip(match[1].removeprefix("[").removesuffix("]"))


# Kubernetes injects these for each Service of the namespace, Docker for each container link with this alias. Both write
# the name in capitals. https://kubernetes.io/docs/concepts/services-networking/service/#environment-variables
# https://docs.docker.com/engine/network/links/#environment-variables
_SHAPES: Final = (
    ("SERVICE_HOST", _is_ip),
    ("SERVICE_PORT(?:_[A-Z0-9_]+)?", _PORT.fullmatch),
    ("PORT", _is_url),
    (f"{_OF_PORT}(?:_START|_END)?", _is_url),
    (f"{_OF_PORT}_PROTO", _PROTOCOL.fullmatch),
    (f"{_OF_PORT}_PORT(?:_START|_END)?", _PORT.fullmatch),
    (f"{_OF_PORT}_ADDR", _is_ip),
)


def injected(environment: Mapping[str, str]) -> list[str]:
    """Returns the variables that describe a Service or a container called caseload, or caseload- and more.

    Their names look like settings. A variable counts only if its value has the form of an injected one too.
    """
    ours = {name: value for name, value in environment.items() if name.startswith(PREFIX)}
    links = [name.removesuffix("_NAME") for name, value in ours.items() if _names_link(name, value)]
    of_links = tuple(f"{link}_ENV_" for link in links)
    return sorted(
        name
        for name, value in ours.items()
        if _is_injected(name, value) or _names_link(name, value) or name.startswith(of_links)
    )


def _names_link(name: str, value: str) -> bool:
    """Returns whether a variable has both containers of a link: /container/alias, under the name ALIAS_NAME."""
    match = _CONTAINER.fullmatch(value)
    return match is not None and name == match[1].upper().replace("-", "_") + "_NAME"


def _is_injected(name: str, value: str) -> bool:
    return any(re.fullmatch(f"CASELOAD_(?:[A-Z0-9_]+_)?{shape}", name) and accepts(value) for shape, accepts in _SHAPES)


def check_variables(environment: MutableMapping[str, str], known: Collection[str]) -> None:
    """Removes the white space around the values of settings. An empty value counts as not set.

    Raises SettingError for a variable that is neither a setting nor injected, or whose value has control characters.
    Args: known, the variables that are settings.
    """
    ignored = injected(environment)
    for name in sorted(environment):
        if name in known or name.startswith(_TRACES):
            environment[name] = clean_value(name, environment[name])
        elif _OF_LIBRARIES.fullmatch(name):
            environment[name] = environment[name].strip("\r\n")  # a password may begin or end with a space
        elif name.startswith(PREFIX) and not name.startswith(_TEST_PREFIX) and name not in ignored:
            raise SettingError(name, "is not a known setting")


def bypass_proxies(environment: MutableMapping[str, str]) -> None:
    """Makes this process reach its own machine without a proxy: an identity provider or a collector of traces.

    A proxy that the variables name runs elsewhere, and has another loopback interface.
    """
    environment.setdefault("no_proxy", environment.get("NO_PROXY", ""))
    for name in _NO_PROXY:
        if name in environment and environment[name].strip() != "*":
            environment[name] = ",".join(filter(None, (environment[name].strip(), _LOOPBACK)))
