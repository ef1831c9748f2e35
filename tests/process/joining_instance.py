"""A third instance that is added to DNS under load, seen by an application with the shipped client.

python -m tests.process.joining_instance

Prints a line. Exit code 1 where a call failed, a write was lost or done twice, or the third instance did not get its
share of the calls; 2 without PostgreSQL.
"""

import sys
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory

from caseload.client import connect

from tests.process.rolling_restart import Callers, Report, make_therapists, revisions, shown
from tests.support.dns_server import DnsServer
from tests.support.postgres.cluster import SAFE, Cluster, NoPostgres
from tests.support.postgres.databases import Databases
from tests.support.postgres.fixtures import migrate
from tests.support.servers import ServerProcess
from tests.support.waiting import eventually

AGE_SECONDS = "3"
"""The largest age of a connection, in seconds."""
FEW_CALLS, COUNTED_CALLS = 100, 3000
LEAST_SHARE = 0.2
"""Of the calls that the third instance gets."""


def joined(database: str) -> tuple[Report, float]:
    """Two instances, and a third that is added to DNS. Returns its share of the calls after it has got the first."""
    report = Report()
    with TemporaryDirectory() as folder, ExitStack() as stack:
        logs = [Path(folder, name) for name in ("first", "second", "third")]

        def start(number: int, port: int) -> ServerProcess:
            address = ("--address", f"127.0.0.{number + 1}:{port}", "--max-connection-age-seconds", AGE_SECONDS)
            return stack.enter_context(ServerProcess(database, *address, access_log=str(logs[number])))

        def counts() -> list[int]:
            return [log.read_bytes().count(b"\n") for log in logs if log.exists()]

        port = int(start(0, 0).address.rpartition(":")[2])
        start(1, port)
        names = stack.enter_context(DnsServer("127.0.0.1", "127.0.0.2"))
        options = [("grpc.dns_min_time_between_resolutions_ms", 1000)]
        caseload = stack.enter_context(connect(names.target(port), allow_insecure=True, options=options))
        made = make_therapists(caseload)
        callers = Callers(caseload, report, 0)
        callers.start()
        try:
            eventually(lambda: min(counts()) > FEW_CALLS)
            start(2, port)
            names.addresses.append("127.0.0.3")
            eventually(lambda: counts()[2] > FEW_CALLS)
            before = counts()
            eventually(lambda: sum(counts()) - sum(before) > COUNTED_CALLS)
            after = counts()
        finally:
            callers.disturbed_enough()
        callers.join()
        report.written = list(revisions(caseload, made))
    return report, (after[2] - before[2]) / (sum(after) - sum(before))


def main() -> None:
    """Runs the scenario."""
    try:
        with Cluster(SAFE) as cluster, Databases(cluster, migrate) as databases, databases.acquire() as url:
            report, share = joined(url)
    except NoPostgres as error:
        print(error, file=sys.stderr)
        sys.exit(2)
    kept = shown("a third instance", report)
    print(f"   it got {share:.0%} of the calls")
    if share < LEAST_SHARE:
        sys.exit("   FAILED: that is too few")
    sys.exit(not kept)


if __name__ == "__main__":
    main()
