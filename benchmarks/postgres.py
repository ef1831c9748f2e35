"""Compares PostgreSQL with SQLite, and measures writes per second with ordered revisions. Needs h2load.

python -m benchmarks.postgres           five minutes; writes its table into docs/postgresql.md
python -m benchmarks.postgres --smoke   a few seconds, a smoke test; its figures mean nothing

Both databases sync each commit to the same disk. PostgreSQL is a temporary local cluster, on loopback;
its processes run on both cores, beside the server and the load.
"""

import argparse
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from caseload.v1 import therapist_service_pb2 as pb

from benchmarks import load, postgres_commits, servers
from benchmarks.call_overhead import create
from benchmarks.load import GET, MANY, ONE, Call, Load
from benchmarks.rounds import FULL, SMOKE, Comparison, Effort, Side, compare
from benchmarks.run import DATA, ROOT
from benchmarks.seed_data import store_therapists
from benchmarks.servers import LOAD_CORE, SERVER_CORE, Server
from benchmarks.table import Result, tables, write
from tests.support.postgres.cluster import SAFE, Cluster, NoPostgres

DOCUMENT = ROOT / "docs" / "postgresql.md"


def main() -> None:
    """Prints the table, and writes it unless --smoke. Exit code 2 if a program is missing."""
    parser = argparse.ArgumentParser(description="Compares PostgreSQL with SQLite.")
    parser.add_argument("--smoke", action="store_true", help="a few seconds, a smoke test; writes nothing")
    smoke: bool = parser.parse_args().smoke
    if not load.is_installed():
        print(f"{load.PROGRAM} is missing: apt-get install {load.PACKAGE}", file=sys.stderr)
        sys.exit(2)
    DATA.mkdir(mode=0o700, exist_ok=True)
    try:
        with tempfile.TemporaryDirectory(prefix="bench-", dir=DATA) as folder:
            effort = SMOKE if smoke else FULL
            text = tables([*measure(Path(folder), effort), *postgres_commits.measure(effort)])
    except NoPostgres as error:
        print(error, file=sys.stderr)
        sys.exit(2)
    print(text, end="")
    if not smoke:
        write(DOCUMENT, text)


def measure(folder: Path, effort: Effort) -> Iterator[Result]:
    """Runs the comparisons. Servers have the first core, the load has the last."""
    with Cluster(SAFE) as cluster:
        url = cluster.create_database("caseload")
        migrate = [sys.executable, "-m", "caseload_server", "migrate", "--database", url]
        subprocess.run(migrate, check=True, stdout=subprocess.DEVNULL, timeout=60)
        with (
            servers.caseload(SERVER_CORE, folder / "caseload.db") as sqlite,
            servers.caseload_at(SERVER_CORE, url) as postgres,
        ):
            both = (postgres, sqlite)
            reads = [Side(Load(server, _get(server), MANY, LOAD_CORE)) for server in both]
            writes, lone_writes = (
                [Side(Load(server, create(), callers, LOAD_CORE)) for server in both] for callers in (MANY, ONE)
            )
            comparisons = (
                ("GetTherapist, PostgreSQL / SQLite", reads[0], reads[1]),
                (f"CreateTherapist, {MANY.total} callers, PostgreSQL / SQLite", writes[0], writes[1]),
                ("CreateTherapist, 1 caller, PostgreSQL / SQLite", lone_writes[0], lone_writes[1]),
                (f"CreateTherapist, PostgreSQL, {MANY.total} callers / 1 caller", writes[0], lone_writes[0]),
            )
            for title, first, second in comparisons:
                yield compare(Comparison(title, first, second), effort)


def _get(server: Server) -> Call:
    [therapist_id] = store_therapists(server.address, 1)
    return Call(GET, pb.GetTherapistRequest(therapist_id=therapist_id).SerializeToString(), always_same=True)


if __name__ == "__main__":
    main()
