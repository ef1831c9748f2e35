"""Compares checks of assignments with SpiceDB and OpenFGA, which answer such checks for many services.

python -m benchmarks.peers           ten minutes; writes its table into docs/performance.md
python -m benchmarks.peers --smoke   a minute, a smoke test; its figures mean nothing

Needs h2load, and both programs in .tools/peers: `make bench-peers` builds them with Go.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any, Final, NamedTuple, Self

import grpc

from benchmarks import load, servers
from benchmarks.call_overhead import check_pairs
from benchmarks.load import MANY, Call, Callers, Load, LoadFailed
from benchmarks.rounds import FULL, SMOKE, Comparison, Effort, Side, compare
from benchmarks.run import DATA, DOCUMENT
from benchmarks.seed_data import store_patients, store_therapists
from benchmarks.servers import LOAD_CORE, SERVER_CORE, Server
from benchmarks.table import Result, figure, tables, write
from tests.support.servers import free_address

BEGIN: Final = "<!-- make bench-peers writes from here -->"
PROGRAMS: Final = Path(__file__).parents[1] / ".tools" / "peers"
FIFTY: Final = 50
"""OpenFGA's largest batch; the number of therapists, and of the patients of the first of them."""
_FEW: Final = Callers(connections=8, each=1)
"""Callers for calls with fifty pairs. With more of them, OpenFGA on SQLite exceeds its own limit of three seconds."""
_START_SECONDS: Final = 60
_KEY: Final = "benchmark"


class Peer(Server):
    """Another program. It serves gRPC at a given address. Its log is discarded."""

    def __init__(self, address: str, *command: str) -> None:
        """Args: command, the program in PROGRAMS and its arguments."""
        self.address = address
        self._command = ["taskset", "--cpu-list", str(SERVER_CORE), str(PROGRAMS / command[0]), *command[1:]]

    def __enter__(self) -> Self:
        quiet = subprocess.DEVNULL
        self._process = subprocess.Popen(self._command, stdin=quiet, stdout=quiet, stderr=quiet, start_new_session=True)
        try:
            with grpc.insecure_channel(self.address) as channel:
                grpc.channel_ready_future(channel).result(_START_SECONDS)
        except BaseException:
            self._end()
            raise
        return self


Pair = tuple[str, str]
"""A therapist's id and a patient's id."""


def encode(number: int, value: bytes | str | int) -> bytes:
    """Encodes a protobuf field whose number and length need one or two bytes."""
    if isinstance(value, int):
        return bytes([number << 3, value])
    data = value.encode() if isinstance(value, str) else value
    size = len(data)
    length = bytes([size]) if size < 128 else bytes([size & 127 | 128, size >> 7])
    return bytes([number << 3 | 2]) + length + data


class Checks(NamedTuple):
    """The two calls of a peer: a check of one pair, and one of many."""

    one: Call
    many: Call
    granted: bytes
    """What the response to `many` contains for each assigned pair, and for no other."""


def spicedb(folder: Path, pairs: list[Pair]) -> Peer:
    """SpiceDB in memory. It starts with the pairs as its relationships."""
    bootstrap = folder / "spicedb.yaml"
    relationships = "".join(f"  patient:{patient}#therapist@therapist:{therapist}\n" for therapist, patient in pairs)
    schema = "  definition therapist {}\n  definition patient {\n    relation therapist: therapist\n  }\n"
    bootstrap.write_text(f"schema: |-\n{schema}relationships: |-\n{relationships}")
    address = free_address()
    return Peer(
        address,
        *("spicedb", "serve", "--grpc-addr", address, "--grpc-preshared-key", _KEY),
        *("--datastore-bootstrap-files", str(bootstrap), "--metrics-addr", free_address()),
        *("--telemetry-endpoint", "", "--skip-release-check"),
    )


def spicedb_checks(pairs: list[Pair]) -> Checks:
    """Checks with full consistency, as ours have. https://buf.build/authzed/api"""
    consistency = encode(1, encode(4, 1))
    service, key = "/authzed.api.v1.PermissionsService", (f"authorization: Bearer {_KEY}",)

    def item(pair: Pair, first: int) -> bytes:
        """Encodes resource, permission and subject. Args: first, the number of the first of these fields."""
        resource = encode(1, "patient") + encode(2, pair[1])
        subject = encode(1, encode(1, "therapist") + encode(2, pair[0]))
        return encode(first, resource) + encode(first + 1, "therapist") + encode(first + 2, subject)

    one = consistency + item(pairs[0], 2)
    many = consistency + b"".join(encode(2, item(pair, 1)) for pair in pairs)
    return Checks(
        Call(f"{service}/CheckPermission", one, always_same=False, headers=key),
        Call(f"{service}/CheckBulkPermissions", many, always_same=False, headers=key),
        granted=encode(2, encode(1, 2)),
    )


class OpenFga(NamedTuple):
    """A started OpenFGA server, and what its calls name."""

    server: Peer
    store: str
    model: str


def openfga(opened: ExitStack, pairs: list[Pair], file: Path | None = None) -> OpenFga:
    """Starts OpenFGA and writes the pairs. Args: file, of its SQLite database; None for its engine in memory."""
    address, http = free_address(), free_address()
    engine = ("--datastore-engine", "sqlite", "--datastore-uri", f"file:{file}") if file else ()
    if file:
        subprocess.run([str(PROGRAMS / "openfga"), "migrate", *engine], check=True, capture_output=True)
    addresses = ("--grpc-addr", address, "--http-addr", http, "--metrics-addr", free_address())
    server = opened.enter_context(Peer(address, "openfga", "run", *addresses, *engine))

    def post(path: str, body: dict[str, Any]) -> dict[str, Any]:
        headers = {"content-type": "application/json"}
        request = urllib.request.Request(f"http://{http}{path}", json.dumps(body).encode(), headers)
        with urllib.request.urlopen(request, timeout=_START_SECONDS) as response:  # noqa: S310 - of this machine
            answer: dict[str, Any] = json.load(response)
        return answer

    store = post("/stores", {"name": "benchmark"})["id"]
    relation = {"relations": {"therapist": {"directly_related_user_types": [{"type": "therapist"}]}}}
    patient = {"type": "patient", "relations": {"therapist": {"this": {}}}, "metadata": relation}
    model = {"schema_version": "1.1", "type_definitions": [{"type": "therapist"}, patient]}
    model_id = post(f"/stores/{store}/authorization-models", model)["authorization_model_id"]
    for first in range(0, len(pairs), FIFTY):
        keys = [
            {"user": f"therapist:{therapist}", "relation": "therapist", "object": f"patient:{patient_id}"}
            for therapist, patient_id in pairs[first : first + FIFTY]
        ]
        post(f"/stores/{store}/write", {"writes": {"tuple_keys": keys}, "authorization_model_id": model_id})
    return OpenFga(server, store, model_id)


def openfga_checks(peer: OpenFga, pairs: list[Pair]) -> Checks:
    """Checks as OpenFGA makes them by default, without its caches. https://buf.build/openfga/api"""
    service, store = "/openfga.v1.OpenFGAService", encode(1, peer.store)

    def key(pair: Pair) -> bytes:
        return encode(1, f"therapist:{pair[0]}") + encode(2, "therapist") + encode(3, f"patient:{pair[1]}")

    items = [encode(1, key(pair)) + encode(4, str(number)) for number, pair in enumerate(pairs)]
    many = store + b"".join(encode(2, item) for item in items) + encode(3, peer.model)
    return Checks(
        Call(f"{service}/Check", store + encode(2, key(pairs[0])) + encode(4, peer.model), always_same=True),
        Call(f"{service}/BatchCheck", many, always_same=True),
        granted=encode(2, encode(1, 1)),
    )


def measure(folder: Path, effort: Effort) -> Iterator[Result]:
    """Runs the comparisons. Yields one result for each."""
    with ExitStack() as opened:
        ours = opened.enter_context(servers.caseload(SERVER_CORE, folder / "caseload.db"))
        therapists = store_therapists(ours.address, FIFTY)
        pairs = [(one, store_patients(ours.address, one, 1)[0]) for one in therapists]
        of_one = [(therapists[0], patient) for patient in store_patients(ours.address, therapists[0], FIFTY)]
        stored = [*pairs, *of_one]
        in_memory, on_disk = openfga(opened, stored), openfga(opened, stored, folder / "openfga.db")
        peers: dict[str, tuple[Peer, Callable[[list[Pair]], Checks]]] = {
            "SpiceDB in memory": (opened.enter_context(spicedb(folder, stored)), spicedb_checks),
            "OpenFGA in memory": (in_memory.server, partial(openfga_checks, in_memory)),
            "OpenFGA on SQLite": (on_disk.server, partial(openfga_checks, on_disk)),
        }
        for name, (server, checks_of) in peers.items():
            checks = checks_of(pairs)
            for what, call, checked, callers in (
                ("1", checks.one, pairs[:1], MANY),
                (f"{FIFTY}", checks.many, pairs, _FEW),
                (f"{FIFTY} of one therapist", checks_of(of_one).many, of_one, _FEW),
            ):
                if len(checked) > 1 and call.send(server.address).count(checks.granted) != FIFTY:
                    raise LoadFailed(f"{name} does not find the pairs")
                check = Side(Load(ours, check_pairs(checked), callers, LOAD_CORE))
                title = f"CheckAssignments / {call.method.rpartition('/')[2]}, {what}: {name}"
                yield compare(Comparison(title, check, Side(Load(server, call, callers, LOAD_CORE))), effort)


def main() -> None:
    """Prints the table, and writes it unless --smoke. Exit code 2 if a program is missing."""
    parser = argparse.ArgumentParser(description="Compares checks of assignments with SpiceDB and OpenFGA.")
    parser.add_argument("--smoke", action="store_true", help="a minute, a smoke test; writes nothing")
    smoke: bool = parser.parse_args().smoke
    if not load.is_installed() or not all((PROGRAMS / name).exists() for name in ("spicedb", "openfga")):
        print(f"{load.PROGRAM} ({load.PACKAGE}), spicedb or openfga is missing: make bench-peers", file=sys.stderr)
        sys.exit(2)
    DATA.mkdir(mode=0o700, exist_ok=True)
    results = []
    with tempfile.TemporaryDirectory(prefix="bench-", dir=DATA) as folder:
        for result in measure(Path(folder), SMOKE if smoke else FULL):
            print(f"{result.title}: {figure(result)}", file=sys.stderr, flush=True)
            results.append(result)
    versions = " and ".join(sorted(stamp.name for stamp in PROGRAMS.glob("*-v*")))  # which `make` leaves
    text = f"With {versions}.\n\n{tables(results)}"
    print(text, end="")
    if not smoke:
        write(DOCUMENT, text, BEGIN)


if __name__ == "__main__":
    main()
