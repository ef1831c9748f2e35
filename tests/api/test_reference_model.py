"""Random calls of every mutating RPC, compared with the reference model.

State, history, change log and the answers as they were known at each time match.
"""

import copy

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import initialize, rule, run_state_machine_as_test

from tests.api.model_comparison import PATIENTS, THERAPISTS, ModelComparison, Sent
from tests.api.model_records import IDLE, PATIENT, THERAPIST, Line, Period
from tests.api.reference_model import Model
from tests.conftest import NewDatabase
from tests.support.api_driver import COMPLETED, PRIMARY, READS, RPCS, THERAPIST_UNAVAILABLE, TREATING

pytestmark = pytest.mark.slow

ALL_IDS = {THERAPIST: (*THERAPISTS, "t3"), PATIENT: (*PATIENTS, "p3")}

modes = st.integers(0, 2)
"""Call only (0), validate first (1), or repeat afterwards (2)."""
kinds = st.sampled_from([THERAPIST, PATIENT])
indexes = st.integers(0, 3)
identifiers = st.sampled_from(["", "1", "1", "2"])
therapists, patients = st.sampled_from(ALL_IDS[THERAPIST]), st.sampled_from(ALL_IDS[PATIENT])
roles, focuses = st.sampled_from([1, 1, 2, 3]), st.sampled_from(["", "", "grief"])
offsets = st.none() | st.integers(-40, 30)
"""Offsets from now in seconds."""
spans = st.tuples(st.integers(-200, 20), st.integers(0, 30))
"""Offset of the start of a finished period from now, and its length, in seconds."""
Span = tuple[int, int]
Said = tuple[int, str, int | None, int | None]
"""Role, focus, and offsets of start and planned end from now."""
plans = st.none() | st.integers(-5, 60)
"""Offsets of an expire_time from now in seconds."""
reasons = st.sampled_from([0, 1, 5])
DEFAULT_REASONS = {THERAPIST: THERAPIST_UNAVAILABLE, PATIENT: COMPLETED}
flags = st.booleans()

NO_FLAGS: Sent = dict.fromkeys(("replace", "replace_primary", "demote_primary", "ignore_capacity"), False)
Pair = tuple[str, str]
pairs = st.tuples(therapists, patients)
each = st.fixed_dictionaries


class CaseloadBesideItsModel(ModelComparison):
    """Sends the same calls, chosen at random, to one server and one model."""

    @initialize()
    def start(self) -> None:
        self.open()
        for one in THERAPISTS:
            self.create(THERAPIST, one)
        for one in PATIENTS:
            self.create(PATIENT, one)
        self.once_each()

    def once_each(self) -> None:
        """Calls each RPC successfully once, independent of the random steps."""
        for kind in (THERAPIST, PATIENT):
            self.update(kind, 2, {"display_name": "Bob Ray"}, None, 0)
            self.delete(kind, 2, 0, force=False)
            self.undelete(kind, 2, 0, release_identifiers=False)
            self.once_by_a_taken_identifier(kind)
            self.create_many(kind, [(8, ""), (9, "8")], 0)
        for rpc, pair, role in (
            ("AssignPatient", ("t0", "p0"), PRIMARY),
            ("AssignTherapist", ("t0", "p1"), TREATING),
            ("AssignPatient", ("t1", "p1"), PRIMARY),
        ):
            self.assign(rpc, pair, (role, "", -30, None), NO_FLAGS, 0)
        self.unassign("UnassignPatient", ("t0", "p0"), 1, -10, 0)
        self.unassign("UnassignTherapist", ("t1", "p1"), 0, None, 0)
        self.assign_finished("AssignPatient", ("t0", "p0"), (TREATING, "", 0), (-60, 10), 0)
        self.batch([(("t0", "p1"), TREATING, (-80, 10)), (("t1", "p0"), PRIMARY, None)], 0)
        for focus in ("grief", "", "grief"):  # versions at several times
            self.correct(0, {"focus": focus}, {"start": -20}, 0)
            self.time_passes(2)
        self.transfer(("t0", "t1"), [], None, 0, ignore_capacity=False)
        self.transfer(("t1", "t2"), ["p0"], 0, 0, ignore_capacity=False)
        self.time_passes(60)
        self.transfer(("t2", "t1"), ["p0"], -30, 0, ignore_capacity=False)
        self.assign("AssignPatient", ("t0", "p1"), (TREATING, "", None, 60), NO_FLAGS, 0)
        self.merge(("p1", "p2"), 0)
        assert any(one.patient == "p2" and one.expire for one in self.model.active())
        self.time_passes(10)
        self.unmerge("p1", 0)
        self.time_passes(10)

    def once_by_a_taken_identifier(self, kind: str) -> None:
        """Undeletes a record whose identifier another one has by now."""
        name = {"display_name": "Ann Lee"}
        self.update(kind, 2, {**name, "identifier": "9"}, None, 0)
        self.delete(kind, 2, 0, force=False)
        self.update(kind, 1, {**name, "identifier": "9"}, None, 0)
        for release_identifiers in (False, True):
            self.undelete(kind, 2, 1, release_identifiers=release_identifiers)
        assert self.model.people[kind][ALL_IDS[kind][2]].identifier == ""
        self.update(kind, 1, {**name, "identifier": ""}, None, 0)

    @rule(seconds=st.integers(0, 60))
    def time_passes(self, seconds: int) -> None:
        self.waiting += seconds

    @rule(kind=kinds, index=indexes)
    def create_one(self, kind: str, index: int) -> None:
        self.create(kind, ALL_IDS[kind][index])

    def create(self, kind: str, one: str) -> None:
        sent = {f"{kind}_id": one, kind: {"display_name": "Ann Lee"}}
        self.both(f"Create{kind.title()}", sent, lambda model: model.create(kind, one))

    @rule(kind=kinds, entries=st.lists(st.tuples(st.integers(3, 9), identifiers), min_size=1, max_size=3), mode=modes)
    def create_many(self, kind: str, entries: list[tuple[int, str]], mode: int) -> None:
        ids = [f"{kind[0]}{number}" for number, _ in entries]
        bodies = [
            {"display_name": "Ann Lee", "identifiers": [{"system": "urn:x", "value": value} for value in identifier]}
            for _, identifier in entries
        ]
        sent = {"requests": [{f"{kind}_id": one, kind: body} for one, body in zip(ids, bodies, strict=True)]}

        def verb(model: Model) -> list[Line]:
            created = zip(ids, entries, strict=True)
            return [line for one, (_, identifier) in created for line in model.create(kind, one, identifier)]

        self.both(f"BatchCreate{kind.title()}s", sent, verb, mode)

    @rule(
        kind=kinds,
        index=indexes,
        asked=each(
            {"display_name": st.sampled_from(["Ann Lee", "Bob Ray"])},
            optional={
                "status": st.integers(1, 3),
                "max_active_patients": st.integers(0, 2),
                "identifier": identifiers,
            },
        ),
        force=st.none() | st.sampled_from([0, 1, 5]),
        mode=modes,
    )
    def update(self, kind: str, index: int, asked: Sent, force: int | None, mode: int) -> None:
        one = ALL_IDS[kind][index]
        if kind == PATIENT:
            asked.pop("max_active_patients", None)
        if "status" in asked:
            asked["status"] = min(asked["status"], IDLE[kind])
        body = {f"{kind}_id": one, **asked}
        if (value := body.pop("identifier", "")) != "":
            body["identifiers"] = [{"system": "urn:x", "value": value}]
        mask = ["identifiers" if name == "identifier" else name for name in asked]
        sent: Sent = {kind: body, "update_mask": {"paths": mask}, "force": force is not None, "end_reason": force or 0}
        reason = None if force is None else force or DEFAULT_REASONS[kind]
        self.both(f"Update{kind.title()}", sent, lambda model: model.update(kind, one, asked, reason), mode)

    @rule(kind=kinds, index=indexes, force=flags, mode=modes)
    def delete(self, kind: str, index: int, mode: int, *, force: bool) -> None:
        one = ALL_IDS[kind][index]
        sent = {f"{kind}_id": one, "force": force}
        self.both(f"Delete{kind.title()}", sent, lambda model: model.delete(kind, one, force=force), mode)

    @rule(kind=kinds, index=indexes, mode=modes, release_identifiers=flags)
    def undelete(self, kind: str, index: int, mode: int, *, release_identifiers: bool) -> None:
        gone = [one for one, person in self.model.people[kind].items() if person.deleted]
        one = gone[0] if gone else ALL_IDS[kind][index]  # otherwise all records are soon deleted
        sent = {f"{kind}_id": one, "release_identifiers": release_identifiers}

        def verb(model: Model) -> list[Line]:
            return model.undelete(kind, one, release_identifiers=release_identifiers)

        self.both(f"Undelete{kind.title()}", sent, verb, mode)

    @rule(
        rpc=st.sampled_from(["AssignPatient", "AssignTherapist"]),
        pair=pairs,
        said=st.tuples(roles, focuses, offsets, plans),
        chosen=each(dict.fromkeys(NO_FLAGS, flags)),
        mode=modes,
    )
    def assign(self, rpc: str, pair: Pair, said: Said, chosen: Sent, mode: int) -> None:
        role, focus, *offsets = said
        now = self.model.now + self.waiting
        start, expire = (None if offset is None else now + offset for offset in offsets)
        times = {"start_time": start, "expire_time": expire}
        sent = {**_ids(pair), "role": role, "focus": focus, **chosen}
        sent |= {name: {"seconds": time} for name, time in times.items() if time is not None}
        self.both(
            rpc, sent, lambda model: model.assign(Period(*pair, role, focus, 0, expire=expire), start, chosen), mode
        )

    @rule(
        rpc=st.sampled_from(["AssignPatient", "AssignTherapist"]),
        pair=pairs,
        said=st.tuples(roles, focuses, reasons),
        span=spans,
        mode=modes,
    )
    def assign_finished(self, rpc: str, pair: Pair, said: tuple[int, str, int], span: Span, mode: int) -> None:
        sent, wanted = self.finished(pair, said, span)
        self.both(rpc, sent, lambda model: model.record(copy.copy(wanted)), mode)

    def finished(self, pair: Pair, said: tuple[int, str, int], span: Span) -> tuple[Sent, Period]:
        """The request for a finished period, and the period. Args: span, offset of the start from now, and length."""
        (role, focus, reason), start = said, self.model.now + self.waiting + span[0]
        wanted = Period(*pair, role, focus, start, start + span[1], reason)
        sent = {**_ids(pair), "role": role, "focus": focus, "end_reason": reason}
        return {**sent, "start_time": {"seconds": start}, "end_time": {"seconds": start + span[1]}}, wanted

    @rule(entries=st.lists(st.tuples(pairs, roles, st.none() | spans), min_size=1, max_size=4), mode=modes)
    def batch(self, entries: list[tuple[Pair, int, Span | None]], mode: int) -> None:
        """A batch of active assignments, which have no span, and of finished ones."""
        sent = [
            self.finished(pair, (role, "", 0), span)[0] if span else {**_ids(pair), "role": role}
            for pair, role, span in entries
        ]

        def verb(model: Model) -> list[Line]:
            lines: list[Line] = []
            for pair, role, span in entries:
                if span:
                    lines += model.record(self.finished(pair, (role, "", 0), span)[1])
                else:
                    lines += model.assign(Period(*pair, role, "", 0), None, NO_FLAGS)
            return lines

        self.both("BatchAssign", {"requests": sent}, verb, mode)

    @rule(
        rpc=st.sampled_from(["UnassignPatient", "UnassignTherapist"]),
        pair=pairs | st.just(("t1", "p0")),
        reason=reasons,
        offset=offsets,
        mode=modes,
    )
    def unassign(self, rpc: str, pair: Pair, reason: int, offset: int | None, mode: int) -> None:
        sent, end = {**_ids(pair), "end_reason": reason}, None
        if offset is not None:
            end = self.model.now + self.waiting + offset
            sent["end_time"] = {"seconds": end}
        self.both(rpc, sent, lambda model: model.unassign(*pair, end, reason), mode)

    @rule(
        index=st.integers(0, 50),
        said=each({}, optional={"focus": focuses, "end_reason": reasons}),
        moved=each({}, optional={"start": st.integers(-40, 30), "end": st.integers(-40, 30), "expire": plans}),
        mode=modes,
    )
    def correct(self, index: int, said: Sent, moved: Sent, mode: int) -> None:
        stored = self.stored()
        if not stored:
            return
        index %= len(stored)
        now = self.model.now + self.waiting
        times = {name: None if offset is None else now + offset for name, offset in moved.items()}
        body = {"assignment_id": stored[index].assignment_id, **said}
        body |= {f"{name}_time": {"seconds": time} for name, time in times.items() if time is not None}
        paths = ["assignment_id", *said, *(f"{name}_time" for name in times)]
        sent = {"assignment": body, "update_mask": {"paths": paths}}
        wanted = {**said, **times}
        self.both("UpdateAssignment", sent, lambda model: model.correct(model.periods[index], wanted), mode)

    @rule(
        asked=st.tuples(therapists, therapists),
        some=st.lists(patients, max_size=2),
        offset=offsets,
        ignore_capacity=flags,
        mode=modes,
    )
    def transfer(self, asked: Pair, some: list[str], offset: int | None, mode: int, *, ignore_capacity: bool) -> None:
        source, target = asked
        if source == target:
            return

        effective = None if offset is None else self.model.now + offset

        def verb(model: Model) -> list[Line]:
            return model.transfer(source, target, some, effective, ignore_capacity=ignore_capacity)

        sent: Sent = {"source_therapist_id": source, "target_therapist_id": target, "patient_ids": some}
        sent["ignore_capacity"] = ignore_capacity
        if effective is not None:
            sent["effective_time"] = {"seconds": effective}
        self.both("TransferPatients", sent, verb, mode)

    @rule(asked=st.tuples(patients, patients), mode=modes)
    def merge(self, asked: Pair, mode: int) -> None:
        source, target = asked
        if source != target:
            sent = {"source_patient_id": source, "target_patient_id": target}
            self.both("MergePatients", sent, lambda model: model.merge(source, target), mode)

    @rule(source=patients, mode=modes)
    def unmerge(self, source: str, mode: int) -> None:
        merged = [one for one, person in self.model.people[PATIENT].items() if person.merged_into]
        source = merged[-1] if merged and mode else source  # otherwise most records are soon merged
        self.both("UnmergePatients", {"source_patient_id": source}, lambda model: model.unmerge(source), mode)

    @rule(kind=kinds, index=indexes)
    def purge_one(self, kind: str, index: int) -> None:
        people = self.model.people[kind]
        purgeable = [one for one, person in people.items() if person.deleted and not person.merged_into]
        if len(purgeable) > 1:  # otherwise few records are left
            one = purgeable[index % len(purgeable)]
            self.purge(kind, self.model.records_of(one) if kind == PATIENT else [one])


def _ids(pair: Pair) -> Sent:
    return {"therapist_id": pair[0], "patient_id": pair[1]}


def test_the_service_behaves_like_the_reference_model(new_database: NewDatabase) -> None:
    CaseloadBesideItsModel.called.clear()
    CaseloadBesideItsModel.new_database = staticmethod(new_database)
    run_state_machine_as_test(
        CaseloadBesideItsModel,
        settings=settings(
            max_examples=10,
            stateful_step_count=30,
            phases=[Phase.generate],  # shrinking takes minutes, so the first failure is reported unshrunk
            suppress_health_check=list(HealthCheck),
        ),
    )
    assert CaseloadBesideItsModel.called == set(RPCS) - READS
