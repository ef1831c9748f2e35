"""A keys file, servers that accept tokens or keys, and their callers. Tests of a module share the servers."""

from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest
from caseload_server.domain import limits
from caseload_server.rpc.server import CaseloadServer

from tests.security.redaction_callers import SECRET, Caller, Pair
from tests.security.server_fixture import KeysFile, LogReader, serving
from tests.security.token_calls import settings
from tests.support.issuer import Issuer, issuing


@pytest.fixture
def keys_file(tmp_path: Path) -> KeysFile:
    return KeysFile(tmp_path / "keys")


@pytest.fixture(scope="module")
def shared_issuer(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Issuer]:
    """Servers ask it for its keys as often as they may."""
    with issuing(tmp_path_factory.mktemp("issuer")) as (found, authority), pytest.MonkeyPatch.context() as patch:
        patch.setenv("SSL_CERT_FILE", str(authority))
        patch.setattr(limits, "ISSUER_RETRY_SECONDS", 0.01)
        yield found


@pytest.fixture
def issuer(shared_issuer: Issuer) -> Iterator[Issuer]:
    """Each test leaves the issuer as it was."""
    keys, discovery = shared_issuer.keys, shared_issuer.discovery
    yield shared_issuer
    shared_issuer.keys, shared_issuer.discovery = keys, discovery
    shared_issuer.status, shared_issuer.is_moved = 200, False


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("tokens")


@pytest.fixture(scope="module")
def token_server(folder: Path, shared_issuer: Issuer) -> Iterator[CaseloadServer]:
    with serving(folder, **settings(shared_issuer), access_log=folder / "access.log") as started:
        yield started


@pytest.fixture
def caller(token_server: CaseloadServer) -> Iterator[grpc.Channel]:
    with grpc.insecure_channel(token_server.address) as channel:
        yield channel


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    folder = tmp_path_factory.mktemp("redaction")
    keys, log = KeysFile(folder / "keys"), folder / "access.log"
    clerk, writer = keys.add(SECRET), keys.add("writer", "write")
    with serving(folder, keys_file=keys.path, access_log=log) as server, grpc.insecure_channel(server.address) as one:
        yield Pair(Caller(one, clerk), Caller(one, writer), LogReader(log))
