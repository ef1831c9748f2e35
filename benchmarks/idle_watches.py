"""A process that opens and closes idle watches on command.

    python benchmarks/idle_watches.py ADDRESS COUNT

Each line of standard input opens all watches, or closes them all if they are open. The process replies with a line.
"""

import sys
from itertools import cycle

import grpc
from caseload.v1 import change_service_pb2 as pb
from caseload.v1 import change_service_pb2_grpc as pb_grpc


def main() -> None:
    """Opens and closes until standard input ends."""
    address, count = sys.argv[1], int(sys.argv[2])
    with grpc.insecure_channel(address) as channel:
        stub = pb_grpc.ChangeServiceStub(channel)
        opened = []
        for _, opening in zip(sys.stdin, cycle((True, False)), strict=False):
            if opening:
                opened = [stub.WatchChanges(pb.WatchChangesRequest()) for _ in range(count)]
                for watch in opened:
                    next(watch)  # the server sends the first message at once: the watch is open
            else:
                for watch in opened:
                    watch.cancel()
            print("done", flush=True)


if __name__ == "__main__":
    main()
