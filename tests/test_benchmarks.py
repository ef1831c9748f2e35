"""The benchmarks are part of the checkout, and of no wheel: they are imported where they are used."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from caseload.v1 import therapist_service_pb2 as pb

pytestmark = pytest.mark.checkout

ROOT = Path(__file__).parents[1]
DOCUMENT = ROOT / "docs" / "performance.md"
GET = "/caseload.v1.TherapistService/GetTherapist"

needs_h2load = pytest.mark.skipif(not shutil.which("h2load"), reason="needs h2load: apt-get install nghttp2-client")


def run(*arguments: str, **environment: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, str(ROOT / "benchmarks" / "run.py"), *arguments],
        env={**os.environ, **environment},
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        timeout=100,
    )


@needs_h2load
def test_the_smoke_run_prints_the_rows_of_the_document_and_leaves_it_alone() -> None:
    before, others = DOCUMENT.read_bytes(), set(ROOT.glob("data/bench-*"))
    smoke = run("--smoke")
    assert (smoke.returncode, smoke.stderr) == (0, "")
    rows = [line.split(" | ")[0] for line in smoke.stdout.splitlines() if line.startswith("|")]
    assert len(rows) == 8
    assert rows == [line.split(" | ")[0] for line in before.decode().splitlines() if line.startswith("|")]
    assert DOCUMENT.read_bytes() == before
    assert set(ROOT.glob("data/bench-*")) <= others


def test_without_h2load_one_line_names_the_package(tmp_path: Path) -> None:
    refused = run(PATH=str(tmp_path))
    assert (refused.returncode, refused.stdout) == (2, "")
    assert refused.stderr == "h2load is missing: apt-get install nghttp2-client\n"


@needs_h2load
def test_refused_calls_are_no_measurement(tmp_path: Path) -> None:
    from benchmarks import servers
    from benchmarks.load import Call, Callers, Load, LoadFailed

    missing = Call(GET, pb.GetTherapistRequest(therapist_id="nobody").SerializeToString(), always_same=True)
    core = max(os.sched_getaffinity(0))
    with servers.caseload(core, tmp_path / "caseload.db") as server:
        refused = Load(server, missing, Callers(connections=2, each=2), core)
        with pytest.raises(LoadFailed, match=r"100 succeeded[^\n]*\n[^\n]* 100 2xx") as failed:
            refused.run(100, b"an answer")
    assert "calls were refused" in str(failed.value)


@needs_h2load
def test_a_server_that_is_gone_is_no_measurement(tmp_path: Path) -> None:
    from benchmarks import servers
    from benchmarks.load import Call, Callers, Load, LoadFailed

    core = max(os.sched_getaffinity(0))
    with servers.caseload(core, tmp_path / "caseload.db") as server:
        pass
    with pytest.raises(LoadFailed):
        Load(server, Call(GET, b"", always_same=False), Callers(1, 1), core).run(10, b"")


def test_ratios_are_taken_within_a_round() -> None:
    from benchmarks.rounds import Sample, Spread, result

    quiet, busy = (Sample(900, 100), Sample(1000, 50)), (Sample(80, 300), Sample(100, 100))
    figures = result("ours / theirs", [quiet, busy, busy])
    assert figures.calls_ratio == Spread(median=0.8, least=0.8, most=0.9)
    assert figures.cpu_ratio == Spread(median=3, least=2, most=3)
    assert figures.first == Sample(80, 300)


def test_the_table_replaces_what_stands_between_the_markers_and_nothing_else(tmp_path: Path) -> None:
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
