"""Measures CheckAssignments, of one pair and of a hundred, beside GetTherapist. Part of run.py."""

import os
from collections.abc import Iterator
from pathlib import Path

import grpc
from caseload.v1 import (
    assignment_service_pb2,
    patient_service_pb2,
    patient_service_pb2_grpc,
    resources_pb2,
    therapist_service_pb2,
    therapist_service_pb2_grpc,
)

from benchmarks import servers
from benchmarks.load import Call, Load
from benchmarks.rounds import Comparison, Result, Side, compare
from benchmarks.run import GET, MANY, Effort
from benchmarks.servers import Server

CHECK = "/caseload.v1.AssignmentService/CheckAssignments"
PAIRS = 100


def measure(folder: Path, effort: Effort) -> Iterator[Result]:
    """Each comparison in turn. The server has the first core, load the last."""
    cores = sorted(os.sched_getaffinity(0))
    with servers.caseload(cores[0], folder / "caseload.db") as server:
        therapist_id, patient_ids = _assigned(server)

        def checks(count: int) -> Side:
            pairs = [{"therapist_id": therapist_id, "patient_id": one} for one in patient_ids[:count]]
            request = assignment_service_pb2.CheckAssignmentsRequest(
                pairs=[assignment_service_pb2.CheckAssignmentsRequest.Pair(**pair) for pair in pairs]
            )
            return Side(Load(server, Call(CHECK, request.SerializeToString(), always_same=True), MANY, cores[-1]))

        get = therapist_service_pb2.GetTherapistRequest(therapist_id=therapist_id).SerializeToString()
        gets = Side(Load(server, Call(GET, get, always_same=True), MANY, cores[-1]))
        one = checks(1)
        yield compare(Comparison("CheckAssignments, 1 pair / GetTherapist", one, gets), effort.rounds, effort.seconds)
        hundred = Comparison(f"CheckAssignments, {PAIRS} pairs / 1 pair", checks(PAIRS), one)
        yield compare(hundred, effort.rounds, effort.seconds)


def _assigned(server: Server) -> tuple[str, list[str]]:
    """A therapist and the patients assigned to it."""
    with grpc.insecure_channel(server.address) as channel:
        therapists = therapist_service_pb2_grpc.TherapistServiceStub(channel)
        patients = patient_service_pb2_grpc.PatientServiceStub(channel)
        request = therapist_service_pb2.CreateTherapistRequest(therapist=resources_pb2.Therapist(display_name="Ann"))
        therapist_id = therapists.CreateTherapist(request, timeout=30).therapist.therapist_id
        patient_ids = []
        for _ in range(PAIRS):
            someone = patient_service_pb2.CreatePatientRequest(patient=resources_pb2.Patient(display_name="Bob"))
            patient_id = patients.CreatePatient(someone, timeout=30).patient.patient_id
            pair = therapist_service_pb2.AssignPatientRequest(therapist_id=therapist_id, patient_id=patient_id)
            therapists.AssignPatient(pair, timeout=30)
            patient_ids.append(patient_id)
    return therapist_id, patient_ids
