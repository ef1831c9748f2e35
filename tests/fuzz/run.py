"""Fuzzes a server that it starts itself.

python -m tests.fuzz.run --count 100000            prints its seed first, and saves the calls that caused a fault
python -m tests.fuzz.run --count 100000 --seed 7   the same calls again, except for server-generated ids and tokens
python -m tests.fuzz.run --replay FILE             the saved calls of a run; per line an RPC, a space and hex
python -m tests.fuzz.run --database URL            against this empty database, instead of a new SQLite file
"""

import argparse
import random
import sys
import tempfile
import time
from pathlib import Path
from typing import Final

from tests.fuzz.fuzzer import Fuzzer, Outcome
from tests.fuzz.messages import Messages, Sent
from tests.fuzz.server_process import Serving
from tests.support.api_driver import RPCS

FAULTS: Final = Path("data/fuzz-faults.txt")


def main() -> int:
    """Exits with code 1 after a fault."""
    parser = argparse.ArgumentParser(description="Sends generated calls to a server, and reports faults.")
    parser.add_argument("--count", type=int, default=100_000, help="calls to send")
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(10**9), help="of the calls")
    parser.add_argument("--replay", type=Path, help="a file of calls to send instead")
    parser.add_argument("--database", default="", help="URL of an empty database; a new SQLite file if none is given")
    given = parser.parse_args()
    print(f"seed {given.seed}", flush=True)
    with tempfile.TemporaryDirectory() as folder, Serving(Path(folder), given.database) as server:
        fuzzer = Fuzzer(server.address)
        began = time.monotonic()
        outcome = replay(fuzzer, given.replay) if given.replay else fuzzer.run(Messages(given.seed), range(given.count))
        print(f"{time.monotonic() - began:.0f} s")
        fuzzer.close()
        complaints = server.end()
    report(outcome, complaints)
    return 1 if outcome.faults or complaints else 0


def replay(fuzzer: Fuzzer, file: Path) -> Outcome:
    """Sends the calls of a file sequentially."""
    for line in file.read_text().splitlines():
        rpc, _, data = line.partition(" ")
        fuzzer.send(Sent(rpc, bytes.fromhex(data)))
    return fuzzer.outcome


def report(outcome: Outcome, complaints: list[str]) -> None:
    """Prints the outcome, and saves the calls that caused a fault."""
    rarest = min(RPCS, key=lambda rpc: outcome.answered[rpc])
    print(f"{outcome.answered.total()} answers, the fewest of {rarest}: {outcome.answered[rarest]}; refusals:")
    for reason, count in outcome.refused.most_common():
        print(f"  {reason} {count}")
    for fault in outcome.faults:
        print(f"fault: {fault.sent.rpc}: {fault.what}")
    for complaint in complaints:
        print(f"fault: {complaint}")
    if outcome.faults:
        FAULTS.parent.mkdir(mode=0o700, exist_ok=True)
        FAULTS.write_text("".join(f"{fault.sent.rpc} {fault.sent.data.hex()}\n" for fault in outcome.faults))
        print(f"python -m tests.fuzz.run --replay {FAULTS}")


if __name__ == "__main__":
    sys.exit(main())
