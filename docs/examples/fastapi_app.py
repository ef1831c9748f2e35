"""A FastAPI application that calls Caseload without blocking its event loop.

    pip install fastapi uvicorn
    APP_CASELOAD_TARGET=127.0.0.1:50051 uvicorn --app-dir docs/examples fastapi_app:app

The whole application shares one client. The lifespan creates it, because the client belongs to the running event loop.
"""

import asyncio
import logging
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
    """Connects while the application runs. At the end, the client is closed, which also ends the watch."""
    async with connect(os.environ["APP_CASELOAD_TARGET"], key=os.environ.get("APP_CASELOAD_KEY")) as caseload:
        app.state.caseload, app.state.changed = caseload, 0
        watching = asyncio.create_task(count_changes(app, caseload))
        yield
    await watching


async def count_changes(app: FastAPI, caseload: Caseload) -> None:
    """Watches the change log beside the requests. A real application would invalidate a cache here."""
    try:
        async for response in caseload.watch():
            app.state.changed += len(response.change_sets)
    except grpc.aio.AioRpcError:  # the watch cannot resume, for instance without the permission
        logging.getLogger("uvicorn.error").exception("the watch has ended")


def get_caseload(request: Request) -> Caseload:
    """Returns the client of the application."""
    caseload: Caseload = request.app.state.caseload
    return caseload


HTTP_STATUSES = {
    grpc.StatusCode.NOT_FOUND: 404,
    grpc.StatusCode.ALREADY_EXISTS: 409,
    grpc.StatusCode.FAILED_PRECONDITION: 409,
    grpc.StatusCode.ABORTED: 409,
}
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
    """Answers with the reason. An error that the user of this application cannot correct gets the status 503."""
    if not isinstance(error, grpc.aio.AioRpcError):
        raise error
    details = error_info(error)
    if details.reason == "INVALID_FIELD":
        return JSONResponse({"reason": details.reason, "fields": dict(details.fields)}, status_code=400)
    status = HTTP_STATUSES.get(error.code(), 503)
    return JSONResponse({"reason": details.reason or "CASELOAD_UNAVAILABLE"}, status_code=status)
