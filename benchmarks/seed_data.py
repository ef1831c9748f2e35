"""The records that benchmarks create before they measure, and the check of their number afterwards."""

from collections.abc import Iterator
from contextlib import contextmanager

import grpc
from caseload.v1 import patient_service_pb2, patient_service_pb2_grpc, resources_pb2, therapist_service_pb2_grpc
from caseload.v1 import therapist_service_pb2 as pb

from benchmarks.load import LoadFailed

_SECONDS = 30


@contextmanager
def _therapists(address: str) -> Iterator[therapist_service_pb2_grpc.TherapistServiceStub]:
    with grpc.insecure_channel(address) as channel:
        yield therapist_service_pb2_grpc.TherapistServiceStub(channel)


def therapist() -> resources_pb2.Therapist:
    """A typical therapist."""
    return resources_pb2.Therapist(
        display_name="Zoë Müller-Lüdenscheidt",
        email="zoe@example.org",
        specialties=["hand-therapy", "sports-medicine"],
        max_active_patients=400,
    )


def store_therapists(address: str, count: int, max_active_patients: int | None = 400) -> list[str]:
    """Creates count therapists, each with an identifier. Returns their ids. Args: max_active_patients, their limit."""
    ids = []
    with _therapists(address) as stub:
        for number in range(count):
            one = therapist()
            if max_active_patients is None:
                one.ClearField("max_active_patients")
            else:
                one.max_active_patients = max_active_patients
            one.identifiers.add(system="https://example.org/staff", value=f"A-{number}")
            created = stub.CreateTherapist(pb.CreateTherapistRequest(therapist=one), timeout=_SECONDS)
            ids.append(created.therapist.therapist_id)
    return ids


def store_patients(address: str, therapist_id: str, count: int) -> list[str]:
    """Creates count patients assigned to the therapist. Returns their ids."""
    ids = []
    with grpc.insecure_channel(address) as channel, _therapists(address) as stub:
        patients = patient_service_pb2_grpc.PatientServiceStub(channel)
        request = patient_service_pb2.CreatePatientRequest(patient=resources_pb2.Patient(display_name="Bob"))
        for _ in range(count):
            ids.append(patients.CreatePatient(request, timeout=_SECONDS).patient.patient_id)
            pair = pb.AssignPatientRequest(therapist_id=therapist_id, patient_id=ids[-1])
            stub.AssignPatient(pair, timeout=_SECONDS)
    return ids


def check_count(address: str, expected: int) -> None:
    """Raises LoadFailed unless the expected number of therapists is stored: one for each counted create."""
    with _therapists(address) as stub:
        count, request = 0, pb.ListTherapistsRequest(page_size=1000)
        while True:
            page = stub.ListTherapists(request, timeout=_SECONDS)
            count += len(page.therapists)
            if not page.next_page_token:
                break
            request.page_token = page.next_page_token
    if count != expected:
        raise LoadFailed(f"{expected} therapists were created by the count of calls, and {count} are stored")
