"""Runs the benchmarks of docs/performance.md, and writes its tables and its plot. Needs h2load.

python -m benchmarks.run           many minutes; writes the document. Exit code 1 if a target was missed
python -m benchmarks.run --smoke   a minute, a smoke test; its figures mean nothing. Exit code 1 if the document
                                   has other rows
"""

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Final

from benchmarks import call_overhead, footprint, group_commit, importing, load, rest_baseline, scale, watches, workers
from benchmarks.rounds import FULL, SMOKE, Effort
from benchmarks.servers import TOOLS
from benchmarks.table import Result, figure, relative_to_target, tables, target_text, titles, write, written

ROOT = Path(__file__).parents[1]
DOCUMENT = ROOT / "docs" / "performance.md"
PLOT = ROOT / "docs" / "performance.svg"
DATA = ROOT / "data"  # on a real disk; a folder for temporary files may be in memory

GROUPS: Final[dict[str, Callable[[Path, Effort], Iterator[Result]]]] = {
    "calls": call_overhead.measure,
    "commits": group_commit.measure,
    "workers": workers.measure,
    "rest": rest_baseline.measure,
    "scale": scale.measure,
    "importing": importing.measure,
    "footprint": footprint.measure,
    "watches": watches.measure,
}
"""In the order of the tables. Each has its own folder, and yields its rows one by one."""


def main() -> None:
    """Prints the tables, and writes them unless --smoke.

    Exit code 1 if a figure misses its target; with --smoke, if the document has other rows. Exit code 2 if a program
    is missing.
    """
    parser = argparse.ArgumentParser(description="Runs the benchmarks of docs/performance.md.")
    parser.add_argument("--smoke", action="store_true", help="a minute, a smoke test; writes nothing")
    smoke: bool = parser.parse_args().smoke
    if not load.is_installed():
        print(f"{load.PROGRAM} is missing: apt-get install {load.PACKAGE}", file=sys.stderr)
        sys.exit(2)
    if not TOOLS.exists():
        print("FastAPI and matplotlib are missing: make bench-smoke installs them", file=sys.stderr)
        sys.exit(2)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # stop servers and remove files, as on Ctrl-C
    DATA.mkdir(mode=0o700, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="bench-", dir=DATA) as folder:
        results = list(all_results(Path(folder), SMOKE if smoke else FULL))
        draw(results, Path(folder, PLOT.name) if smoke else PLOT)
    text = tables(results)
    print(text, end="")
    if smoke:
        sys.exit(other_rows(text, DOCUMENT))
    write(DOCUMENT, text)
    missed = [f"{one.title}: {figure(one)}, not {target_text(one)}" for one in results if not one.is_met]
    sys.exit("\n".join(["missed:", *missed]) if missed else 0)


def all_results(folder: Path, effort: Effort) -> Iterator[Result]:
    """Runs all groups, each on its own databases, which are removed afterwards. Yields the rows."""
    for name, measure in GROUPS.items():
        group_folder = folder / name
        group_folder.mkdir()
        for result in measure(group_folder, effort):
            print(f"{name}: {result.title}: {figure(result)}", file=sys.stderr, flush=True)
            yield result
        shutil.rmtree(group_folder)


def other_rows(text: str, document: Path) -> str | None:
    """What is wrong if a document has other rows than a text with tables."""
    found, expected = titles(written(document)), titles(text)
    if found == expected:
        return None
    return f"{document.name} has other rows, run make bench: {sorted({*found} ^ {*expected}) or 'in another order'}"


def draw(results: Sequence[Result], file: Path) -> None:
    """Plots the results that have a target."""
    claims = [
        {"title": one.title, "label": f"{figure(one)}, {target_text(one)}", "times": relative_to_target(one)}
        for one in results
        if one.target
    ]
    environment = {**os.environ, "MPLCONFIGDIR": str(TOOLS.parents[1] / "matplotlib")}  # matplotlib's font cache
    subprocess.run(
        [str(TOOLS), str(Path(__file__).with_name("plot.py")), str(file)],
        input=json.dumps(claims).encode(),
        env=environment,
        check=True,
    )


if __name__ == "__main__":
    main()
