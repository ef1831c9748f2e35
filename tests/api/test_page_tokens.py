"""Pages: tokens, sizes, order, and the 2 MiB limit that ends a page early."""

import base64
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import grpc
import pytest
from caseload_server.config import Config
from caseload_server.rpc.server import CaseloadServer, build_server
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.api.client_calls import SIDES, People, Side, call, covers, refused
from tests.api.sample_values import METHODS, SAMPLES, is_ours
from tests.conftest import NewDatabase
from tests.store.store_builders import crowd
from tests.support.api_driver import RPCS, number
from tests.support.api_driver import request as request_of
from tests.support.servers import Client, refusal
from tests.support.waiting import NEVER_SECONDS

ALPHABET = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
MIB = 1024 * 1024
RECORD = 32 * 1024
MAXIMAL = 200
SIGNED_BYTES = 24
"""Bytes before the id in a token: the signature and the digest that binds it to the request."""


class Lister:
    """One of the paged RPCs, on a store with five records, or five versions, for each."""

    def __init__(self, client: Client, rpc: str) -> None:
        self.rpc = rpc
        self.input: Any = RPCS[rpc].input_type
        service = RPCS[rpc].containing_service.name.removesuffix("Service")
        self.of_people = rpc == f"List{service}s" and service in SIDES
        self.side = Side(client, service if service in SIDES else SIDES[0])
        self.of_versions = rpc.endswith("Versions")
        own = f"{service.lower()}_id"
        self.parent = {own: f"{own[0]}0"} if own in self.input.fields_by_name else {}
        if own == "assignment_id" and self.parent:
            self.parent = {own: SAMPLES[own]}

    def __call__(self, **fields: Any) -> Any:
        return call(self.side.client, RPCS[self.rpc], request_of(self.rpc, **self.parent | fields))

    def ids(self, response: Any) -> list[str]:
        """The ids on a page, in ascending order. Of versions, which come newest first, how old they are."""
        if self.of_people:
            return self.side.mine.ids(response)
        if self.of_versions:
            return [f"{10**6 - number(version.from_revision)}" for version in response.versions]
        found = [entry.assignment for entry in response.entries] if self.parent else response.assignments
        return [assignment.assignment_id for assignment in found]

    def last(self, response: Any) -> str:
        """The position of a page of one record."""
        return str(number(response.revision) + 1) if self.of_versions else self.ids(response)[0]

    def walk(self, sizes: Callable[[], int], **fields: Any) -> list[str]:
        seen: list[str] = []
        token = ""
        for _ in range(1000):
            response = self(page_size=sizes(), page_token=token, **fields)
            seen += self.ids(response)
            token = response.next_page_token
            if not token:
                return seen
        raise AssertionError("no end")


LISTS = [method.name for method in METHODS if "page_token" in method.input_type.fields_by_name]


@pytest.fixture(scope="module", params=LISTS)
def lister(new_database: NewDatabase, request: pytest.FixtureRequest) -> Iterator[Lister]:
    """A lister shared by tests that only read."""
    with new_database() as url, serving(url) as client:
        yield filled(Lister(client, request.param))


def filled(listing: Lister) -> Lister:
    for n in range(5):
        listing.side.therapists.create(f"t{n}", display_name="Canary Anders")
        listing.side.patients.create(f"p{n}", display_name="Canary Anders")
    for n in range(1, 5):
        for pair in (("t0", f"p{n}"), (f"t{n}", "p0")):
            listing.side.assign(*pair, focus="canary-focus")
    listing.side.assign("t0", "p0")
    for n in range(1, 5) if listing.rpc == "ListAssignments" else ():
        listing.side.unassign(f"t{n}", "p0")
    if listing.of_versions:
        add_versions(listing)
    return listing


def add_versions(listing: Lister) -> None:
    """Changes the record four times."""
    if "assignment_id" in listing.parent:
        found = call(listing.side.client, RPCS["ListAssignments"], request_of("ListAssignments"))
        listing.parent = {"assignment_id": found.assignments[0].assignment_id}
        for n in range(4):
            sent = request_of("UpdateAssignment", assignment={**listing.parent, "focus": f"canary-{n}"})
            call(listing.side.client, RPCS["UpdateAssignment"], sent)
    else:
        for n in range(4):
            listing.side.mine.update(f"{listing.side.name[0]}0", display_name=f"Canary {n}")


def test_every_list_rpc_is_tested() -> None:
    assert len(LISTS) == 8


@covers(
    "List{A}sRequest.page_token",
    "List{A}{B}sRequest.page_token",
    "ListAssignmentsRequest.page_token",
    "List{A}VersionsRequest.page_token",
    "ListAssignmentVersionsRequest.page_token",
)
@settings(max_examples=15)
@given(data=st.data())
def test_pages_of_any_size_return_each_record_once_in_order(lister: Lister, data: st.DataObject) -> None:
    seen = lister.walk(lambda: data.draw(st.integers(0, 6)))
    assert seen == sorted(seen)
    assert len(seen) == len(set(seen)) == 5


@covers(
    "List{A}sRequest.page_size",
    "List{A}{B}sRequest.page_size",
    "ListAssignmentsRequest.page_size",
    "List{A}VersionsRequest.page_size",
    "ListAssignmentVersionsRequest.page_size",
)
def test_a_page_respects_its_size_and_the_last_page_has_no_token(lister: Lister) -> None:
    first = lister(page_size=3)
    assert len(lister.ids(first)) == 3
    second = lister(page_size=2, page_token=first.next_page_token)
    assert len(lister.ids(second)) == 2
    assert second.next_page_token == ""
    assert first.revision == second.revision == lister.side.head()


def test_a_negative_page_size_is_rejected(lister: Lister) -> None:
    assert refused(lister, page_size=-1).fields == ["page_size"]


def test_a_token_can_be_reused_with_another_page_size(lister: Lister) -> None:
    token = lister(page_size=1).next_page_token
    rest = lister.ids(lister(page_token=token))
    assert rest == lister.ids(lister(page_token=token, page_size=1000))
    assert len(rest) == 4


def test_a_token_is_bound_to_every_other_field(lister: Lister) -> None:
    token = lister(page_size=1).next_page_token
    changes: list[dict[str, Any]] = []
    for field in lister.input.fields:
        if is_ours(field):
            changes += [{field.name: {part.name: SAMPLES[part.name]}} for part in field.message_type.fields]
        elif field.name not in {"page_size", "page_token"}:
            changes.append({field.name: SAMPLES[field.name]})
    assert len(changes) >= (1 if lister.of_versions else 4)
    for change in changes:
        assert refused(lister, page_token=token, **change).reason == "PAGE_TOKEN_MISMATCH", change


def test_a_token_is_bound_to_its_method(lister: Lister) -> None:
    token = lister(page_size=1).next_page_token
    for rpc in LISTS:
        if rpc != lister.rpc:
            assert refused(Lister(lister.side.client, rpc), page_token=token).reason == "PAGE_TOKEN_MISMATCH"


def test_a_damaged_token_is_rejected(lister: Lister) -> None:
    token = lister(page_size=1).next_page_token
    damaged = [f"{token[:n]}{ALPHABET[ALPHABET.index(old) ^ 1]}{token[n + 1 :]}" for n, old in enumerate(token)]
    damaged += [token[:-1], token + "A", token * 2, token.swapcase(), f" {token}", "A", "not base64!", "é", "\x00"]
    damaged += [token + padding for padding in ("=", "==", "====")]
    assert [other for other in damaged if not is_invalid(lister, other)] == []


def is_invalid(lister: Lister, token: str) -> bool:
    try:
        lister(page_token=token)
    except grpc.RpcError as error:
        return refusal(error).reason == "PAGE_TOKEN_INVALID"
    return False


@pytest.mark.parametrize(("ours", "theirs"), [("-", "+"), ("_", "/")])
def test_a_token_in_the_other_base64_alphabet_is_rejected(people: People, ours: str, theirs: str) -> None:
    for one in "ab":
        people.create(one, display_name="x" * 100)
    for length in range(2, 100):
        wanted = {"name_prefix": "x" * length}
        token = people.call("List", page_size=1, filter=wanted).next_page_token
        if ours in token:
            break
    found = refused(people.call, "List", filter=wanted, page_token=token.replace(ours, theirs))
    assert found.reason == "PAGE_TOKEN_INVALID"


def test_a_token_of_another_store_is_rejected(lister: Lister, new_database: NewDatabase) -> None:
    token = lister(page_size=1).next_page_token
    with new_database() as url, serving(url) as other:
        elsewhere = Lister(other, lister.rpc)
        elsewhere.side.mine.create(f"{elsewhere.side.name[0]}0")
        assert is_invalid(elsewhere, token)


def test_a_token_stays_valid_after_a_restart(database_url: str) -> None:
    with serving(database_url) as client:
        people = People(client, "Patient")
        for one in "abc":
            people.create(one)
        token = people.call("List", page_size=1).next_page_token
    with serving(database_url) as client:
        people = People(client, "Patient")
        assert people.ids(people.call("List", page_token=token)) == ["b", "c"]


def test_a_token_contains_only_the_last_id_or_revision(lister: Lister) -> None:
    fields = {"filter": {"name_prefix": "canary"}} if lister.of_people else {}
    response = lister(page_size=1, **fields)
    body = base64.urlsafe_b64decode(response.next_page_token + "===")
    assert body[SIGNED_BYTES:].decode() == lister.last(response)
    assert b"anary" not in body
    assert len(body) == SIGNED_BYTES + len(lister.last(response))


def test_the_page_size_defaults_to_50_and_is_at_most_1000(server: CaseloadServer, client: Client) -> None:
    people = People(client, "Patient")
    People(client, "Therapist").create("t1")
    crowd(server.store, "t1", 1002)
    for size, count in ((0, 50), (1000, 1000), (1001, 1000), (2**31 - 1, 1000)):
        assert len(people.ids(people.call("List", page_size=size))) == count


@pytest.fixture(scope="module")
def maximal(new_database: NewDatabase) -> Iterator[Side]:
    """More than three pages of patients of 32 KiB each, all assigned to one therapist."""
    with new_database() as url, serving(url) as client:
        side = Side(client, "Therapist")
        side.therapists.create("t1")
        annotations = {f"{n:02}": "a" * 1000 for n in range(32)}

        def add(n: int) -> None:
            side.patients.create(f"p{n:04}", display_name="n" * 100, annotations=annotations)
            side.assign("t1", f"p{n:04}")

        in_parallel(add, MAXIMAL)
        yield side


def test_a_page_of_maximal_records_ends_at_2_mib(maximal: Side) -> None:
    record = maximal.patients.get("p0000")
    assert RECORD - 512 < record.ByteSize() <= RECORD
    page = maximal.patients.call("List", page_size=1000)
    assert 2 * MIB - 2 * RECORD < page.ByteSize() <= 2 * MIB + RECORD
    assert page.next_page_token


def test_a_page_of_assignments_with_maximal_records_ends_at_2_mib(maximal: Side) -> None:
    page = maximal.page(page_size=1000)
    assert 2 * MIB - 2 * RECORD < page.ByteSize() <= 2 * MIB + RECORD
    assert page.next_page_token


@pytest.mark.parametrize("rpc", ["ListPatients", "ListTherapistPatients"])
def test_pages_that_end_early_still_return_each_record_once(maximal: Side, rpc: str) -> None:
    listing = Lister(maximal.client, rpc)
    listing.parent = dict.fromkeys(listing.parent, "t1")
    seen = listing.walk(lambda: 1000)
    assert len(seen) == len(set(seen)) == MAXIMAL
    assert seen == sorted(seen)


def test_100_maximal_records_fit_into_one_response(maximal: Side) -> None:
    response = maximal.patients.call("BatchGet", ids=[f"p{n:04}" for n in range(100)])
    assert 100 * (RECORD - 512) < response.ByteSize() < 4 * MIB


def in_parallel(work: Callable[[int], object], count: int) -> None:
    """Runs work(0) to work(count - 1) concurrently, so that writes share commits."""
    with ThreadPoolExecutor(32) as threads:
        for _ in threads.map(work, range(count)):
            pass


@contextmanager
def serving(url: str) -> Iterator[Client]:
    """A server on this database, and a client of it."""
    config = Config(address="127.0.0.1:0", database=url, drain_seconds=0, queue_timeout_seconds=NEVER_SECONDS)
    server = build_server(config)
    server.start()
    client = Client(server.address)
    yield client
    client.close()
    server.stop()
