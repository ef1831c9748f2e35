"""The metrics of one worker without a server: counts, samples, and waits until it is killed.

python -m tests.observability.worker_process NUMBER READY
"""

import sys
import time

from caseload_server.domain import errors
from caseload_server.observability.metrics import Metrics

from tests.support.waiting import HUNG_SECONDS


def main() -> None:
    number, ready = int(sys.argv[1]), float(sys.argv[2])
    metrics = Metrics(number)
    count = metrics.counter_for("/caseload.v1.TherapistService/GetTherapist", is_stream=False)
    for _ in range(10 + number):
        count("OK", None, 0.0003)
    count("NOT_FOUND", errors.TherapistNotFound(), 0.0003)
    metrics.add_gauge("ready", lambda: ready)
    metrics.add_gauge("watches", lambda: 5)
    metrics.start()
    print("counted", flush=True)
    time.sleep(2 * HUNG_SECONDS)


main()
