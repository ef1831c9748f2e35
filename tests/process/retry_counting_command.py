"""`caseload`, with a server that adds a byte to CASELOAD_TEST_RETRIES for each attempt that is not a call's first."""

import os
from collections.abc import Callable
from typing import Any

import grpc
from caseload_server.commands import main
from caseload_server.rpc import server

FILE = os.open(os.environ["CASELOAD_TEST_RETRIES"], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
plain = grpc.server


class Counting(grpc.ServerInterceptor):
    """Reads the retry metadata that the caller's gRPC library sends."""

    def intercept_service(self, continuation: Callable[[Any], Any], handler_call_details: Any) -> Any:
        if any(name == "grpc-previous-rpc-attempts" for name, _ in handler_call_details.invocation_metadata):
            os.write(FILE, b".")
        return continuation(handler_call_details)


server.grpc.server = lambda threads, **rest: plain(threads, interceptors=[Counting()], **rest)  # type: ignore[attr-defined]

if __name__ == "__main__":
    main.main()
