"""Stuck callers do not block others, and cancelled calls are not executed."""

import socket
import struct
import threading
import time
from pathlib import Path
from typing import Any

import grpc
import pytest
from caseload.v1 import patient_service_pb2 as pb
from caseload.v1.resources_pb2 import Patient
from grpc_health.v1 import health_pb2, health_pb2_grpc

from tests.hostile import http2_frames
from tests.security.server_fixture import await_writes, serving
from tests.support.api_driver import ApiDriver
from tests.support.waiting import HUNG_SECONDS, NEVER_SECONDS, join
from tests.support.write_lock import holding_the_lock, wait_for_locks

WATCH = http2_frames.CALL.replace(
    http2_frames.literal(b":path", http2_frames.METHOD), http2_frames.literal(b":path", b"/grpc.health.v1.Health/Watch")
)
NO_WINDOW = http2_frames.PREFACE + b"\0\0\6\4\0\0\0\0\0" + struct.pack(">HL", 4, 0)
"""A connection preface with a flow-control window of 0 bytes (RFC 9113 section 6.9.2)."""


@pytest.mark.slow
@pytest.mark.parametrize(
    "sent",
    [
        http2_frames.GREETING + http2_frames.headers(1, WATCH),
        NO_WINDOW + http2_frames.headers(1, WATCH) + http2_frames.request(1, b""),
    ],
    ids=["no message", "no window"],
)
def test_a_stuck_health_watch_does_not_block_other_callers(tmp_path: Path, sent: bytes) -> None:
    with serving(tmp_path, grace_seconds=1) as server, grpc.insecure_channel(server.address) as channel:
        health: Any = health_pb2_grpc.HealthStub(channel)
        watch = health.Watch(health_pb2.HealthCheckRequest())
        next(watch)
        host, port = server.address.split(":")
        with socket.create_connection((host, int(port))) as caller:
            caller.sendall(sent)
            time.sleep(0.3)
            watch.cancel()
            time.sleep(0.2)
            assert next(health.Watch(health_pb2.HealthCheckRequest(), timeout=HUNG_SECONDS)).status
            assert health.Check(health_pb2.HealthCheckRequest(), timeout=HUNG_SECONDS).status
            get: Any = channel.unary_unary("/caseload.v1.PatientService/GetPatient")
            with pytest.raises(grpc.RpcError) as refused:
                get(pb.GetPatientRequest(patient_id="p").SerializeToString(), timeout=HUNG_SECONDS)
            assert refused.value.code() is grpc.StatusCode.NOT_FOUND
            stopping = threading.Thread(target=server.stop)
            stopping.start()
            join(stopping)


def order(patient_id: str) -> bytes:
    return pb.CreatePatientRequest(patient_id=patient_id, patient=Patient(display_name="A")).SerializeToString()


def test_a_call_cancelled_in_the_queue_is_not_executed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wait_for_locks(monkeypatch)
    with serving(tmp_path, threads=1, queue_timeout_seconds=NEVER_SECONDS) as server, ApiDriver(server.address) as api:
        create: Any = api.channel.unary_unary("/caseload.v1.PatientService/CreatePatient")
        with holding_the_lock(f"sqlite:///{tmp_path}/caseload.db"):
            first = create.future(order("p0"))
            await_writes(server, 1)
            others = [create.future(order(f"p{number}")) for number in range(1, 4)]
            await_writes(server, 1, waiting=3)
            for call in others:
                call.cancel()
            api.send("ListPatients")  # arrives after the cancellations on the same connection
        first.result(timeout=HUNG_SECONDS)
        assert [one.patient_id for one in api.send("ListPatients").patients] == ["p0"]
