"""The benchmarks are part of the checkout but of no wheel, so tests import them locally."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from caseload.v1 import therapist_service_pb2 as pb

HANGS_SECONDS = 1800
pytestmark = [pytest.mark.checkout, pytest.mark.timeout(HANGS_SECONDS)]

ROOT = Path(__file__).parents[2]
DOCUMENT = ROOT / "docs" / "performance.md"
GET = "/caseload.v1.TherapistService/GetTherapist"

needs_bench = pytest.mark.skipif(
    not (ROOT / ".tools" / "bench" / "installed").exists(), reason="needs .tools/bench: `make bench-smoke` sets it up"
)
needs_h2load = pytest.mark.skipif(not shutil.which("h2load"), reason="needs h2load: apt-get install nghttp2-client")


def run(*arguments: str, **environment: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-m", "benchmarks.run", *arguments],
        env={**os.environ, **environment},
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        timeout=HANGS_SECONDS,
    )


def test_a_missing_h2load_is_reported_with_its_package(tmp_path: Path) -> None:
    rejected = run(PATH=str(tmp_path))
    assert (rejected.returncode, rejected.stdout) == (2, "")
    assert rejected.stderr == "h2load is missing: apt-get install nghttp2-client\n"


@needs_h2load
def test_rejected_calls_fail_the_measurement(tmp_path: Path) -> None:
    from benchmarks import servers
    from benchmarks.load import Call, Callers, Load, LoadFailed

    missing = Call(GET, pb.GetTherapistRequest(therapist_id="missing").SerializeToString(), always_same=True)
    core = max(os.sched_getaffinity(0))
    with servers.caseload(core, tmp_path / "caseload.db") as server:
        rejected = Load(server, missing, Callers(connections=2, each=2), core)
        with pytest.raises(LoadFailed, match=r"100 succeeded[^\n]*\n[^\n]* 100 2xx") as failed:
            rejected.run(100, b"an answer")
    assert "calls were rejected" in str(failed.value)


@needs_h2load
def test_a_stopped_server_fails_the_measurement(tmp_path: Path) -> None:
    from benchmarks import servers
    from benchmarks.load import Call, Callers, Load, LoadFailed

    core = max(os.sched_getaffinity(0))
    with servers.caseload(core, tmp_path / "caseload.db") as server:
        pass
    with pytest.raises(LoadFailed):
        Load(server, Call(GET, b"", always_same=False), Callers(1, 1), core).run(10, b"")


def test_ratios_are_taken_within_a_round() -> None:
    from benchmarks.rounds import Sample, result
    from benchmarks.table import Spread

    quiet, busy = (Sample(900, 100), Sample(1000, 50)), (Sample(80, 300), Sample(100, 100))
    row = result("ours / theirs", [quiet, busy, busy])
    assert row.figure == Spread(median=0.8, least=0.8, most=0.9)
    assert (row.sides, row.cpu) == ("80 / 100 per second", "300 / 100 us (3.00)")
    assert result("ours, records / theirs", [quiet], records_per_call=2).figure.median == 1.8


def test_a_missed_target_is_marked_in_the_table() -> None:
    from benchmarks.table import Result, Target, spread, tables

    rows = [
        Result("fast", spread([0.8, 0.9]), Target(0.8)),
        Result("slow", spread([0.79]), Target(0.8)),
        Result("small", spread([80]), Target(80, at_most=True), "MB"),
        Result("large", spread([1200]), Target(80, at_most=True), "MB"),
        Result("other", spread([0.1])),
    ]
    shown = [line for line in tables(rows).splitlines() if line.startswith("| ") and "comparison" not in line]
    assert shown == [
        "| fast | 0.85 (0.80 to 0.90) | at least 0.8 |  |  |",
        "| slow | 0.79 | at least 0.8: **missed** |  |  |",
        "| small | 80.0 MB | at most 80 |  |  |",
        "| large | 1,200 MB | at most 80: **missed** |  |  |",
        "| other | 0.10 |  |  |",
    ]


@needs_bench
def test_the_plot_is_reproducible_and_names_neither_its_creator_nor_a_path(tmp_path: Path) -> None:
    from benchmarks.run import draw
    from benchmarks.table import Result, Target, spread

    rows = [
        Result("fast / slow", spread([2, 3]), Target(1)),
        Result("memory", spread([160]), Target(80, at_most=True), "MB"),
        Result("no target", spread([1])),
    ]
    for name in ("first.svg", "second.svg"):
        draw(rows, tmp_path / name)
    plot = (tmp_path / "first.svg").read_text()
    assert (tmp_path / "second.svg").read_text() == plot
    shown = re.findall(r"<text[^>]*>([^<]+)</text>", plot)
    assert {"fast / slow", "memory", "2.50 (2.00 to 3.00), at least 1", "160 MB, at most 80"} <= set(shown)
    assert "no target" not in shown
    assert not re.search(r"<dc:date|creator|/(?:tmp|work|home|root)/", plot)


def test_the_smoke_run_fails_if_the_document_has_other_rows(tmp_path: Path) -> None:
    from benchmarks.run import other_rows
    from benchmarks.table import BEGIN, END, Result, spread, tables

    kept, new = (Result(title, spread([1])) for title in ("kept", "new"))
    document = tmp_path / "performance.md"
    document.write_text(f"{BEGIN}\n{tables([kept])}{END}\n| unrelated | row |\n")
    assert other_rows(tables([kept]), document) is None
    assert other_rows(tables([kept, new]), document) == "performance.md has other rows, run make bench: ['new']"
    document.write_text(f"{BEGIN}\n{tables([new, kept])}{END}\n")
    assert "in another order" in str(other_rows(tables([kept, new]), document))


def test_the_table_replaces_only_the_text_between_the_markers(tmp_path: Path) -> None:
    from benchmarks.table import BEGIN, END, write

    document = tmp_path / "performance.md"
    document.write_text(f"before\n{BEGIN}\nold\n{END}\nafter\n")
    write(document, "new\n")
    write(document, "newer\n")
    assert document.read_text() == f"before\n{BEGIN}\n\nnewer\n\n{END}\nafter\n"
    document.write_text(f"before\n{BEGIN}\nafter\n")
    with pytest.raises(ValueError, match="lacks the markers"):
        write(document, "new\n")
    assert document.read_text() == f"before\n{BEGIN}\nafter\n"


def test_the_smoke_run_of_overload_prints_a_row_for_each_call_and_crowd() -> None:
    command = [sys.executable, "-m", "benchmarks.overload", "--smoke"]
    smoke = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True, timeout=HANGS_SECONDS)
    rows = [line.split(" | ")[0].removeprefix("| ") for line in smoke.stdout.splitlines()[2:]]
    calls = ("GetTherapist", "CreateTherapist")
    assert rows == [f"{call}, {callers}" for call in calls for callers in (256, 1856)]


def test_a_missing_peer_is_reported_with_the_target_that_builds_it() -> None:
    command = [sys.executable, "-m", "benchmarks.peers", "--smoke"]
    environment = {**os.environ, "PATH": ""}
    ended = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False, timeout=HANGS_SECONDS
    )
    assert (ended.returncode, ended.stdout) == (2, "")
    assert "is missing: make bench-peers" in ended.stderr


def test_the_document_has_a_row_for_each_check_of_each_peer() -> None:
    from benchmarks.peers import BEGIN
    from benchmarks.table import titles, written

    rows = titles(written(DOCUMENT, BEGIN))
    peers = [title.rpartition(": ")[2] for title in rows]
    assert peers == [name for name in ("SpiceDB in memory", "OpenFGA in memory", "OpenFGA on SQLite") for _ in range(3)]


def test_a_request_to_a_peer_is_encoded_as_protobuf_encodes_it() -> None:
    from google.rpc.status_pb2 import Status

    from benchmarks.peers import encode

    for size in (0, 1, 127, 128, 300):
        assert Status.FromString(encode(1, 7) + encode(2, "x" * size)) == Status(code=7, message="x" * size)
