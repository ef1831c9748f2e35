"""BatchCreate passes its entries to the store and names the one that is rejected; tests/store has its rules."""

from typing import Any

from tests.api.client_calls import People, covers, refused
from tests.support.api_driver import new_request_id

MRN = {"system": "urn:example:mrn", "value": "1"}


def send(people: People, *entries: dict[str, Any], **fields: Any) -> Any:
    """Sends a batch. `id` and `record` of an entry stand for the fields that are named after the kind."""
    names = {"id": f"{people.name}_id", "record": people.name}
    sent = [{names.get(key, key): value for key, value in entry.items()} for entry in entries]
    return people.send(f"BatchCreate{people.kind}s", requests=sent, **fields)


def entry(record_id: str = "", **fields: Any) -> dict[str, Any]:
    return {"id": record_id, "record": {"display_name": "Ann Lee", **fields}}


@covers("BatchCreate{A}sRequest.requests")
def test_a_batch_returns_the_records_in_request_order(people: People) -> None:
    answer = send(people, entry("b", email="b@example.org"), entry(), entry("a", identifiers=[MRN]))
    found = people.records(answer)
    assert [people.get(people.id_of(record)) for record in found] == list(found)
    assert (found[0].email, people.id_of(found[2]), found[2].identifiers[0].value) == ("b@example.org", "a", "1")
    assert answer.revision == people.head()
    again = send(people, entry())
    assert people.id_of(people.records(again)[0]) not in people.ids(answer)


def test_a_rejected_entry_is_named_and_nothing_is_written(people: People) -> None:
    holder = people.create("a", identifiers=[MRN])
    before = people.head()
    found = refused(send, people, entry("b"), entry("a"))
    assert (found.reason, found.metadata) == ("ID_TAKEN", {"index": "1"})
    found = refused(send, people, entry("b"), entry("c"), entry("d", identifiers=[MRN]))
    assert (found.reason, found.metadata) == ("IDENTIFIER_TAKEN", {"index": "2"})
    assert found.details["ResourceInfo"].resource_name == people.id_of(holder)
    found = refused(send, people, entry("b"), entry("b"))
    assert (found.reason, found.metadata) == ("ID_TAKEN", {"index": "1", "other_index": "0"})
    assert people.head() == before


def invalid(name: str) -> list[tuple[list[dict[str, Any]], list[str]]]:
    """Entries of a batch, and the fields that the error names."""
    return [
        ([], ["requests"]),
        ([entry()] * 101, ["requests"]),
        ([entry()] * 7 + [entry(display_name="")], [f"requests[7].{name}.display_name"]),
        ([entry("A"), {"id": "a"}], [f"requests[0].{name}_id", f"requests[1].{name}"]),
        (
            [entry(), entry(identifiers=[MRN, {"system": "x"}])],
            [
                f"requests[1].{name}.identifiers[1].system",
                f"requests[1].{name}.identifiers[1].value",
            ],
        ),
        ([entry() | {"request_id": new_request_id()}], ["requests[0].request_id"]),
        ([entry(), entry() | {"validate_only": True}], ["requests[1].validate_only"]),
    ]


def test_an_invalid_entry_is_rejected_with_its_path(people: People) -> None:
    for batch, fields in invalid(people.name):
        found = refused(send, people, *batch)
        assert (found.reason, found.fields) == ("INVALID_FIELD", fields), str(batch)[-60:]


def test_a_record_above_32_kib_is_rejected_with_its_path(people: People) -> None:
    large = entry(annotations={f"{n:02}": "x" * 1000 for n in range(32)}, aliases=[f"{n}" * 200 for n in range(10)])
    assert refused(send, people, entry(), large).fields == [f"requests[1].{people.name}"]


@covers("BatchCreate{A}sRequest.request_id")
def test_a_replay_returns_the_result_of_the_first_call(people: People) -> None:
    sent = {"request_id": new_request_id()}
    first = send(people, entry(), entry("b"), **sent)
    assert send(people, entry(), entry("b"), **sent) == first
    assert refused(send, people, entry(), **sent).reason == "REQUEST_ID_REUSED"
    assert refused(send, people, entry(), request_id="x").fields == ["request_id"]


@covers("BatchCreate{A}sRequest.validate_only")
def test_validating_a_batch_writes_nothing_and_leaves_generated_values_empty(people: People) -> None:
    people.create("a")
    before = people.head()
    answer = send(people, entry(), entry("b"), validate_only=True)
    assert people.ids(answer) == ["", "b"]
    assert [record.etag for record in people.records(answer)] == ["", ""]
    assert (answer.revision, people.head()) == ("", before)
    assert refused(send, people, entry("a"), validate_only=True).metadata == {"index": "0"}
