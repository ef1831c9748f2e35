"""A tour of the Caseload API. Start a server with `make run`, then: python client_example.py [HOST:PORT]"""

import sys

import grpc
from caseload.client import Caseload, connect, error_info
from caseload.v1 import assignment_service_pb2 as assignment_pb
from caseload.v1 import change_service_pb2 as change_pb
from caseload.v1 import patient_service_pb2 as patient_pb
from caseload.v1 import therapist_service_pb2 as therapist_pb
from caseload.v1.resources_pb2 import Patient, Therapist


class Tour:
    """The calls of the tour. The server generates the ids; this class keeps them by name."""

    def __init__(self, caseload: Caseload) -> None:
        self.caseload = caseload
        self.therapists, self.patients = caseload.therapists, caseload.patients
        self.id: dict[str, str] = {}
        self.start_revision = ""  # from before the first patient; the watch starts after it

    def create(self, therapists: tuple[str, ...], patients: tuple[str, ...]) -> None:
        for name in therapists:
            therapist = Therapist(display_name=name, max_active_patients=2)
            request = therapist_pb.CreateTherapistRequest(therapist=therapist)
            response = self.therapists.CreateTherapist(request)
            self.id[name], self.start_revision = response.therapist.therapist_id, response.revision
        for name in patients:
            creation = patient_pb.CreatePatientRequest(patient=Patient(display_name=name))
            self.id[name] = self.patients.CreatePatient(creation).patient.patient_id
        print(f"Created therapists {', '.join(therapists)}, and patients {', '.join(patients)}")

    def assign_patient(self, therapist: str, patient: str) -> None:
        request = therapist_pb.AssignPatientRequest(therapist_id=self.id[therapist], patient_id=self.id[patient])
        self.therapists.AssignPatient(request)
        print(f"Assigned {patient} to {therapist}")

    def assign_therapist(self, patient: str, therapist: str) -> None:
        request = patient_pb.AssignTherapistRequest(patient_id=self.id[patient], therapist_id=self.id[therapist])
        self.patients.AssignTherapist(request)
        print(f"Assigned {therapist} to {patient}")

    def list_patients(self, therapist: str) -> None:
        request = therapist_pb.ListTherapistPatientsRequest(therapist_id=self.id[therapist])
        entries = self.therapists.ListTherapistPatients(request).entries
        print(f"{therapist} treats", ", ".join(entry.patient.display_name for entry in entries))

    def list_therapists(self, patient: str) -> None:
        request = patient_pb.ListPatientTherapistsRequest(patient_id=self.id[patient])
        entries = self.patients.ListPatientTherapists(request).entries
        print(f"{patient} is treated by", ", ".join(entry.therapist.display_name for entry in entries))

    def rename_patient(self, old: str, new: str) -> None:
        request = patient_pb.UpdatePatientRequest()
        request.patient.patient_id, request.patient.display_name = self.id[old], new
        request.update_mask.paths.append("display_name")  # the update changes no other field
        self.patients.UpdatePatient(request)
        self.id[new] = self.id.pop(old)
        print(f"Renamed {old} to {new}")

    def unassign_patient(self, therapist: str, patient: str) -> None:
        request = therapist_pb.UnassignPatientRequest(therapist_id=self.id[therapist], patient_id=self.id[patient])
        self.therapists.UnassignPatient(request)
        print(f"Unassigned {patient} from {therapist}")

    def unassign_therapist(self, patient: str, therapist: str) -> None:
        request = patient_pb.UnassignTherapistRequest(patient_id=self.id[patient], therapist_id=self.id[therapist])
        self.patients.UnassignTherapist(request)
        print(f"Unassigned {therapist} from {patient}")

    def transfer(self, source: str, target: str) -> None:
        request = assignment_pb.TransferPatientsRequest()
        request.source_therapist_id, request.target_therapist_id = self.id[source], self.id[target]
        moved = self.caseload.assignments.TransferPatients(request).active
        print(f"Transferred the caseload of {source} to {target}; new assignments: {len(moved)}")

    def delete(self, therapists: tuple[str, ...], patients: tuple[str, ...]) -> None:
        for name in therapists:
            request = therapist_pb.DeleteTherapistRequest(therapist_id=self.id[name], force=True)
            ended = self.therapists.DeleteTherapist(request).ended_assignment_count
            print(f"Deleted {name}; ended assignments: {ended}")
        for name in patients:
            self.patients.DeletePatient(patient_pb.DeletePatientRequest(patient_id=self.id[name]))
        print("Deleted", ", ".join(patients))

    def watch(self, patient: str) -> None:
        print(f"Watched {patient}, call by call:")
        responses = self.caseload.watch(self.start_revision, change_pb.ChangeFilter(patient_id=self.id[patient]))
        for change_set in (one for response in responses for one in response.change_sets):
            method = change_set.method.rpartition("/")[2]
            print(f"  {method}:", ", ".join(change_pb.Change.Kind.Name(change.kind) for change in change_set.changes))
            if method == "DeletePatient":
                break  # a watch does not end by itself

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
            details = error_info(error)
            print(f"Refused Joe Bloggs to Ada Roe: {details.reason}, limit {details.metadata['limit']}")
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
    with connect(address, timeout=3.0) as caseload:  # with retries and a request_id in each write
        try:
            Tour(caseload).walk()
        except grpc.RpcError as error:
            if error_info(error).reason:
                raise  # Caseload refused a call that it should accept: a defect
            sys.exit(f"No Caseload server answers on {address}. Start one with: make run")


if __name__ == "__main__":
    main()
