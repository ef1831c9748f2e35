"""Servers of the data sets of synthetic_data.py, of any size, on both databases."""

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any, Final

import grpc
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass

from benchmarks import servers
from benchmarks.servers import Server
from benchmarks.synthetic_data import DataSet
from tests.support.postgres.cluster import SAFE, Cluster

_ROOT: Final = Path(__file__).parents[1]
_SECONDS: Final = 60.0
Serve = Callable[[int], AbstractContextManager[Server]]
"""Starts the server of a data set with that many assignments."""


class ServedDataSet:
    """A data set, and a client of its server."""

    def __init__(self, address: str, data: DataSet) -> None:
        self._channel = grpc.insecure_channel(address)
        self.data = data

    def close(self) -> None:
        """Closes the connection."""
        self._channel.close()

    def call(self, request: Message) -> Any:
        """Makes a call. Returns the response. Raises grpc.RpcError."""
        method, answer = _method(request)
        call: Any = self._channel.unary_unary(method, response_deserializer=GetMessageClass(answer).FromString)
        return call(request.SerializeToString(), timeout=_SECONDS)

    def seconds(self, request: Message) -> float:
        """Seconds of a call, without parsing the response."""
        data = request.SerializeToString()
        call: Any = self._channel.unary_unary(_method(request)[0])
        began = time.perf_counter()
        call(data, timeout=_SECONDS)
        return time.perf_counter() - began


def _method(request: Message) -> tuple[str, Any]:
    """The RPC of a request, and its response type."""
    [service] = request.DESCRIPTOR.file.services_by_name.values()
    method = service.methods_by_name[request.DESCRIPTOR.name.removesuffix("Request")]
    return f"/{service.full_name}/{method.name}", method.output_type


@contextmanager
def on_sqlite(folder: Path) -> Iterator[Serve]:
    """Serves files of the folder, which it creates unless they exist."""

    def serve(count: int) -> Server:
        file = folder / f"{count}.db"
        if not file.exists():
            create_database(count, f"sqlite:///{file}")
        return servers.caseload(0, file)

    yield serve


@contextmanager
def on_postgres() -> Iterator[Serve]:
    """Serves databases of a temporary cluster, vacuumed as the server would do by itself after a while."""
    with Cluster(SAFE) as cluster:

        def serve(count: int) -> Server:
            name = f"assignments_{count}"
            url = cluster.create_database(name)
            migrate = [sys.executable, "-m", "caseload_server", "migrate", "--database", url]
            subprocess.run(migrate, stdout=subprocess.DEVNULL, check=True)
            create_database(count, url)
            with cluster.connect(name) as connection:
                connection.execute("VACUUM ANALYZE")
            return servers.caseload_at(0, url)

        yield serve


def create_database(assignments: int, url: str) -> None:
    """Fills an empty database with the given number of assignments."""
    writing = [sys.executable, "-m", "benchmarks.synthetic_data", str(assignments)]
    filling = [sys.executable, "-m", "caseload_server", "import", "-", "--database", url, "--access-log", os.devnull]
    with subprocess.Popen(writing, stdout=subprocess.PIPE, cwd=_ROOT) as lines:
        subprocess.run(filling, stdin=lines.stdout, stdout=subprocess.DEVNULL, check=True)
