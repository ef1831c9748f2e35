"""Values for fields: valid ones that reach deep into the server, and invalid or rare ones."""

import random
from collections import defaultdict, deque
from collections.abc import Callable
from typing import Any, Final

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message

from tests.api.sample_values import SAMPLES, is_map
from tests.support.api_driver import T0

STRINGS: Final = (
    "", " ", "\t\n", "\0", "a\0b", "a\x1bb", "\x85", "\u2028", "\u202eabc", "\ufeff", "\u200b", "\u200d", "\uffff",
    "\U0010ffff", "\ud7ff", "e\u0301" * 100, "\u0301", "\ufdfa" * 200, "\u0130", "\u00df" * 200, "\u1e9e", "\u3164",
    "\u1100\u1161\u11a8" * 70, "\U0001f468\u200d\U0001f469" * 50, "\u0661\u0662\u0663", "\uff11\uff12", "%", "_", "\\",
    "'", '"', "'; DROP TABLE patient; --", "%s%n", "%(name)s", ":name", "$1", "?1", "{}", "[]", "null", '{"a":1}', "..",
    "../../etc/passwd", "a" * 63, "a" * 64, "a" * 201, "a" * 1001, "x" * 33_000, "\u00e9" * 70_000, "z" * 200_000, "*",
    "-1", "0", "1e3", "NaN", "9" * 30, "T1", "t1 ", "t1\n", "-t1", "urn:", "http://hl7.org/fhir/sid/us-npi", "@", "a@",
    "+0", "0190a3c4-0000-7000-8000-00000000000", "00000000-0000-0000-0000-000000000000", "local", "a.b", ".",
)  # fmt: skip
INTEGERS: Final = (0, 1, -1, 2, 3, 99, 1000, 1001, 2**31 - 1, -(2**31))
SECONDS: Final = (0, -1, 1, -62_135_596_800, -62_135_596_801, 253_402_300_799, 253_402_300_800, 2**63 - 1, -(2**63))
NANOS: Final = (0, 1, 999, 999_999_999, 10**9, -1, 2**31 - 1, -(2**31))

PEOPLE: Final = 9
"""The number of therapists (from t0) and of patients (from p0) that most calls use."""

FAR: Final = 4_000_000_000
"""A Unix time in seconds, in the year 2096."""

_LEARNT: Final = {
    "assignment_id": "assignment_id",
    "etag": "etag",
    "next_page_token": "page_token",
    "revision": "after_revision",
    "through_revision": "after_revision",
    "oldest_revision": "after_revision",
}
"""Response fields, and the request fields that accept their values; only the server generates these values."""


def _uuid(rng: random.Random) -> str:
    """A request id; often one that was used before."""
    number = rng.getrandbits(128) if rng.random() < 0.8 else rng.randrange(20)
    text = f"{number:032x}"
    return "-".join((text[:8], text[8:12], text[12:16], text[16:20], text[20:]))


def _therapist(rng: random.Random) -> str:
    return f"t{rng.randrange(PEOPLE if rng.random() < 0.8 else 15)}"


def _patient(rng: random.Random) -> str:
    return f"p{rng.randrange(PEOPLE if rng.random() < 0.8 else 15)}"


def _name(rng: random.Random) -> str:
    return f"Ann {rng.choice(('Lee', 'Müller', 'van der Berg', 'Ōe', 'Lee-Ray'))}"


_GOOD: Final[dict[str, Callable[[random.Random], Any]]] = {
    "therapist_id": _therapist,
    "source_therapist_id": _therapist,
    "target_therapist_id": _therapist,
    "therapist_ids": _therapist,
    "patient_id": _patient,
    "source_patient_id": _patient,
    "target_patient_id": _patient,
    "patient_ids": _patient,
    "request_id": _uuid,
    "page_size": lambda rng: rng.choice((0, 1, 2, 3, 5, 1000)),
    "max_active_patients": lambda rng: rng.choice((0, 1, 2, 50, 50)),
    "value": lambda rng: f"1234{rng.randrange(30)}",
    "display_name": _name,
    "aliases": _name,
    "order_by": lambda rng: rng.choice(("display_name", "display_name desc", "update_time", "start_time desc", "")),
    "specialties": lambda rng: rng.choice(("hand-therapy", "grief", "a1")),
    "etag": lambda _: "",
    "page_token": lambda _: "",
    "after_revision": lambda _: "",
}


class Values:
    """Values for fields by name; it learns from responses."""

    def __init__(self) -> None:
        self._learnt: dict[str, deque[str]] = defaultdict(lambda: deque(maxlen=50))

    def learn(self, answer: Message) -> None:
        """Collects ids, etags, tokens and revisions from a response; of a list, from its first entry."""
        for field, value in answer.ListFields():
            if field.name in _LEARNT:
                self._learnt[_LEARNT[field.name]].append(value)
            elif field.message_type and not is_map(field):
                self.learn(value[0] if field.is_repeated else value)

    def good(self, rng: random.Random, field: FieldDescriptor) -> Any:
        """A value that is probably accepted. Args: field, not a message field."""
        if field.enum_type:
            return rng.choice([1, 1, *(value.number for value in field.enum_type.values if value.number)])
        if field.name in self._learnt and rng.random() < 0.8:
            return rng.choice(tuple(self._learnt[field.name]))
        if field.name in _GOOD:
            return _GOOD[field.name](rng)
        if field.type == FieldDescriptor.TYPE_BOOL:
            return rng.random() < 0.5
        return SAMPLES[field.name]

    def awkward(self, rng: random.Random, field: FieldDescriptor) -> Any:
        """A value of the field's type that should be rejected or is rare."""
        if field.type == FieldDescriptor.TYPE_BOOL:
            return True
        if field.type != FieldDescriptor.TYPE_STRING:
            return rng.choice(INTEGERS)
        if rng.random() < 0.5:
            return rng.choice(STRINGS)
        good = str(self.good(rng, field))
        place = rng.randrange(len(good) + 1)
        return good[:place] + rng.choice(STRINGS) + good[place + rng.randrange(2) :]


def timestamp(rng: random.Random, name: str, *, is_good: bool) -> dict[str, int]:
    """A time within two weeks of the past, or of the far future for a planned end; or any value of the type."""
    if is_good:
        first = FAR if name == "expire_time" else T0
        return {"seconds": first + rng.randrange(1_200_000), "nanos": rng.choice(NANOS[:4])}
    return {"seconds": rng.choice(SECONDS), "nanos": rng.choice(NANOS)}


def date(rng: random.Random, *, is_good: bool) -> dict[str, int]:
    """A birth date, or three arbitrary numbers."""
    if is_good:
        full = {"year": 1950 + rng.randrange(70), "month": 1 + rng.randrange(12), "day": 1 + rng.randrange(28)}
        return dict(list(full.items())[: rng.choice((1, 2, 3, 3, 3))])
    return {part: rng.choice((*INTEGERS, 12, 29, 31, 9999, 10_000)) for part in ("year", "month", "day")}
