"""Measures what docs/performance.md says, and writes its tables and its plot. Needs h2load.

python benchmarks/run.py           many minutes; writes the document. Exit code 1 where a target was missed
python benchmarks/run.py --smoke   a minute, to see that it runs; its figures mean nothing
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

from benchmarks import calls, commits, footprint, importing, load, rest_baseline, scale, watches, workers
from benchmarks.rounds import FULL, SMOKE, Effort
from benchmarks.servers import TOOLS
from benchmarks.table import Result, figure, tables, times_its_target, wanted, write

ROOT = Path(__file__).parents[1]
DOCUMENT = ROOT / "docs" / "performance.md"
PLOT = ROOT / "docs" / "performance.svg"
DATA = ROOT / "data"  # on the disk that would hold a real database; a folder for temporary files may be memory

GROUPS: Final[dict[str, Callable[[Path, Effort], Iterator[Result]]]] = {
    "calls": calls.measure,
    "commits": commits.measure,
    "workers": workers.measure,
    "rest": rest_baseline.measure,
    "scale": scale.measure,
    "importing": importing.measure,
    "footprint": footprint.measure,
    "watches": watches.measure,
}
"""In the order of the tables. Each has a folder of its own, and gives its rows as it goes."""


def main() -> None:
    """Prints the tables, and writes them unless --smoke. Exit code 2 where something is missing."""
    parser = argparse.ArgumentParser(description="Measures what docs/performance.md says.")
    parser.add_argument("--smoke", action="store_true", help="a minute, to see that it runs; writes nothing")
    smoke: bool = parser.parse_args().smoke
    if not load.is_there():
        print(f"{load.PROGRAM} is missing: apt-get install {load.PACKAGE}", file=sys.stderr)
        sys.exit(2)
    if not TOOLS.exists():
        print("FastAPI and matplotlib are missing: make bench-smoke installs them", file=sys.stderr)
        sys.exit(2)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # servers end and files go, as on Ctrl-C
    DATA.mkdir(mode=0o700, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="bench-", dir=DATA) as folder:
        results = list(everything(Path(folder), SMOKE if smoke else FULL))
        draw(results, Path(folder, PLOT.name) if smoke else PLOT)
    text = tables(results)
    print(text, end="")
    if not smoke:
        write(DOCUMENT, text)
        missed = [f"{one.title}: {figure(one)}, not {wanted(one)}" for one in results if not one.is_kept]
        sys.exit("\n".join(["missed:", *missed]) if missed else 0)


def everything(folder: Path, effort: Effort) -> Iterator[Result]:
    """All rows, each group's on databases of its own, which are gone when it is done."""
    for name, measure in GROUPS.items():
        place = folder / name
        place.mkdir()
        for result in measure(place, effort):
            print(f"{name}: {result.title}: {figure(result)}", file=sys.stderr, flush=True)
            yield result
        shutil.rmtree(place)


def draw(results: Sequence[Result], file: Path) -> None:
    """Draws those that have a target."""
    claims = [
        {"title": one.title, "label": f"{figure(one)}, {wanted(one)}", "times": times_its_target(one)}
        for one in results
        if one.target
    ]
    environment = {**os.environ, "MPLCONFIGDIR": str(TOOLS.parents[1] / "matplotlib")}  # where it keeps its fonts
    subprocess.run(
        [str(TOOLS), str(Path(__file__).with_name("plot.py")), str(file)],
        input=json.dumps(claims).encode(),
        env=environment,
        check=True,
    )


if __name__ == "__main__":
    main()
