"""The REST server that this project replaces, in its simplest form: FastAPI, pydantic models and a dict.

    uvicorn --app-dir benchmarks fastapi_baseline:app

Its therapists have the same fields. It stores nothing on disk, authenticates no caller and validates only types.
"""

from datetime import UTC, datetime
from uuid import uuid4

from fastapi import FastAPI, HTTPException
from pydantic import BaseModel

app = FastAPI()


class Identifier(BaseModel):
    """An identifier of a therapist in another system."""

    system: str
    value: str


class NewTherapist(BaseModel):
    """The request."""

    display_name: str
    email: str = ""
    status: str = "ACTIVE"
    identifiers: list[Identifier] = []
    specialties: list[str] = []
    max_active_patients: int | None = None
    annotations: dict[str, str] = {}


class Therapist(NewTherapist):
    """The response."""

    therapist_id: str
    active_patient_count: int = 0
    create_time: datetime
    update_time: datetime
    etag: str


therapists: dict[str, Therapist] = {}


@app.post("/therapists", status_code=201)
async def create_therapist(new: NewTherapist) -> Therapist:
    """Adds a therapist."""
    now = datetime.now(UTC)
    therapist = Therapist(
        **new.model_dump(), therapist_id=str(uuid4()), create_time=now, update_time=now, etag=uuid4().hex[:16]
    )
    therapists[therapist.therapist_id] = therapist
    return therapist


@app.get("/therapists/{therapist_id}")
async def get_therapist(therapist_id: str) -> Therapist:
    """Returns one therapist."""
    if therapist_id not in therapists:
        raise HTTPException(status_code=404, detail="no such therapist")
    return therapists[therapist_id]


@app.get("/therapists")
async def list_therapists() -> list[Therapist]:
    """Returns all therapists."""
    return list(therapists.values())
