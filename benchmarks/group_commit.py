"""Measures the effect of group commit on writes, on this disk and on a slow one. Part of run.py."""

from collections.abc import Iterator
from pathlib import Path

from benchmarks import servers
from benchmarks.call_overhead import create
from benchmarks.load import MANY, Load
from benchmarks.rounds import Comparison, Effort, Side, compare
from benchmarks.seed_data import check_count
from benchmarks.servers import LOAD_CORE, SERVER_CORE, Server
from benchmarks.table import Result, Target

_ALONE = "--batches-of-one"
_SLOW = ("--sync-seconds", "0.005")


def measure(folder: Path, effort: Effort) -> Iterator[Result]:
    """Runs the comparisons, with two servers side by side on one core."""
    title = f"CreateTherapist, {MANY.total} callers / without group commit"
    with (
        servers.caseload(SERVER_CORE, folder / "shared.db") as shared,
        servers.ablation(SERVER_CORE, folder / "alone.db", _ALONE) as alone,
    ):
        yield _compared(title, shared, alone, Target(1.5), effort)
    with (
        servers.ablation(SERVER_CORE, folder / "slow-shared.db", *_SLOW) as shared,
        servers.ablation(SERVER_CORE, folder / "slow-alone.db", *_SLOW, _ALONE) as alone,
    ):
        yield _compared(f"{title}, fsync slowed by 5 ms", shared, alone, Target(4), effort)


def _compared(title: str, shared: Server, alone: Server, target: Target, effort: Effort) -> Result:
    sides = [Side(Load(server, create(), MANY, LOAD_CORE)) for server in (shared, alone)]
    row = compare(Comparison(title, sides[0], sides[1], target), effort)
    for server, side in zip((shared, alone), sides, strict=True):
        check_count(server.address, side.succeeded)
    return row
