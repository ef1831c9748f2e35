"""The same environment for the tests on every machine: variables and a umask of the user do not reach them.

Programs under test read such variables themselves: gRPC the proxies, libpq PGHOST, the server CASELOAD_KEYS_FILE.
"""

import os
import re
from collections.abc import Iterator
from typing import Final

import pytest
from caseload_server.commands.variables import bypass_proxies

_PROXIES: Final = re.compile(r"(?i)((https?|all|grpc)_proxy|no_(grpc_)?proxy)")
_OTHERS: Final = re.compile(
    r"(OTEL|PG|GRPC)_?[A-Z_]+|CASELOAD_(?!TEST_)\w+|AUDIT_REQUIRED|(FORCE|MYPY_FORCE|PY)_COLORS?|PYTEST_ADDOPTS"
)
_USUAL_UMASK: Final = 0o022


@pytest.fixture(scope="session", autouse=True)
def environment() -> Iterator[dict[str, str]]:
    """Leaves out variables while the tests run. Returns those of proxies."""
    proxies = {name: value for name, value in os.environ.items() if _PROXIES.fullmatch(name)}
    before = os.umask(_USUAL_UMASK)
    with pytest.MonkeyPatch.context() as monkeypatch:
        for name in [*proxies, *filter(_OTHERS.fullmatch, os.environ)]:
            monkeypatch.delenv(name)
        yield proxies
    os.umask(before)


@pytest.fixture(scope="module")
def proxies(environment: dict[str, str]) -> Iterator[None]:
    """For a module that fetches packages: the proxies of the user, except to this machine."""
    bypass_proxies(variables := {**environment})
    with pytest.MonkeyPatch.context() as monkeypatch:
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        yield
