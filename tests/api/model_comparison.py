"""A server and its reference model, which get the same calls: compares answers, changes, state and history."""

import copy
import itertools
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any, ClassVar

import grpc
from caseload_server import store
from caseload_server.config import Config
from caseload_server.rpc.server import build_server
from hypothesis.stateful import RuleBasedStateMachine, invariant

from tests.api.model_past import Past, lists
from tests.api.model_records import PATIENT, THERAPIST, Line, Period, Person, Refused
from tests.api.reference_model import Model
from tests.conftest import NewDatabase
from tests.support.api_driver import ACTIVE, ENDED, EXPIRED, PRIMARY, T0, ApiDriver, full_name, new_request_id
from tests.support.servers import refusal

THERAPISTS, PATIENTS = ("t0", "t1", "t2"), ("p0", "p1", "p2")
Sent = dict[str, Any]


class ModelComparison(RuleBasedStateMachine):
    """Sends each call to the server and to the model, and asserts that they agree."""

    called: ClassVar[set[str]] = set()
    """The RPCs that succeeded, over all runs."""
    new_database: ClassVar[NewDatabase]

    def __init__(self) -> None:
        super().__init__()
        self._stack = ExitStack()

    def open(self) -> None:
        """Starts the server, and the model without records."""
        self.model = Model(now=T0)
        self.past = Past(T0 - 1)
        config = Config("127.0.0.1:0", self._stack.enter_context(type(self).new_database()), drain_seconds=0)
        server = build_server(config, clock=lambda: self.model.now * 1_000_000)
        server.start()
        server.expiry_sweeper.stop()  # `sweep` does its work
        self.store = server.store
        self.waiting = 0
        """Seconds that pass before the next call. So a call meets what has expired and has not ended."""
        self.expired: list[str] = []
        """The assignments that expired, by the change log."""
        self._stack.callback(server.stop)
        self.api = self._stack.enter_context(ApiDriver(server.address))
        self.head = self.api.head()

    def teardown(self) -> None:
        with self._stack:
            if hasattr(self, "api"):
                self.answers_as_known_at_a_time_are_the_same()

    def both(self, rpc: str, sent: Sent, verb: Callable[[Model], list[Line]], mode: int = 0) -> None:
        """Runs the call and the model's verb; asserts the same outcome and the same log entries.

        Args: mode, 0 to call only, 1 to validate first, 2 to repeat the call afterwards.
        """
        self.remember()
        self.model.now += self.waiting
        self.waiting = 0
        self.model.expire()
        self.checks_are_the_same()
        model = copy.deepcopy(self.model)
        reason, lines = "", []
        try:
            lines = verb(model)
        except Refused as refused:
            reason = str(refused)
        else:
            self.model = model
        sent = {**sent, "request_id": new_request_id()}
        if mode == 1:
            assert self.outcome(rpc, {**sent, "validate_only": True})[0] == reason
            assert self.api.head() == self.head
        found, answer = self.outcome(rpc, sent)
        assert found == reason
        sets = self.own_changes()
        assert [[_line(change) for change in one.changes] for one in sets] == ([lines] if lines else [])
        assert all((one.actor, one.method) == ("local", full_name(rpc)) for one in sets)
        assert [one.request_id for one in sets] == [sent["request_id"]] * len(sets)
        if lines:
            assert answer.revision == self.head
            self.called.add(rpc)
        if mode == 2 and not reason:
            assert self.outcome(rpc, sent) == ("", answer)
        assert self.api.head() == self.head

    def outcome(self, rpc: str, sent: Sent) -> tuple[str, Any]:
        """Returns the error reason, or an empty reason and the response."""
        try:
            return "", self.api.send(rpc, **sent)
        except grpc.RpcError as error:
            return refusal(error).reason, None

    def own_changes(self) -> list[Any]:
        """Returns the change sets of calls since the last look. Adds what expired to `expired`."""
        sets = list(self.api.log(self.head))
        if sets:
            self.head = sets[-1].revision
        expiries = [one for one in sets if one.actor == "system:expiry"]
        self.expired += [change.assignment.assignment_id for one in expiries for change in one.changes]
        return [one for one in sets if one not in expiries]

    def stored(self) -> list[Any]:
        """Every assignment, in creation order."""
        return self.api.listed(states=[ACTIVE, ENDED])

    def sweep(self) -> None:
        """Ends what has expired, with one change set for each. So what is stored is what the model has."""
        self.store.end_expired()
        assert self.own_changes() == []
        assert len(self.expired) == len(set(self.expired))
        assert {one.assignment_id for one in self.stored() if one.end_reason == EXPIRED} <= set(self.expired)

    @invariant()
    def state_is_the_same(self) -> None:
        if not hasattr(self, "api"):
            return
        self.sweep()
        for kind, ids in ((THERAPIST, "therapist_id"), (PATIENT, "patient_id")):
            answer = self.api.send(f"List{kind.title()}s", show_deleted=True, page_size=1000)
            found = {getattr(one, ids): _person(one) for one in getattr(answer, f"{kind}s")}
            assert found == {name: self.expected(kind, name) for name in self.model.people[kind]}

    def expected(self, kind: str, name: str) -> tuple[Person, int, str]:
        """A record of the model, with the count and the primary therapist derived from its periods."""
        active = self.model.active(**{kind: name})
        primary = [one.therapist for one in active if one.role == PRIMARY and kind == PATIENT]
        return self.model.people[kind][name], len(active), "".join(primary)

    @invariant()
    def history_is_the_same(self) -> None:
        if not hasattr(self, "api"):
            return
        self.sweep()
        model = self.model
        assert [_period(one) for one in self.stored()] == model.periods
        for one, other in itertools.combinations(model.periods, 2):
            assert not one.clashes(other)
        self.checks_are_the_same()

    def remember(self) -> None:
        """Keeps what is known now."""
        self.sweep()
        self.past.remember(self.model)

    def purge(self, kind: str, ids: list[str]) -> None:
        """Purges a deleted record and those that were merged into it. It has never been, in the past too."""
        record_kind: Any = store.THERAPIST if kind == THERAPIST else store.PATIENT
        self.store.purger.purge_record(record_kind, ids[0])
        self.head = self.api.head()
        self.model.erase(kind, ids)
        self.past.erase(kind, ids)

    def answers_as_known_at_a_time_are_the_same(self) -> None:
        """Compares answers of the server about its past with those that the model would have given then."""
        self.remember()
        self.model.now += 60
        everyone = list(itertools.product(THERAPISTS, PATIENTS))
        moments = self.past.moments()
        versions = [self.api.send("ListAssignmentVersions", assignment_id=one.assignment_id) for one in self.stored()]
        for index, known_at in enumerate(moments[self.model.now % 3 :: 3]):  # another third in each run
            model, as_of = self.past.known_at(known_at), known_at + (50 if index % 2 else -25)
            known = {"known_at": {"seconds": known_at}}
            for at, times in ((known_at, known), (as_of, {**known, "as_of_time": {"seconds": as_of}})):
                assert self.api.checked(*everyone, **times) == [model.treats(*pair, at) for pair in everyone]
            for filters, expected in lists(model, known_at, as_of):
                answer = self.list_known(known_at, filters)
                assert [_period(one) for one in answer.assignments] == expected, (known_at, filters)
                assert answer.total_size == len(expected)
            valid = [one.assignment for each in versions for one in _valid_at(each, known_at)]
            assert list(self.list_known(known_at, {"states": [ACTIVE, ENDED]}).assignments) == valid

    def list_known(self, known_at: int, filters: Sent) -> Any:
        known = {"known_at": {"seconds": known_at}, "include_total_size": True}
        return self.api.send("ListAssignments", filter=filters, page_size=1000, **known)

    def checks_are_the_same(self) -> None:
        """Checks what is in force, whether or not what has expired has ended."""
        model = self.model
        for at in (model.now, model.now - 25, model.now + 50):
            everyone = list(itertools.product(THERAPISTS, PATIENTS))
            in_force = [model.treats(*pair, at) for pair in everyone]
            assert self.api.checked(*everyone, as_of_time={"seconds": at}) == in_force


def _person(one: Any) -> tuple[Person, int, str]:
    identifier = "".join(each.value for each in one.identifiers)
    person = Person(one.display_name, one.status, identifier=identifier, deleted=one.HasField("delete_time"))
    person.aliases = list(one.aliases)
    if one.DESCRIPTOR.name == "Patient":
        person.merged_into = one.merged_into_patient_id
        return person, one.active_therapist_count, one.primary_therapist_id
    if one.HasField("max_active_patients"):
        person.max_active_patients = one.max_active_patients
    return person, one.active_patient_count, ""


def _period(one: Any) -> Period:
    end = one.end_time.seconds if one.HasField("end_time") else None
    expire = one.expire_time.seconds if one.HasField("expire_time") else None
    assert (one.state == ENDED) == (end is not None) == (one.ended_by in ("local", "system:expiry"))
    times = (one.start_time.seconds, end, one.end_reason, expire)
    return Period(one.therapist_id, one.patient_id, one.role, one.focus, *times)


def _valid_at(answer: Any, at: int) -> list[Any]:
    """The version of a record at a time, if it was created by then. Versions come newest first."""
    return [one for one in answer.versions if one.from_time.seconds <= at][:1]


def _line(change: Any) -> Line:
    of = change.assignment if change.WhichOneof("resource") == "assignment" else change
    return change.kind, of.therapist_id, of.patient_id, tuple(sorted(change.changed_fields))
