"""Measures the latency of honest callers during attacks, compared with their latency without.

python -m benchmarks.hostile                  a few minutes
python -m benchmarks.hostile "rapid resets"   one attack only
python -m benchmarks.hostile --smoke          less than a minute, a smoke test; its figures mean little
"""

import argparse
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Final

from tests.hostile.attacks import ATTACKS
from tests.hostile.honest_callers import Honest, compare
from tests.hostile.server_process import Untuned, has_room

FULL: Final = (9, 2.0)
SMOKE: Final = (1, 0.3)
"""Rounds, and the seconds of each half: without and with the attack."""


def main() -> int:
    """Prints a table. Exit code 1 if an honest caller saw an error."""
    parser = argparse.ArgumentParser(description="Measures the latency of honest callers during attacks.")
    parser.add_argument("--smoke", action="store_true", help="less than a minute, a smoke test")
    parser.add_argument("attack", nargs="*", help="the attacks (default: all)")
    given = parser.parse_args()
    rounds, seconds = SMOKE if given.smoke else FULL
    if not has_room():
        print("the hard limit of open files is too low: ulimit -Hn", file=sys.stderr)
        return 2
    print("| attack | p99, attacked / alone | p99 | errors |\n|---|---|---|---|")
    errors = 0
    with tempfile.TemporaryDirectory() as folder, Untuned(Path(folder)) as server:
        honest = Honest(server)
        for attack in given.attack or ATTACKS:
            seen = compare(honest, server, attack, rounds, seconds)
            spread = f"{statistics.median(seen.ratios):.2f} ({min(seen.ratios):.2f} to {max(seen.ratios):.2f})"
            alone, attacked = seen.p99s
            print(f"| {attack} | {spread} | {attacked:.1f} / {alone:.1f} ms | {len(seen.errors)} |", flush=True)
            errors += len(seen.errors)
        honest.close()
    return 1 if errors else 0


if __name__ == "__main__":
    sys.exit(main())
