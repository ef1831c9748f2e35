"""Sends generated calls to a server, and reports outcomes that no caller should be able to cause."""

import threading
from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any, Final, NamedTuple

import grpc
from caseload_server.rpc.status_map import CODES, DOMAIN
from google.protobuf.message import DecodeError
from google.rpc import error_details_pb2
from grpc_status import rpc_status

from tests.fuzz.messages import Messages, Sent
from tests.support.api_driver import RPCS

Learn = Callable[[Sent, bytes], None]

IN_FLIGHT: Final = 24
ANSWER_SECONDS: Final = 60.0
HURRIED_SECONDS: Final = 0.002
LARGEST_BYTES: Final = 1 << 20
"""The gRPC library may reject longer messages, without an error reason of ours."""


class Fault(NamedTuple):
    """A call, and its invalid outcome."""

    sent: Sent
    what: str


class Outcome:
    """The outcome of a run."""

    def __init__(self) -> None:
        self.faults: list[Fault] = []
        self.answered: Counter[str] = Counter()
        """Number of responses, by RPC."""
        self.refused: Counter[str] = Counter()
        """Number of errors by reason, or by status code for errors of the gRPC library."""


class Fuzzer:
    """A client that sends raw bytes to one server."""

    def __init__(self, address: str) -> None:
        options = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]
        self._channel = grpc.insecure_channel(address, options)
        self._calls: dict[str, Any] = {}
        for name, rpc in RPCS.items():
            make = self._channel.unary_stream if rpc.server_streaming else self._channel.unary_unary
            self._calls[name] = make(Sent(name, b"").method)
        self.outcome = Outcome()

    def close(self) -> None:
        self._channel.close()

    def run(self, messages: Messages, numbers: Iterable[int], most_faults: int = 20) -> Outcome:
        """Sends these calls concurrently; stops early after too many faults."""
        waiting = iter(numbers)
        lock = threading.Lock()

        def work() -> None:
            while len(self.outcome.faults) < most_faults:
                with lock:
                    number = next(waiting, None)
                if number is None:
                    return
                self.send(messages.call(number), messages.learn, is_hurried=number % 200 == 0)

        threads = [threading.Thread(target=work) for _ in range(IN_FLIGHT)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return self.outcome

    def send(self, sent: Sent, learn: Learn = lambda _sent, _answer: None, *, is_hurried: bool = False) -> None:
        """Sends one call. A hurried call is cancelled while the server runs it; a watch after its first message."""
        try:
            answer = self._first_answer(sent, HURRIED_SECONDS if is_hurried else ANSWER_SECONDS)
            learn(sent, answer)
            self.outcome.answered[sent.rpc] += 1
        except grpc.RpcError as error:
            self._note_refusal(sent, error, may_be_late=is_hurried)
        except DecodeError:
            self.outcome.faults.append(Fault(sent, "an answer that does not parse"))

    def _first_answer(self, sent: Sent, seconds: float) -> bytes:
        answer = self._calls[sent.rpc](sent.data, timeout=seconds)
        if not RPCS[sent.rpc].server_streaming:
            return bytes(answer)
        try:
            return bytes(next(answer))
        finally:
            answer.cancel()

    def _note_refusal(self, sent: Sent, error: Any, *, may_be_late: bool) -> None:
        what = fault(error, len(sent.data), may_be_late=may_be_late)
        if what:
            self.outcome.faults.append(Fault(sent, what))
        else:
            self.outcome.refused[reason(error) or error.code().name] += 1


def fault(error: Any, length: int, *, may_be_late: bool) -> str:
    """Describes what is wrong with an error for a message of this many bytes; empty if it is valid."""
    code: grpc.StatusCode = error.code()
    said = reason(error)
    if said:
        known = CODES.get(said) == code.value[0] and said != "INTERNAL"
        return "" if known else f"{code.name} with reason {said}"
    too_long = code == grpc.StatusCode.RESOURCE_EXHAUSTED and length > LARGEST_BYTES
    late = code == grpc.StatusCode.DEADLINE_EXCEEDED and may_be_late
    return "" if too_long or late else f"{code.name} without a reason of ours: {error.details()}"


def reason(error: Any) -> str:
    """The reason of an error; empty if it is not ours. Raises ValueError if its details contradict it."""
    status = rpc_status.from_call(error)
    for packed in status.details if status else ():
        info = error_details_pb2.ErrorInfo()
        if packed.Unpack(info) and info.domain == DOMAIN:
            return str(info.reason)
    return ""
