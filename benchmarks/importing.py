"""Measures the rows per second and the memory of `caseload import`, with synthetic data.

python -m benchmarks.importing [--rows N | --smoke]

N therapists, N patients and N assignments; half as many first, to compare memory. PostgreSQL, with a tenth,
is a temporary local cluster, if PostgreSQL is installed.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Final, NamedTuple

from benchmarks.rounds import Effort
from benchmarks.synthetic_data import DataSet, write
from benchmarks.table import Result, Target, spread
from tests.support.postgres.cluster import SAFE, Cluster, NoPostgres

ROOT: Final = Path(__file__).parents[1]


class ImportResult(NamedTuple):
    """The figures of one import."""

    rows_a_second: float
    cpu_us: float
    """CPU time per row, in microseconds."""
    memory_mb: float
    """Peak memory of all its processes together."""


def main() -> None:
    """Prints a line for each database and number of rows."""
    parser = argparse.ArgumentParser(description="Measures caseload import.")
    parser.add_argument("--rows", type=int, default=1_000_000, help="of each table")
    parser.add_argument("--smoke", action="store_true", help="a few rows, a smoke test")
    arguments = parser.parse_args()
    rows = 1000 if arguments.smoke else arguments.rows
    (ROOT / "data").mkdir(mode=0o700, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="bench-", dir=ROOT / "data") as temporary:
        folder = Path(temporary)
        for each in (rows // 2, rows):
            _print("SQLite", each, into_sqlite(folder, each))
        with suppress(NoPostgres), Cluster(SAFE) as cluster:
            url = cluster.create_database("caseload")
            migrate = [sys.executable, "-m", "caseload_server", "migrate", "--database", url]
            subprocess.run(migrate, check=True, stdout=subprocess.DEVNULL, timeout=60)
            _print("PostgreSQL", rows // 10, run(write_export(folder, rows // 10), url, 3 * (rows // 10)))


def measure(folder: Path, effort: Effort) -> Iterator[Result]:
    """Measures imports into SQLite: rows per second, and memory with twice the rows."""
    each = 1000 if effort.is_smoke else 1_000_000
    half, whole = (into_sqlite(folder, count) for count in (each // 2, each))
    yield Result(
        "import into SQLite of 1,000,000 therapists, patients and assignments",
        spread([whole.rows_a_second]),
        Target(50_000),
        "rows per second",
        cpu=f"{whole.cpu_us:.0f} us per row",
    )
    memory = spread([whole.memory_mb / half.memory_mb])
    sides = f"{whole.memory_mb:.0f} / {half.memory_mb:.0f} MB"
    yield Result("memory of that import / of one half as large", memory, Target(1.1, at_most=True), sides=sides)


def _print(name: str, each: int, found: ImportResult) -> None:
    print(
        f"{name}: {each} each of therapists, patients and assignments, {found.rows_a_second:.0f} rows a second,"
        f" CPU {found.cpu_us:.0f} us a row, {found.memory_mb:.0f} MB at most",
        flush=True,
    )


def into_sqlite(folder: Path, each: int) -> ImportResult:
    """Imports the given number of each into a new file."""
    return run(write_export(folder, each), f"sqlite:///{folder}/{each}.db", 3 * each)


def write_export(folder: Path, each: int) -> Path:
    """Writes an export with the given number of each. Returns its path."""
    file = folder / f"{each}.jsonl"
    with file.open("wb") as lines:
        write(lines, DataSet(people=each, periods=1, few=0))
    return file


def run(file: Path, url: str, rows: int) -> ImportResult:
    """Runs `caseload import` on the file."""
    command = [sys.executable, "-m", "caseload_server", "import", str(file), "--access-log", os.devnull]
    began = time.monotonic()
    process = subprocess.Popen(command, env={**os.environ, "CASELOAD_DATABASE": url}, stdout=subprocess.DEVNULL)
    memory = _Memory(process.pid)
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.monotonic() - began
    if status:
        raise SystemExit("the import failed")
    return ImportResult(rows / seconds, (usage.ru_utime + usage.ru_stime) * 1e6 / rows, memory.most_mb)


class _Memory:
    """Samples the memory of a process and its children until they end."""

    def __init__(self, pid: int) -> None:
        self.most_mb = 0.0
        self._pid = pid
        threading.Thread(target=self._watch, daemon=True).start()

    def _watch(self) -> None:
        children = Path(f"/proc/{self._pid}/task/{self._pid}/children")
        with suppress(OSError):  # the process has ended
            while True:
                pids = [str(self._pid), *children.read_text().split()]
                self.most_mb = max(self.most_mb, sum(map(resident_mb, pids)))
                time.sleep(0.05)


def resident_mb(pid: object) -> float:
    """The anonymous resident memory of a process, without shared file pages."""
    with suppress(OSError):
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("RssAnon:"):
                return int(line.split()[1]) / 1024
    return 0.0


if __name__ == "__main__":
    main()
