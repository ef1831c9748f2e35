"""How many rows a second `caseload import` takes, and how much memory; the data are made up.

python -m benchmarks.importing [--rows N]

N therapists, N patients and N assignments; half as many first, which shows what memory does. PostgreSQL is a throwaway
cluster of the machine's own, where there is one.
"""

import argparse
import json
import os
import resource
import secrets
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import suppress
from itertools import islice
from pathlib import Path
from typing import BinaryIO, Final

from service.records import ROLE_PRIMARY, Assignment, Patient, Therapist
from service.store import content
from service.store.content import PAGE_ROWS, TABLES, Tally
from service.store.database import Row
from service.store.exports import FORMAT
from service.store.migrations import migrations
from tests.postgres.cluster import SAFE, Cluster, NoPostgres

ROOT: Final = Path(__file__).parents[1]
_START_US: Final = 1_700_000_000_000_000
_FIRST: Final = ("Ada", "Bob", "Chen", "Dora", "Efua", "Zoë")
_LAST: Final = ("Lovelace", "Ray", "Müller-Lüdenscheidt", "O'Neil", "Kowalski")


def main() -> None:
    """Prints a line for each database and number of rows."""
    parser = argparse.ArgumentParser(description="Measures caseload import.")
    parser.add_argument("--rows", type=int, default=100_000, help="of each table")
    asked = parser.parse_args()
    (ROOT / "data").mkdir(mode=0o700, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="bench-", dir=ROOT / "data") as folder:
        for rows in (asked.rows // 2, asked.rows):
            file = Path(folder, f"{rows}.jsonl")
            with file.open("wb") as lines:
                write(lines, rows)
            measure("SQLite", file, f"sqlite:///{folder}/{rows}.db", 3 * rows)
        with suppress(NoPostgres), Cluster(SAFE) as cluster:
            url = cluster.create_database("caseload")
            migrate = [sys.executable, "-m", "service", "migrate", "--database", url]
            subprocess.run(migrate, check=True, stdout=subprocess.DEVNULL, timeout=60)
            measure("PostgreSQL", file, url, 3 * rows)


def measure(name: str, file: Path, url: str, rows: int) -> None:
    """Imports the file in a process of its own, and prints what that took."""
    command = [sys.executable, "-m", "service", "import", str(file)]
    began = time.monotonic()
    process = subprocess.Popen(command, env={**os.environ, "CASELOAD_DATABASE": url}, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.monotonic() - began
    if status:
        raise SystemExit(f"{name}: the import failed")
    print(_line(name, rows, seconds, usage), flush=True)


def _line(name: str, rows: int, seconds: float, usage: resource.struct_rusage) -> str:
    spent = usage.ru_utime + usage.ru_stime
    return (
        f"{name}: {rows} rows in {seconds:.1f} s, {rows / seconds:.0f} a second;"
        f" CPU {spent * 1e6 / rows:.0f} us a row; {usage.ru_maxrss // 1024} MB at most"
    )


def write(lines: BinaryIO, count: int) -> None:
    """An export of so many therapists, patients, and assignments of one each."""
    tally = Tally()
    schema = migrations("sqlite")[-1].name
    header = {"caseload": {"format": FORMAT, "schema": schema, "secret": secrets.token_hex(32)}}
    lines.write(f"{content.dumps(header)}\n".encode())
    rows = {"store": iter([(0, 0)]), "therapist": _therapists(count), "patient": _patients(count)}
    rows["assignment"] = _assignments(count)
    for table in TABLES:
        while some := list(islice(rows.get(table.name, iter(())), PAGE_ROWS)):
            text = content.lines(table, some)
            lines.write(text)
            tally.add(table, len(some), text)
    lines.write(f"{content.dumps({'end': {'rows': tally.rows, 'digest': tally.digest}})}\n".encode())


def _id(letter: str, number: int) -> str:
    """As long as a UUID; ids made later sort later."""
    return f"{number:012x}-{letter * 8}-{number * 7919 % 0xFFFFFFFFFFFF:014x}"


def _name(number: int) -> str:
    return f"{_FIRST[number % len(_FIRST)]} {_LAST[number % len(_LAST)]} {number}"


def _identifiers(number: int) -> str:
    return json.dumps([["https://example.org/number", str(number)]], separators=(",", ":"))


def _therapists(count: int) -> Iterator[Row]:
    for number in range(count):
        yield Therapist(
            therapist_id=_id("a", number),
            display_name=_name(number),
            email=f"{number}@example.org",
            status=1,
            identifiers=_identifiers(number),
            specialties='["hand-therapy"]',
            max_active_patients=40,
            annotations="{}",
            active_patient_count=1,
            created_us=_START_US,
            updated_us=_START_US,
            deleted_us=None,
            etag=f"{number:016x}",
        )


def _patients(count: int) -> Iterator[Row]:
    for number in range(count):
        yield Patient(
            patient_id=_id("b", number),
            display_name=_name(number),
            birth_date="1990-02-03",
            email=f"{number}@example.org",
            phone_number="",
            status=1,
            identifiers=_identifiers(number),
            annotations="{}",
            primary_therapist_id=_id("a", count - 1 - number),
            active_therapist_count=1,
            created_us=_START_US,
            updated_us=_START_US,
            deleted_us=None,
            etag=f"{number:016x}",
        )


def _assignments(count: int) -> Iterator[Row]:
    """Against the order of the therapists."""
    for number in range(count):
        yield Assignment(
            assignment_id=_id("c", number),
            therapist_id=_id("a", count - 1 - number),
            patient_id=_id("b", number),
            role=ROLE_PRIMARY,
            focus="",
            start_us=_START_US + number,
            end_us=None,
            end_reason=0,
            created_by="reception",
            ended_by="",
            created_us=_START_US,
            updated_us=_START_US,
            etag=f"{number:016x}",
        )


if __name__ == "__main__":
    main()
