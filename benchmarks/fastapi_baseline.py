"""The server that this project takes the place of, as a beginner writes it: FastAPI, pydantic models and a dict.

    uvicorn --app-dir benchmarks fastapi_baseline:app

Its therapists have the fields of ours. It keeps nothing on disk, knows no caller and checks no more than types.
"""

from datetime import UTC, datetime
from uuid import uuid4

from fastapi import FastAPI, HTTPException
from pydantic import BaseModel

app = FastAPI()


class Identifier(BaseModel):
    """A number that others know a therapist by."""

    system: str
    value: str


class NewTherapist(BaseModel):
    """What a caller sends."""

    display_name: str
    email: str = ""
    status: str = "ACTIVE"
    identifiers: list[Identifier] = []
    specialties: list[str] = []
    max_active_patients: int | None = None
    annotations: dict[str, str] = {}


class Therapist(NewTherapist):
    """What a caller is answered."""

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
    """One therapist."""
    if therapist_id not in therapists:
        raise HTTPException(status_code=404, detail="no such therapist")
    return therapists[therapist_id]


@app.get("/therapists")
async def list_therapists() -> list[Therapist]:
    """All of them."""
    return list(therapists.values())
