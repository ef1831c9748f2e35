"""The server stays within the memory that its manifests give it, whatever callers hold at once.

docs/operations/limits-and-overload.md adds up what they can hold.
"""

import re
import resource
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from itertools import pairwise
from pathlib import Path
from threading import Thread
from typing import Any

import grpc
import pytest
from caseload.v1 import therapist_service_pb2 as pb
from caseload.v1.resources_pb2 import Therapist
from caseload_server.config import Config
from caseload_server.domain import limits

from tests.hostile import http2_frames
from tests.hostile.attacks import connected
from tests.hostile.http2_client import Http2Client, call_headers
from tests.security.server_fixture import KeysFile, bearer
from tests.support.api_driver import full_name
from tests.support.servers import ServerProcess
from tests.support.waiting import HUNG_SECONDS, eventually, join

MANIFEST = Path(__file__).parents[2] / "docs/deploy/kubernetes/caseload.yaml"
CONNECTIONS = 1500
ARENA_BYTES = 64 * 1024 * 1024
NAMES = ("honest", "other", "third")


def memory_limit_bytes() -> int:
    """The memory that the manifest gives a process."""
    found = re.search(r"limits: \{memory: (\d+)Mi\}", MANIFEST.read_text())
    assert found
    return int(found[1]) * 1024 * 1024


def peak_bytes(pid: int) -> int:
    found = re.search(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
    assert found
    return int(found[1]) * 1024


@contextmanager
def server_with_keys(folder: Path) -> Iterator[tuple[ServerProcess, dict[str, str]]]:
    keys = KeysFile(folder / "keys")
    tokens = {name: keys.add(name) for name in NAMES}
    database = f"sqlite:///{folder}/caseload.db"
    with ServerProcess(database, "--keys-file", str(keys.path)) as server:
        yield server, tokens


def arenas(pid: int) -> int:
    """Counts the arenas of the GNU C library: the main one, and others, each of which reserves a region of 64 MiB."""
    found = 1
    for used, unused in pairwise(Path(f"/proc/{pid}/maps").read_text().splitlines()):
        start, end, mode = used.replace("-", " ", 1).split()[:3]
        next_start, next_end, next_mode = unused.replace("-", " ", 1).split()[:3]
        reserves = (mode, next_mode) == ("rw-p", "---p") and end == next_start
        is_aligned = int(start, 16) % ARENA_BYTES == 0
        found += reserves and is_aligned and int(next_end, 16) - int(start, 16) >= ARENA_BYTES
    return found


def store_large_page(address: str, token: str) -> None:
    """Stores as many records as fill a page to its largest size."""
    annotations = {f"k{n}": "v" * 900 for n in range(30)}
    with grpc.insecure_channel(address) as channel:
        create: Any = channel.unary_unary(full_name("CreateTherapist"))
        for _ in range(limits.MAX_PAGE_BYTES // 28_000 + 2):
            therapist: Any = {"display_name": "Ann", "annotations": annotations}
            message = pb.CreateTherapistRequest(therapist=therapist).SerializeToString()
            create(message, timeout=HUNG_SECONDS, metadata=bearer(token))


def hold_unfinished_messages(address: str, held: ExitStack, headers: bytes) -> None:
    """Sends all but the end of the largest message, in as many calls as four connections may have."""
    for _ in range(4):
        caller = held.enter_context(Http2Client(address))
        streams = [caller.begin(headers) for _ in range(Config.max_watches + limits.MAX_CALLS_PER_CONNECTION)]
        caller.send_most(streams, limits.MAX_MESSAGE_BYTES)


def hold_untaken_answers(address: str, held: ExitStack, headers: bytes) -> None:
    """Leaves answers untaken until the server answers no more."""
    message = pb.ListTherapistsRequest(page_size=limits.MAX_PAGE_SIZE).SerializeToString()
    for _ in range(6):
        caller = held.enter_context(Http2Client(address, window=0))
        for _ in range(20):
            caller.call(headers, message)
        eventually(lambda caller=caller: caller.ended)  # type: ignore[misc]


@pytest.fixture(autouse=True)
def default_arenas(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MALLOC_ARENA_MAX", raising=False)


@pytest.fixture
def many_files() -> Iterator[None]:
    """Raises the limit on open files of this process, which opens the connections."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    if before[1] < 2 * CONNECTIONS:
        pytest.skip("needs a hard limit of 3000 open files or more: ulimit -Hn")
    resource.setrlimit(resource.RLIMIT_NOFILE, (before[1], before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, before)


def hold_unread_updates(address: str, held: ExitStack, headers: bytes) -> None:
    """Leaves small responses to large requests unread."""
    update = pb.UpdateTherapistRequest(therapist=Therapist(therapist_id="none"), validate_only=True)
    padded = update.SerializeToString() + b"\xfa\x7f" + b"\xe0\xd4\x08" + bytes(141_920)  # field 2047, 141,920 bytes
    for _ in range(5):
        caller = held.enter_context(Http2Client(address, window=0))
        streams = [caller.begin(headers) for _ in range(Config.max_watches + limits.MAX_CALLS_PER_CONNECTION)]
        caller.send_all(streams, padded)


@pytest.mark.usefixtures("many_files")
def test_everything_that_callers_can_hold_at_once_fits_the_memory_of_the_manifest(tmp_path: Path) -> None:
    with server_with_keys(tmp_path) as (server, tokens), ExitStack() as held:
        address = server.address
        store_large_page(address, tokens["honest"])
        for _ in range(CONNECTIONS):
            held.enter_context(connected(address)).sendall(http2_frames.GREETING)
        threads = [
            Thread(
                target=hold_untaken_answers,
                args=(address, held, call_headers(full_name("ListTherapists"), tokens[name])),
            )
            for name in NAMES[1:]
        ]
        threads += [
            Thread(target=hold_unfinished_messages, args=(address, held, headers))
            for headers in (
                call_headers(full_name("GetTherapist"), tokens["other"]),
                call_headers(full_name("GetTherapist"), tokens["third"]),
                call_headers(full_name("GetTherapist")),
                call_headers("/grpc.health.v1.Health/Check"),
            )
        ]
        threads += [
            Thread(
                target=hold_unread_updates,
                args=(address, held, call_headers(full_name("UpdateTherapist"), tokens[name])),
            )
            for name in NAMES[1:]
        ]
        for thread in threads:
            thread.start()
        join(*threads)
        with grpc.insecure_channel(address, [("grpc.use_local_subchannel_pool", 1)]) as channel:
            get: Any = channel.unary_unary(full_name("GetTherapist"))
            message = pb.GetTherapistRequest(therapist_id="none").SerializeToString()
            code = get.future(message, timeout=HUNG_SECONDS, metadata=bearer(tokens["honest"])).code()
        assert code is grpc.StatusCode.NOT_FOUND
        peak = peak_bytes(server.process.pid)
    assert peak < memory_limit_bytes()


@pytest.mark.parametrize(
    ("environment", "count"), [({}, 2), ({"MALLOC_ARENA_MAX": " "}, 2), ({"MALLOC_ARENA_MAX": "3"}, 3)]
)
def test_threads_of_a_server_share_two_memory_arenas_or_as_many_as_is_set(
    tmp_path: Path, environment: dict[str, str], count: int
) -> None:
    with ServerProcess(f"sqlite:///{tmp_path}/caseload.db", environment=environment) as server:
        assert arenas(server.process.pid) == count
