"""Measures the CPU that the most expensive rejected request of each method takes, beside the largest valid one.

python -m benchmarks.refused_requests              some minutes
python -m benchmarks.refused_requests GetPatient   this method only
"""

import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final, NamedTuple

import grpc
from caseload_server.validation.request_sizes import max_request_bytes
from google.protobuf.descriptor import Descriptor, FieldDescriptor, MethodDescriptor

from benchmarks import servers
from benchmarks.servers import SERVER_CORE, Server
from tests.api.sample_values import is_map
from tests.rpc.test_request_sizes import largest
from tests.support.api_driver import RPCS, full_name

SECONDS: Final = 0.3
"""Of each request."""
_UNKNOWN: Final = 99
"""The number of a field that no message has."""
_TEXTS: Final = {
    "spaces": "\u2003",
    "marks": "\u0301\u0316",  # in an order that normalization has to change
    "jamo": "\u1112\u1161\u11ab",  # which normalization composes
    "letters": "x",
}


class Cost(NamedTuple):
    """What one request takes."""

    cpu_ms: float
    code: str
    shape: str


def _varint(number: int) -> bytes:
    low, rest = number & 0x7F, number >> 7
    return bytes([low | 0x80]) + _varint(rest) if rest else bytes([low])


def _field(number: int, data: bytes) -> bytes:
    """Encodes a field with a length, such as a text or a message."""
    return _varint(number << 3 | 2) + _varint(len(data)) + data


def _repeated(entry: bytes, room: int) -> bytes:
    return entry * (room // len(entry))


def shapes(message: Descriptor, room: int) -> Iterator[tuple[str, bytes]]:
    """Yields messages that fill this many bytes, each with one kind of content, and their names."""
    for field in message.fields:
        for name, data in _fillings(field, room):
            yield f"{field.name} {name}", data
    yield "unknown text", _field(_UNKNOWN, b"x" * (room - 6))
    yield "unknown numbers", _repeated(_varint(_UNKNOWN << 3) + b"\1", room)
    nested = _varint(_UNKNOWN << 3 | 3) * 90 + _varint(_UNKNOWN << 3 | 4) * 90
    yield "unknown groups", _repeated(nested, room)


def _fillings(field: FieldDescriptor, room: int) -> Iterator[tuple[str, bytes]]:
    inner = room - 8
    if is_map(field):
        entries = (_field(field.number, _field(1, b"%x" % number)) for number in range(room // 12))
        yield "of many entries", b"".join(entries)
        texts = (_field(field.number, _field(1, b"%d" % n) + _field(2, b"\xcc\x81\xcc\x96" * 250)) for n in range(32))
        yield "of marks", b"".join(texts)[:room]
    elif field.message_type:
        yield "of empty messages", _repeated(_field(field.number, b""), room if field.is_repeated else 2)
        for name, data in shapes(field.message_type, inner):
            yield name, _field(field.number, data)
    elif field.type != FieldDescriptor.TYPE_STRING:
        yield "of numbers", _field(field.number, b"\x63" * inner) if field.is_repeated else b""
    elif field.is_repeated:
        for entry in (b"", b"a", b"a" * 63, b"X" * 20):
            yield f"of {len(entry)} characters", _repeated(_field(field.number, entry), room)
    else:
        for name, text in _TEXTS.items():
            yield f"of {name}", _field(field.number, _repeated(text.encode(), inner))


def measure(server: Server, channel: grpc.Channel, method: MethodDescriptor, shape: str, data: bytes) -> Cost:
    """Repeats one request."""
    make: Any = channel.unary_stream if method.server_streaming else channel.unary_unary
    send, code = make(full_name(method.name)), "OK"
    before, count, until = server.cpu_seconds(), 0, time.monotonic() + SECONDS
    while time.monotonic() < until:
        try:
            answer = send(data, timeout=60)
            if method.server_streaming:
                next(answer)
                answer.cancel()
        except grpc.RpcError as error:
            code = error.code().name
        count += 1
    return Cost((server.cpu_seconds() - before) / count * 1000, code, shape)


def main() -> None:
    """Prints a row for each method."""
    print("| method | largest valid request | most expensive rejected one | its content |\n|---|---|---|---|")
    with (
        tempfile.TemporaryDirectory() as folder,
        servers.caseload(SERVER_CORE, Path(folder, "caseload.db")) as server,
        grpc.insecure_channel(server.address) as channel,
    ):
        for name in sys.argv[1:] or RPCS:
            method = RPCS[name]
            valid = measure(server, channel, method, "", largest(method).SerializeToString())
            room = max_request_bytes(method.input_type)
            costs = [measure(server, channel, method, *one) for one in shapes(method.input_type, room)]
            worst = max(cost for cost in costs if cost.code == "INVALID_ARGUMENT")
            print(f"| {name} | {valid.cpu_ms:.2f} ms | {worst.cpu_ms:.2f} ms | {worst.shape} |", flush=True)


if __name__ == "__main__":
    main()
