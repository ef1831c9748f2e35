"""A FastAPI application that calls Caseload and never blocks its event loop.

    APP_CASELOAD_TARGET=127.0.0.1:50051 uvicorn --app-dir docs/examples fastapi_app:app

One client serves the whole application. It is made in the lifespan, because it belongs to the running event loop.
"""

import asyncio
import os
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Annotated

import grpc
from caseload.client.aio import Caseload, connect, error_info, pages
from caseload.v1 import patient_service_pb2, therapist_service_pb2
from caseload.v1.resources_pb2 import Patient
from fastapi import Depends, FastAPI, Request
from fastapi.responses import JSONResponse
from pydantic import BaseModel


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncGenerator[None, None]:
    """Connects for as long as the application runs. Closing the client also ends the watch."""
    async with connect(os.environ["APP_CASELOAD_TARGET"], key=os.environ.get("APP_CASELOAD_KEY")) as caseload:
        app.state.caseload, app.state.changed = caseload, 0
        watching = asyncio.create_task(count_changes(app, caseload))
        yield
    await watching


async def count_changes(app: FastAPI, caseload: Caseload) -> None:
    """Follows the change log beside the requests. A real application would invalidate a cache here."""
    async for response in caseload.watch():
        app.state.changed += len(response.change_sets)


def get_caseload(request: Request) -> Caseload:
    """Returns the client of the application."""
    caseload: Caseload = request.app.state.caseload
    return caseload


app = FastAPI(lifespan=lifespan)
Client = Annotated[Caseload, Depends(get_caseload)]


class NewPatient(BaseModel):
    """The body of POST /patients."""

    display_name: str


@app.post("/patients", status_code=201)
async def create_patient(new: NewPatient, caseload: Client) -> dict[str, str]:
    """Creates a patient. The client adds a request_id, so its retries create no second one."""
    request = patient_service_pb2.CreatePatientRequest(patient=Patient(display_name=new.display_name))
    response = await caseload.patients.CreatePatient(request)
    return {"patient_id": response.patient.patient_id}


@app.get("/therapists/{therapist_id}/patients")
async def list_patients(therapist_id: str, caseload: Client) -> list[str]:
    """Lists the ids of all patients of a therapist, page by page."""
    request = therapist_service_pb2.ListTherapistPatientsRequest(therapist_id=therapist_id)
    found = pages(caseload.therapists.ListTherapistPatients, request)
    return [entry.patient.patient_id async for page in found for entry in page.entries]


@app.get("/changes")
async def changes(request: Request) -> dict[str, int]:
    """Returns the number of change sets since the start."""
    return {"count": request.app.state.changed}


@app.exception_handler(grpc.aio.AioRpcError)
async def answer_error(request: Request, error: Exception) -> JSONResponse:  # noqa: ARG001 - the framework's arguments
    """Answers with the reason. Any other error is a failure of this application, or Caseload is away."""
    details = error_info(error) if isinstance(error, grpc.aio.AioRpcError) else None
    if details is None or not details.reason:
        return JSONResponse({"reason": "CASELOAD_UNAVAILABLE"}, status_code=503)
    if details.reason == "INVALID_FIELD":
        return JSONResponse({"reason": details.reason, "fields": dict(details.fields)}, status_code=400)
    missing = details.reason in ("THERAPIST_NOT_FOUND", "PATIENT_NOT_FOUND")
    return JSONResponse({"reason": details.reason}, status_code=404 if missing else 409)
