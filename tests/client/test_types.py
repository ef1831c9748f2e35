"""What a type checker says about code that calls the client."""

import re

import pytest

from tests.support.type_checker import mypy

pytestmark = [pytest.mark.checkout, pytest.mark.slow]

CALLER = """
import grpc
from caseload.client import aio, connect, error_info, pages
from caseload.v1 import therapist_service_pb2 as pb

GET, LIST = pb.GetTherapistRequest(), pb.ListTherapistsRequest()

def reason(error: grpc.RpcError) -> bool:
    return error_info(error).reason == "THERAPIST_NOT_FOUND"

with connect("127.0.0.1:1") as caseload:
    reveal_type(caseload.therapists.GetTherapist(GET))
    reveal_type(caseload.therapists.GetTherapist.future(GET).result())
    reveal_type(next(pages(caseload.therapists.ListTherapists, LIST)))
    reveal_type(next(caseload.watch()))

async def call() -> None:
    async with aio.connect("127.0.0.1:1") as caseload:
        reveal_type(await caseload.therapists.GetTherapist(GET))
        reveal_type(await anext(aio.pages(caseload.therapists.ListTherapists, LIST)))
        reveal_type(await anext(caseload.watch()))
"""


def test_every_call_has_the_type_of_its_response() -> None:
    said = mypy(CALLER)
    revealed = re.findall(r'Revealed type is "caseload\.v1\.\w+\.(\w+)"', said)
    asynchronous = ["GetTherapistResponse", "ListTherapistsResponse", "WatchChangesResponse"]
    assert revealed == ["GetTherapistResponse", *asynchronous, *asynchronous]
    assert "Success" in said


@pytest.mark.parametrize(
    ("right", "wrong", "mistake"),
    [
        ("THERAPIST_NOT_FOUND", "THERAPIST_NOT_FUOND", "comparison-overlap"),
        ("GetTherapist(GET)", "GetTherapist(LIST)", "arg-type"),
        ("ListTherapists, LIST", "ListTherapists, GET", "arg-type"),
        ("await caseload", "caseload", "unused-coroutine|CoroutineType|UnaryUnaryCall"),
    ],
)
def test_a_mistake_is_found(right: str, wrong: str, mistake: str) -> None:
    assert right in CALLER
    assert re.search(mistake, mypy(CALLER.replace(right, wrong)))
