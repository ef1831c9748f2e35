"""What the reference model was at each time, and the answers that it would have given then."""

import bisect
import copy
import itertools
from collections.abc import Iterator
from typing import Any

from tests.api.model_records import Period
from tests.api.reference_model import Model
from tests.support.api_driver import ACTIVE, ENDED, PRIMARY, TREATING

Fields = dict[str, Any]


class Past:
    """The states of a model, by time."""

    def __init__(self, start: int) -> None:
        """Args: start, in seconds since 1970. Before it there was nothing."""
        self._states = {start: Model(start)}

    def remember(self, model: Model) -> None:
        """Keeps the state at the current time of the model, in place of an earlier one at that time."""
        self._states[model.now] = copy.deepcopy(model)

    def erase(self, kind: str, ids: list[str]) -> None:
        """Forgets purged records, in every state."""
        for state in self._states.values():
            state.erase(kind, ids)

    def moments(self) -> list[int]:
        """The times of the states, and times between two of them."""
        times = sorted(self._states)
        return sorted({*times, *((one + other) // 2 for one, other in itertools.pairwise(times))})

    def known_at(self, time: int) -> Model:
        """The newest state at a time."""
        times = sorted(self._states)
        return self._states[times[max(0, bisect.bisect(times, time) - 1)]]


def lists(model: Model, known_at: int, as_of: int) -> Iterator[tuple[Fields, list[Period]]]:
    """Yields filters of ListAssignments, each with the assignments that they match.

    Args: known_at, at which the call would have been made; as_of, the time of filters that have one.
    """
    current = [one for one in model.periods if one.end is None and known_at < one.until]
    in_force = [one for one in model.periods if one.in_force(as_of)]
    yield {}, current
    yield {"states": [ENDED]}, [one for one in model.periods if one.end is not None]
    yield {"states": [ACTIVE, ENDED]}, model.periods
    yield {"roles": [PRIMARY, TREATING]}, [one for one in current if one.role in (PRIMARY, TREATING)]
    for filters, matching in (({}, current), ({"as_of_time": {"seconds": as_of}}, in_force)):
        yield {**filters, "roles": [PRIMARY]}, [one for one in matching if one.role == PRIMARY]
        yield {**filters, "therapist_id": "t0"}, [one for one in matching if one.therapist == "t0"]
        person_of = model.person if filters else str  # only lists as of a time cover all records of a person
        for patient in ("p1", "p2"):
            found = [one for one in matching if person_of(one.patient) == person_of(patient)]
            yield {**filters, "patient_id": patient}, found
