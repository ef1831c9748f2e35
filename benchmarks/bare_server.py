"""What grpcio costs by itself: one method that answers every call with the message it was given, and nothing else.

    python benchmarks/bare_server.py THREADS < message

The message is a GetTherapistResponse in bytes.
"""

import sys
from concurrent import futures

import grpc
from caseload.v1 import therapist_service_pb2 as pb
from caseload.v1 import therapist_service_pb2_grpc as pb_grpc


class BareServicer(pb_grpc.TherapistServiceServicer):
    """Answers without a look at the request."""

    def __init__(self, answer: pb.GetTherapistResponse) -> None:
        """Args: answer, to every call; grpcio serialises it each time."""
        self._answer = answer

    def GetTherapist(self, _request: pb.GetTherapistRequest, _context: grpc.ServicerContext) -> pb.GetTherapistResponse:
        return self._answer


def main() -> None:
    """Serves until it is ended."""
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
