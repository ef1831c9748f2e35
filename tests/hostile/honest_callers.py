"""Honest callers, measured while others attack."""

import math
import os
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final, NamedTuple

import grpc
from caseload.v1 import therapist_service_pb2 as pb
from caseload.v1 import therapist_service_pb2_grpc as pb_grpc
from caseload.v1.resources_pb2 import Therapist

from tests.hostile.attacks import KEY_VARIABLE, METRICS_VARIABLE
from tests.hostile.server_process import Untuned
from tests.security.server_fixture import bearer
from tests.support.waiting import HUNG_SECONDS

CALLERS: Final = 8
PAUSE_SECONDS: Final = 0.02
DEADLINE_SECONDS: Final = 5.0
SETTLE_SECONDS: Final = 0.2
"""The pause after an attack, so that its effects do not count towards the next round."""


class Round(NamedTuple):
    """What honest callers saw in one round."""

    milliseconds: list[float]
    """The duration of each successful call."""
    errors: list[str]

    @property
    def p99(self) -> float:
        if len(self.milliseconds) < 2:
            return math.inf
        return statistics.quantiles(self.milliseconds, n=100)[98]


class Honest:
    """Callers that repeatedly get one therapist, with a pause; half of them reconnect in each round."""

    def __init__(self, server: Untuned, deadline_seconds: float = DEADLINE_SECONDS) -> None:
        """Args: deadline_seconds, the deadline of each call."""
        self._address = server.address
        self._metadata = bearer(server.honest_key)
        self._deadline_seconds = deadline_seconds
        self._kept = [self._channel() for _ in range(CALLERS // 2)]
        create = pb.CreateTherapistRequest(therapist_id="t1", therapist=Therapist(display_name="Ann Lee"))
        pb_grpc.TherapistServiceStub(self._kept[0]).CreateTherapist(
            create, timeout=HUNG_SECONDS, metadata=self._metadata
        )
        self.round(0.3)  # warm up: connect, and call everything once

    def close(self) -> None:
        for channel in self._kept:
            channel.close()

    def round(self, seconds: float) -> Round:
        """Calls for this many seconds; each caller makes at least one call."""
        fresh = [self._channel() for _ in range(CALLERS - len(self._kept))]
        result = Round([], [])
        until = time.monotonic() + seconds
        threads = [threading.Thread(target=self._call, args=(one, until, result)) for one in (*self._kept, *fresh)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        for channel in fresh:
            channel.close()
        return result

    def _call(self, channel: grpc.Channel, until: float, result: Round) -> None:
        ask = pb_grpc.TherapistServiceStub(channel).GetTherapist
        ends = False
        while not ends:
            began = time.monotonic()
            try:
                ask(pb.GetTherapistRequest(therapist_id="t1"), timeout=self._deadline_seconds, metadata=self._metadata)
            except grpc.RpcError as error:
                result.errors.append(f"{error.code().name}: {error.details()}")
            else:
                result.milliseconds.append((time.monotonic() - began) * 1000)
            ends = time.monotonic() >= until
            time.sleep(PAUSE_SECONDS)

    def _channel(self) -> grpc.Channel:
        # Otherwise the channels of one process would share a connection.
        return grpc.insecure_channel(self._address, [("grpc.use_local_subchannel_pool", 1)])


class Comparison(NamedTuple):
    """Alternating rounds without and with an attack, so that other load affects both equally."""

    done: int
    """The number of attack actions."""
    quiet: list[Round]
    attacked: list[Round]

    @property
    def errors(self) -> list[str]:
        return [error for one in (*self.quiet, *self.attacked) for error in one.errors]

    @property
    def ratios(self) -> list[float]:
        """The ratio of the p99 with the attack to the p99 without it, by round."""
        return [attacked.p99 / quiet.p99 for quiet, attacked in zip(self.quiet, self.attacked, strict=True)]

    @property
    def p99s(self) -> tuple[float, float]:
        """The medians of the p99 over all rounds, in milliseconds, without and with the attack."""
        quiet, attacked = (statistics.median(one.p99 for one in side) for side in (self.quiet, self.attacked))
        return quiet, attacked


def compare(honest: Honest, server: Untuned, attack: str, rounds: int, seconds: float) -> Comparison:
    """Runs this many rounds: each one for `seconds` without the attack and `seconds` with it."""
    total, quiet, busy = 0, [], []
    for _ in range(rounds):
        quiet.append(honest.round(seconds))
        with attacked(server, attack) as done:
            busy.append(honest.round(seconds))
        total += sum(done)
        time.sleep(SETTLE_SECONDS)
    return Comparison(total, quiet, busy)


@contextmanager
def attacked(server: Untuned, attack: str) -> Iterator[list[int]]:
    """Runs the attack during the with block; afterwards the list contains the number of attack actions."""
    command = [sys.executable, "-m", "tests.hostile.attacks", attack, server.address]
    environment = {**os.environ, KEY_VARIABLE: server.attacker_key, METRICS_VARIABLE: server.metrics_address}
    done: list[int] = []
    with subprocess.Popen(
        command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as attacker:
        assert attacker.stdin
        assert attacker.stdout
        assert attacker.stdout.readline() == "attacking\n"
        yield done
        attacker.stdin.close()
        done.append(int(attacker.stdout.readline()))
