"""What PostgreSQL costs beside SQLite, and how many writes a second the order of revisions allows. Needs h2load.

python benchmarks/postgres.py           a minute or two; writes its table into docs/postgresql.md
python benchmarks/postgres.py --smoke   a few seconds, to see that it runs; its figures mean nothing

Both databases sync each commit to the same disk. PostgreSQL is a throwaway cluster of the machine's own, on loopback;
its processes run on both cores, beside the server and the load.
"""

import argparse
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from caseload.v1 import therapist_service_pb2 as pb

from benchmarks import load, servers
from benchmarks.load import Call, Load
from benchmarks.rounds import Comparison, Result, Side, compare
from benchmarks.run import CREATE, DATA, FULL, GET, MANY, ONE, ROOT, SMOKE, Effort, stored, therapist
from benchmarks.table import table, write
from tests.postgres.cluster import SAFE, Cluster, NoPostgres

DOCUMENT = ROOT / "docs" / "postgresql.md"


def main() -> None:
    """Prints the table, and writes it unless --smoke. Exit code 2 where a program is missing."""
    parser = argparse.ArgumentParser(description="Measures PostgreSQL beside SQLite.")
    parser.add_argument("--smoke", action="store_true", help="a few seconds, to see that it runs; writes nothing")
    smoke: bool = parser.parse_args().smoke
    if not load.is_there():
        print(f"{load.PROGRAM} is missing: apt-get install {load.PACKAGE}", file=sys.stderr)
        sys.exit(2)
    DATA.mkdir(mode=0o700, exist_ok=True)
    try:
        with tempfile.TemporaryDirectory(prefix="bench-", dir=DATA) as folder:
            text = table(list(measure(Path(folder), SMOKE if smoke else FULL)))
    except NoPostgres as error:
        print(error, file=sys.stderr)
        sys.exit(2)
    print(text, end="")
    if not smoke:
        write(DOCUMENT, text)


def measure(folder: Path, effort: Effort) -> Iterator[Result]:
    """Each comparison in turn. Servers have the first core, load the last."""
    cores = sorted(os.sched_getaffinity(0))
    server_core, load_core = cores[0], cores[-1]
    create = Call(CREATE, pb.CreateTherapistRequest(therapist=therapist()).SerializeToString(), always_same=False)
    with Cluster(SAFE) as cluster:
        url = cluster.create_database("caseload")
        migrate = [sys.executable, "-m", "service", "migrate", "--database", url]
        subprocess.run(migrate, check=True, stdout=subprocess.DEVNULL, timeout=60)
        with (
            servers.caseload(server_core, folder / "caseload.db") as sqlite,
            servers.caseload_at(server_core, url) as postgres,
        ):
            reads = [
                Side(Load(server, Call(GET, stored(server), always_same=True), MANY, load_core))
                for server in (postgres, sqlite)
            ]
            writes = [Side(Load(server, create, MANY, load_core)) for server in (postgres, sqlite)]
            lone_writes = [Side(Load(server, create, ONE, load_core)) for server in (postgres, sqlite)]
            for comparison in (
                Comparison("GetTherapist, PostgreSQL / SQLite", *reads),
                Comparison(f"CreateTherapist, {MANY.total} callers, PostgreSQL / SQLite", *writes),
                Comparison("CreateTherapist, 1 caller, PostgreSQL / SQLite", *lone_writes),
                Comparison(f"CreateTherapist, PostgreSQL, {MANY.total} callers / 1 caller", writes[0], lone_writes[0]),
            ):
                yield compare(comparison, effort.rounds, effort.seconds)


if __name__ == "__main__":
    main()
