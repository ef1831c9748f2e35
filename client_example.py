"""A tour of the Caseload API. Start a server with `make run`, then: python client_example.py [HOST:PORT]"""

import sys
import uuid

import grpc
from caseload.v1 import assignment_service_pb2 as assignment_pb
from caseload.v1 import change_service_pb2 as change_pb
from caseload.v1 import patient_service_pb2 as patient_pb
from caseload.v1 import therapist_service_pb2 as therapist_pb
from caseload.v1.assignment_service_pb2_grpc import AssignmentServiceStub
from caseload.v1.change_service_pb2_grpc import ChangeServiceStub
from caseload.v1.patient_service_pb2_grpc import PatientServiceStub
from caseload.v1.resources_pb2 import Patient, Therapist
from caseload.v1.therapist_service_pb2_grpc import TherapistServiceStub
from google.rpc.error_details_pb2 import ErrorInfo
from grpc_status import rpc_status

SECONDS = 5.0  # the deadline of every call: without one, a call can wait for ever


def once() -> str:
    """A new request_id. Where no answer came, send the same request again: under one id it is done once."""
    return str(uuid.uuid4())


def why(error: grpc.RpcError) -> ErrorInfo:
    """The reason of a refusal. Branch on this, never on the message. Empty where no Caseload answered."""
    info = ErrorInfo()
    status = rpc_status.from_call(error)  # type: ignore[arg-type]  # a failed call is a grpc.Call too
    for detail in status.details if status else ():
        detail.Unpack(info)  # takes the detail of this type, and leaves the others
    return info


class Tour:
    """The calls of the tour. The server makes the ids; here they are kept by name."""

    def __init__(self, channel: grpc.Channel) -> None:
        self.therapists = TherapistServiceStub(channel)
        self.patients = PatientServiceStub(channel)
        self.assignments = AssignmentServiceStub(channel)
        self.changes = ChangeServiceStub(channel)
        self.id: dict[str, str] = {}
        self.begun_at = ""  # a revision from before the first patient, for the watch to start after

    def create(self, therapists: tuple[str, ...], patients: tuple[str, ...]) -> None:
        for name in therapists:
            therapist = Therapist(display_name=name, max_active_patients=2)
            request = therapist_pb.CreateTherapistRequest(therapist=therapist, request_id=once())
            made = self.therapists.CreateTherapist(request, timeout=SECONDS)
            self.id[name], self.begun_at = made.therapist.therapist_id, made.revision
        for name in patients:
            creation = patient_pb.CreatePatientRequest(patient=Patient(display_name=name), request_id=once())
            self.id[name] = self.patients.CreatePatient(creation, timeout=SECONDS).patient.patient_id
        print(f"Created therapists {', '.join(therapists)}, and patients {', '.join(patients)}")

    def assign_patient(self, therapist: str, patient: str) -> None:
        request = therapist_pb.AssignPatientRequest(request_id=once())
        request.therapist_id, request.patient_id = self.id[therapist], self.id[patient]
        self.therapists.AssignPatient(request, timeout=SECONDS)
        print(f"Assigned {patient} to {therapist}")

    def assign_therapist(self, patient: str, therapist: str) -> None:
        request = patient_pb.AssignTherapistRequest(request_id=once())
        request.patient_id, request.therapist_id = self.id[patient], self.id[therapist]
        self.patients.AssignTherapist(request, timeout=SECONDS)
        print(f"Assigned {therapist} to {patient}")

    def list_patients(self, therapist: str) -> None:
        request = therapist_pb.ListTherapistPatientsRequest(therapist_id=self.id[therapist])
        entries = self.therapists.ListTherapistPatients(request, timeout=SECONDS).entries
        print(f"{therapist} treats", ", ".join(entry.patient.display_name for entry in entries))

    def list_therapists(self, patient: str) -> None:
        request = patient_pb.ListPatientTherapistsRequest(patient_id=self.id[patient])
        entries = self.patients.ListPatientTherapists(request, timeout=SECONDS).entries
        print(f"{patient} is treated by", ", ".join(entry.therapist.display_name for entry in entries))

    def rename_patient(self, old: str, new: str) -> None:
        request = patient_pb.UpdatePatientRequest(request_id=once())
        request.patient.patient_id, request.patient.display_name = self.id[old], new
        request.update_mask.paths.append("display_name")  # all other fields stay as they are
        self.patients.UpdatePatient(request, timeout=SECONDS)
        self.id[new] = self.id.pop(old)
        print(f"Renamed {old} to {new}")

    def unassign_patient(self, therapist: str, patient: str) -> None:
        request = therapist_pb.UnassignPatientRequest(request_id=once())
        request.therapist_id, request.patient_id = self.id[therapist], self.id[patient]
        self.therapists.UnassignPatient(request, timeout=SECONDS)
        print(f"Unassigned {patient} from {therapist}")

    def unassign_therapist(self, patient: str, therapist: str) -> None:
        request = patient_pb.UnassignTherapistRequest(request_id=once())
        request.patient_id, request.therapist_id = self.id[patient], self.id[therapist]
        self.patients.UnassignTherapist(request, timeout=SECONDS)
        print(f"Unassigned {therapist} from {patient}")

    def transfer(self, source: str, target: str) -> None:
        request = assignment_pb.TransferPatientsRequest(request_id=once())
        request.source_therapist_id, request.target_therapist_id = self.id[source], self.id[target]
        moved = self.assignments.TransferPatients(request, timeout=SECONDS).active
        print(f"Transferred the caseload of {source} to {target}; assignments begun with that: {len(moved)}")

    def delete(self, therapists: tuple[str, ...], patients: tuple[str, ...]) -> None:
        for name in therapists:
            request = therapist_pb.DeleteTherapistRequest(therapist_id=self.id[name], force=True, request_id=once())
            ended = self.therapists.DeleteTherapist(request, timeout=SECONDS).ended_assignment_count
            print(f"Deleted {name}; assignments ended with that: {ended}")
        for name in patients:
            deletion = patient_pb.DeletePatientRequest(patient_id=self.id[name], request_id=once())
            self.patients.DeletePatient(deletion, timeout=SECONDS)
        print("Deleted", ", ".join(patients))

    def watch(self, patient: str) -> None:
        request = change_pb.WatchChangesRequest(after_revision=self.begun_at)
        request.filter.patient_id = self.id[patient]
        stream = self.changes.WatchChanges(request, timeout=SECONDS)
        print(f"Watched {patient}, call by call:")
        for change_set in (one for message in stream for one in message.change_sets):
            method = change_set.method.rpartition("/")[2]
            print(f"  {method}:", ", ".join(change_pb.Change.Kind.Name(change.kind) for change in change_set.changes))
            if method == "DeletePatient":
                stream.cancel()  # a watch does not end by itself
                break

    def walk(self) -> None:
        self.create(("Ada Roe", "Ben Poe"), ("Jane Doe", "John Doe", "Joe Bloggs"))
        self.assign_patient("Ada Roe", "Jane Doe")
        self.assign_patient("Ada Roe", "John Doe")
        self.assign_therapist("Jane Doe", "Ben Poe")
        self.assign_therapist("Joe Bloggs", "Ben Poe")
        self.list_patients("Ada Roe")
        self.list_therapists("Jane Doe")
        try:
            self.assign_patient("Ada Roe", "Joe Bloggs")
        except grpc.RpcError as error:
            print(f"Refused Joe Bloggs to Ada Roe: {why(error).reason}, limit {why(error).metadata['limit']}")
        self.rename_patient("Joe Bloggs", "Joe Public")
        self.unassign_patient("Ada Roe", "John Doe")
        self.unassign_therapist("Jane Doe", "Ben Poe")
        self.list_patients("Ben Poe")
        self.transfer("Ben Poe", "Ada Roe")
        self.list_patients("Ada Roe")
        self.delete(("Ada Roe", "Ben Poe"), ("Jane Doe", "John Doe", "Joe Public"))
        self.watch("Joe Public")


def main() -> None:
    address = sys.argv[1] if len(sys.argv) > 1 else "127.0.0.1:50051"
    with grpc.insecure_channel(address) as channel:
        try:
            Tour(channel).walk()
        except grpc.RpcError as error:
            if why(error).reason:
                raise  # the tour meets no other refusal: this would be a defect
            sys.exit(f"No Caseload server answers on {address}. Start one with: make run")


if __name__ == "__main__":
    main()
