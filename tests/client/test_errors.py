"""error_info(): the reason and details of a failed call, without another package."""

import traceback
from collections.abc import Callable
from typing import Any, get_args

import grpc
import pytest
from caseload.client import Caseload, ErrorDetails, Reason, connect, error_info
from caseload.v1 import error_reason_pb2, patient_service_pb2, resources_pb2, therapist_service_pb2
from caseload_server.rpc.server import CaseloadServer
from google.protobuf import any_pb2
from google.rpc import error_details_pb2, status_pb2

from tests.client.fake_server import FakeServer
from tests.support.servers import refusal


def refused(call: Callable[..., object], request: object) -> grpc.RpcError:
    with pytest.raises(grpc.RpcError) as caught:
        call(request)
    return caught.value


def test_error_info_has_what_the_server_sent(server: CaseloadServer) -> None:
    pb = therapist_service_pb2
    with connect(server.address) as caseload:
        missing = refused(caseload.therapists.GetTherapist, pb.GetTherapistRequest(therapist_id="missing"))
        assert error_info(missing) == ErrorDetails("THERAPIST_NOT_FOUND", dict(refusal(missing).metadata))
        blank = refused(caseload.therapists.CreateTherapist, pb.CreateTherapistRequest(therapist_id="A"))
        assert error_info(blank).reason == "INVALID_FIELD"
        assert list(error_info(blank).fields) == refusal(blank).fields
        assert all(error_info(blank).fields.values())
        assert error_info(blank).retry_after_seconds is None


def at_capacity(caseload: Caseload) -> grpc.RpcError:
    """The error of an assignment beyond the capacity."""
    pb = therapist_service_pb2
    therapist = resources_pb2.Therapist(display_name="Ann Lee", max_active_patients=1)
    caseload.therapists.CreateTherapist(pb.CreateTherapistRequest(therapist_id="t1", therapist=therapist))
    patient = resources_pb2.Patient(display_name="Bob Ray")
    for one in ("p1", "p2"):
        caseload.patients.CreatePatient(patient_service_pb2.CreatePatientRequest(patient_id=one, patient=patient))
    caseload.therapists.AssignPatient(pb.AssignPatientRequest(therapist_id="t1", patient_id="p1"))
    return refused(caseload.therapists.AssignPatient, pb.AssignPatientRequest(therapist_id="t1", patient_id="p2"))


def test_error_info_has_the_metadata_of_the_reason(server: CaseloadServer) -> None:
    with connect(server.address) as caseload:
        assert error_info(at_capacity(caseload)) == ErrorDetails(
            "THERAPIST_AT_CAPACITY", {"limit": "1", "current": "1"}
        )


class CircuitOpenError(grpc.RpcError):
    """An interceptor's own error. It has no code and no metadata."""


class CircuitBreaker(grpc.UnaryUnaryClientInterceptor, grpc.UnaryStreamClientInterceptor):
    """Refuses every call."""

    def intercept_unary_unary(self, *_: Any) -> Any:
        raise CircuitOpenError("open")

    def intercept_unary_stream(self, *_: Any) -> Any:
        raise CircuitOpenError("open")


def test_the_error_that_an_interceptor_raises_reaches_the_caller(peer: FakeServer) -> None:
    with connect(peer.address, interceptors=[CircuitBreaker()]) as caseload:
        for call in (
            lambda: caseload.therapists.GetTherapist(therapist_service_pb2.GetTherapistRequest()),
            lambda: next(caseload.watch()),
        ):
            with pytest.raises(CircuitOpenError) as caught:
                call()
            assert error_info(caught.value) == ErrorDetails()


@pytest.mark.parametrize("kind", ["ErrorInfo", "BadRequest", "RetryInfo"])
def test_a_detail_that_does_not_parse_is_ignored(peer: FakeServer, kind: str) -> None:
    detail = any_pb2.Any(type_url=f"type.googleapis.com/google.rpc.{kind}", value=b"\xff")
    peer.trailing = (("grpc-status-details-bin", status_pb2.Status(details=[detail]).SerializeToString()),)
    with connect(peer.answer_with(grpc.StatusCode.NOT_FOUND).address) as caseload:
        error = refused(caseload.therapists.GetTherapist, therapist_service_pb2.GetTherapistRequest())
    assert error.code() == grpc.StatusCode.NOT_FOUND
    assert error_info(error) == ErrorDetails()


def test_a_retry_delay_of_any_length_is_read(peer: FakeServer) -> None:
    info, retry = any_pb2.Any(), any_pb2.Any()
    info.Pack(error_details_pb2.ErrorInfo(domain="caseload.v1", reason="OVERLOADED"))
    retry.Pack(error_details_pb2.RetryInfo(retry_delay={"seconds": 2**62}))
    peer.trailing = (("grpc-status-details-bin", status_pb2.Status(details=[info, retry]).SerializeToString()),)
    with connect(peer.answer_with(grpc.StatusCode.NOT_FOUND).address) as caseload:
        error = refused(caseload.therapists.GetTherapist, therapist_service_pb2.GetTherapistRequest())
    assert error_info(error) == ErrorDetails("OVERLOADED", retry_after_seconds=2.0**62)


def test_an_error_that_is_not_from_caseload_has_no_reason(peer: FakeServer) -> None:
    with connect(peer.answer_with(grpc.StatusCode.NOT_FOUND).address) as caseload:
        error = refused(caseload.therapists.GetTherapist, therapist_service_pb2.GetTherapistRequest())
    assert error.code() == grpc.StatusCode.NOT_FOUND
    assert error_info(error) == ErrorDetails()


def test_the_type_of_a_reason_lists_exactly_the_reasons_of_the_contract() -> None:
    names = [name.removeprefix("ERROR_REASON_") for name in error_reason_pb2.ErrorReason.keys()]  # noqa: SIM118 - no dict
    assert get_args(Reason) == ("", *names[1:])


def test_a_reason_that_a_newer_server_sends_is_returned_unchanged(peer: FakeServer) -> None:
    packed = any_pb2.Any()
    packed.Pack(error_details_pb2.ErrorInfo(domain="caseload.v1", reason="OF_TOMORROW", metadata={"limit": "9"}))
    status = status_pb2.Status(code=9, message="scripted", details=[packed])
    peer.trailing = (("grpc-status-details-bin", status.SerializeToString()),)
    with connect(peer.answer_with(grpc.StatusCode.FAILED_PRECONDITION).address) as caseload:
        error = refused(caseload.therapists.GetTherapist, therapist_service_pb2.GetTherapistRequest())
    assert error_info(error) == ("OF_TOMORROW", {"limit": "9"}, {}, None)
    assert "reason: OF_TOMORROW\nmetadata limit: 9\n" in shown(error)


def shown(error: BaseException) -> str:
    return "".join(traceback.format_exception(error))


WAYS: list[Any] = [
    lambda method: method,
    lambda method: method.with_call,
    lambda method: lambda request: method.future(request).result(),
]


@pytest.mark.parametrize("way", WAYS, ids=["call", "with_call", "future"])
def test_an_error_shows_its_reason_and_fields_in_a_traceback(server: CaseloadServer, way: Any) -> None:
    request = therapist_service_pb2.CreateTherapistRequest()
    with connect(server.address) as caseload:
        error = refused(way(caseload.therapists.CreateTherapist), request)
    assert error_info(error).fields
    assert "reason: INVALID_FIELD\n" in shown(error)
    for path, rule in error_info(error).fields.items():
        assert shown(error).count(f"field {path}: {rule}\n") == 1


def test_a_future_shows_its_reason_once_however_often_it_is_asked(server: CaseloadServer) -> None:
    with connect(server.address) as caseload:
        future = caseload.therapists.GetTherapist.future(therapist_service_pb2.GetTherapistRequest(therapist_id="t9"))
        errors = [future.exception(), future.exception()]
        with pytest.raises(grpc.RpcError) as caught:
            future.result()
    assert all(error is caught.value for error in errors)
    assert caught.value.__notes__ == ["reason: THERAPIST_NOT_FOUND\nmetadata missing: 1"]


def test_a_stream_shows_the_reason_of_its_error(server: CaseloadServer) -> None:
    with connect(server.address) as caseload:
        error = refused(next, caseload.watch("0123456789ab.1"))
    assert "reason: REVISION_FOREIGN\n" in shown(error)


def test_an_error_that_is_not_from_caseload_has_no_note(peer: FakeServer) -> None:
    with connect(peer.answer_with(grpc.StatusCode.NOT_FOUND).address) as caseload:
        error = refused(caseload.therapists.GetTherapist, therapist_service_pb2.GetTherapistRequest())
    assert not hasattr(error, "__notes__")
