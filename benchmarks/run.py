"""Measures what docs/performance.md says, and writes its tables. Needs h2load.

python benchmarks/run.py           some minutes; writes the document. Exit code 1 where a target was missed
python benchmarks/run.py --smoke   a few seconds, to see that it runs; its figures mean nothing
"""

import argparse
import shutil
import signal
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

from benchmarks import calls, commits, load, rest, watches
from benchmarks.rounds import FULL, SMOKE, Effort
from benchmarks.table import Result, figure, tables, wanted, write

ROOT = Path(__file__).parents[1]
DOCUMENT = ROOT / "docs" / "performance.md"
DATA = ROOT / "data"  # on the disk that would hold a real database; a folder for temporary files may be memory

GROUPS: Final[dict[str, Callable[[Path, Effort], Iterator[Result]]]] = {
    "calls": calls.measure,
    "commits": commits.measure,
    "rest": rest.measure,
    "watches": watches.measure,
}
"""In the order of the tables. Each has a folder of its own, and gives its rows as it goes."""


def main() -> None:
    """Prints the tables, and writes them unless --smoke. Exit code 2 where h2load is missing."""
    parser = argparse.ArgumentParser(description="Measures what docs/performance.md says.")
    parser.add_argument("--smoke", action="store_true", help="a few seconds, to see that it runs; writes nothing")
    smoke: bool = parser.parse_args().smoke
    if not load.is_there():
        print(f"{load.PROGRAM} is missing: apt-get install {load.PACKAGE}", file=sys.stderr)
        sys.exit(2)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # servers end and files go, as on Ctrl-C
    DATA.mkdir(mode=0o700, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="bench-", dir=DATA) as folder:
        results = list(everything(Path(folder), SMOKE if smoke else FULL))
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


if __name__ == "__main__":
    main()
