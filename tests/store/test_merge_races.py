"""Merges beside all other writes break no rule, whoever comes first."""

import random
from collections.abc import Callable

import pytest
from caseload_server.domain import errors
from caseload_server.domain.requests import Assign, Delete, Merge, Transfer, Unassign
from caseload_server.store import PATIENT, THERAPIST, RelationshipStore

from tests.store.store_builders import therapists
from tests.store.store_calls import CALL, assign, broken, make, race, run, update

PATIENTS = [f"p{n}" for n in range(8)]
THERAPISTS = [f"t{n}" for n in range(4)]

Write = Callable[[RelationshipStore, random.Random], object]


def one_patient(chance: random.Random) -> str:
    return chance.choice(PATIENTS)


def two_patients(chance: random.Random) -> tuple[str, str]:
    source, target = chance.sample(PATIENTS, 2)
    return source, target


def finished(chance: random.Random) -> Assign:
    start_us = chance.randint(0, 50)
    end_us = start_us + chance.randint(1, 9)
    role = chance.randint(1, 3)
    return Assign(chance.choice(THERAPISTS), one_patient(chance), role, start_us=start_us, end_us=end_us)


def replacing(chance: random.Random) -> Assign:
    role = chance.randint(1, 3)
    return Assign(chance.choice(THERAPISTS), one_patient(chance), role, replace=True, replace_primary=True)


WRITES: list[Write] = [
    lambda store, chance: store.merge(Merge(*two_patients(chance), force=True), CALL),
    lambda store, chance: store.merge(Merge(*two_patients(chance)), CALL),
    lambda store, chance: store.unmerge(one_patient(chance), CALL),
    lambda store, chance: store.unmerge(one_patient(chance), CALL),
    lambda store, chance: store.assign(replacing(chance), CALL),
    lambda store, chance: store.assign(finished(chance), CALL),
    lambda store, chance: store.batch_assign([finished(chance), replacing(chance), finished(chance)], CALL),
    lambda store, chance: store.batch_assign([replacing(chance) for _ in range(3)], CALL),
    lambda store, chance: store.assign(Assign(chance.choice(THERAPISTS), one_patient(chance)), CALL),
    lambda store, chance: store.unassign(Unassign(chance.choice(THERAPISTS), one_patient(chance)), CALL),
    lambda store, chance: store.transfer(Transfer("t0", chance.choice(THERAPISTS[1:])), CALL),
    lambda store, chance: store.delete(PATIENT, Delete(one_patient(chance), force=True), CALL),
    lambda store, chance: store.undelete(PATIENT, one_patient(chance), CALL),
    lambda store, chance: store.undelete(PATIENT, one_patient(chance), CALL),
    lambda store, chance: update(
        store, PATIENT, one_patient(chance), identifiers=f'[["mrn","{chance.randint(0, 9)}"]]'
    ),
]


@pytest.mark.slow
def test_random_writers_with_merges_break_no_rule(instances: list[RelationshipStore]) -> None:
    store = instances[0]
    therapists(store, *THERAPISTS)
    for number, one in enumerate(PATIENTS):
        make(store, PATIENT, one, identifiers=f'[["mrn","{number}"]]')
    merged: list[bool] = []
    busy: list[Exception] = []

    def some(number: int) -> None:
        chance = random.Random(number)
        for _ in range(12):
            write = chance.choice(WRITES)
            try:
                write(instances[number % 3], chance)
            except errors.StoreBusy as error:  # which would mean a deadlock
                busy.append(error)
            except errors.DomainError:
                merged.append(False)
            else:
                merged.append(WRITES.index(write) < 2)

    race(some)
    assert busy == []
    assert any(merged)
    assert broken(store) == []


def test_racing_merges_of_a_source_move_it_once(instances: list[RelationshipStore]) -> None:
    store = instances[0]
    therapists(store, *THERAPISTS)
    for one in PATIENTS:
        make(store, PATIENT, one)
    assign(store, "t0", "p0")
    done, refusals = race(lambda number: instances[number % 3].merge(Merge("p0", PATIENTS[1 + number % 7]), CALL))
    assert len(done) == 1
    assert {type(refusal) for refusal in refusals} == {errors.PatientMerged}
    assert run(store, "SELECT patient_id FROM assignment WHERE end_us IS NULL") == [(done[0].target.patient_id,)]
    assert broken(store) == []


def test_racing_merges_in_a_circle_close_no_cycle(instances: list[RelationshipStore]) -> None:
    store = instances[0]
    for one in PATIENTS:
        make(store, PATIENT, one)

    def step(number: int) -> object:
        return instances[number % 3].merge(Merge(PATIENTS[number % 8], PATIENTS[(number + 1) % 8]), CALL)

    done, _ = race(step)
    assert 4 <= len(done) <= 7
    assert broken(store) == []


def test_an_assign_beside_a_merge_goes_to_neither_or_to_the_person(store: RelationshipStore) -> None:
    therapists(store, *THERAPISTS)
    make(store, PATIENT, "p0")
    make(store, PATIENT, "p1")
    update(store, THERAPIST, "t0", max_active_patients=1)

    def one(number: int) -> object:
        if number == 16:
            return store.merge(Merge("p0", "p1"), CALL)
        return store.assign(Assign(THERAPISTS[number % 4], f"p{number % 2}"), CALL)

    race(one)
    assert broken(store) == []
    assert run(store, "SELECT COUNT(*) FROM assignment WHERE end_us IS NULL AND patient_id = 'p0'") == [(0,)]
