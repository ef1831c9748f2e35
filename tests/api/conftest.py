from collections.abc import Iterator

import pytest
from caseload_server.rpc.server import CaseloadServer

from tests.api.client_calls import SIDES, People, Side
from tests.support.api_driver import ApiDriver
from tests.support.servers import Client


@pytest.fixture(params=SIDES)
def people(client: Client, request: pytest.FixtureRequest) -> People:
    """Therapists, then patients: for behaviour that both share."""
    return People(client, request.param)


@pytest.fixture(params=SIDES)
def shared_people(shared_client: Client, request: pytest.FixtureRequest) -> People:
    """As `people`, for tests that do not see what the others store."""
    return People(shared_client, request.param)


@pytest.fixture
def therapists(client: Client) -> People:
    return People(client, "Therapist")


@pytest.fixture
def patients(client: Client) -> People:
    return People(client, "Patient")


@pytest.fixture(params=SIDES)
def side(client: Client, request: pytest.FixtureRequest) -> Side:
    """One service, then the other, with therapist t1 and patient p1 created."""
    assigning = Side(client, request.param)
    assigning.therapists.create("t1")
    assigning.patients.create("p1")
    return assigning


@pytest.fixture
def api(server: CaseloadServer) -> Iterator[ApiDriver]:
    """Therapists t1 to t3 and patients p1 to p3."""
    with ApiDriver(server.address) as opened:
        opened.therapists("t1", "t2", "t3")
        opened.patients("p1", "p2", "p3")
        yield opened
