"""A no-op grpcio server: one method that returns a fixed message.

    python benchmarks/bare_server.py THREADS < message

The message is a serialized GetTherapistResponse.
"""

import sys
from concurrent import futures

import grpc
from caseload.v1 import therapist_service_pb2 as pb
from caseload.v1 import therapist_service_pb2_grpc as pb_grpc


class BareServicer(pb_grpc.TherapistServiceServicer):
    """Returns a fixed response and ignores the request."""

    def __init__(self, answer: pb.GetTherapistResponse) -> None:
        """Args: answer, the response to every call; grpcio serializes it each time."""
        self._answer = answer

    def GetTherapist(self, _request: pb.GetTherapistRequest, _context: grpc.ServicerContext) -> pb.GetTherapistResponse:
        return self._answer


def main() -> None:
    """Serves until the process is killed."""
    server = grpc.server(futures.ThreadPoolExecutor(int(sys.argv[1])))
    answer = pb.GetTherapistResponse.FromString(sys.stdin.buffer.read())
    servicer = BareServicer(answer)  # type: ignore[abstract]  # the other methods are not called
    pb_grpc.add_TherapistServiceServicer_to_server(servicer, server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    print(f"bare: serving on 127.0.0.1:{port}", flush=True)
    server.wait_for_termination()


if __name__ == "__main__":
    main()
