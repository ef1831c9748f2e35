"""Generates requests from the descriptors of the contract, and bytes that are almost requests."""

import random
from collections import defaultdict, deque
from typing import Any, Final, NamedTuple

from google.api import field_behavior_pb2
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message_factory import GetMessageClass

from tests.api.sample_values import behaves, is_map, is_ours
from tests.fuzz import values
from tests.fuzz.values import PEOPLE, Values
from tests.support.api_driver import RPCS, full_name, request

FEW: Final = 3
LENGTHS: Final = (21, 33, 101, 1001, 20_000)
MOODS: Final = (
    (0.0, 0.0),
    (0.0, 0.0),
    (0.0, 0.1),
    (0.0, 0.2),
    (0.0, 0.7),
    (0.02, 0.5),
    (0.1, 0.5),
    (0.1, 1.0),
    (0.6, 1.0),
)
"""Pairs for one message: the probability of an invalid value, and of setting an optional field."""
ASSIGNING: Final = ("AssignPatient", "AssignTherapist", "BatchAssign")
CREATING: Final = ("BatchCreateTherapists", "BatchCreatePatients")
OFTEN: Final = [
    name for name in RPCS for _ in range(2 if name.startswith(("Delete", "Merge")) else 6 if name in ASSIGNING else 3)
]
"""RPCs weighted so that the store fills up: deleted and merged records cannot be assigned."""
WANTED: Final = (field_behavior_pb2.REQUIRED, field_behavior_pb2.IDENTIFIER)
HUGE_BYTES: Final = 5 << 20
"""Above the message limit of the server."""


class Sent(NamedTuple):
    """One call."""

    rpc: str
    data: bytes

    @property
    def method(self) -> str:
        """The full method name."""
        return full_name(self.rpc)


class Messages:
    """Generates the nth call of a run; it is deterministic except for values from the server's responses."""

    def __init__(self, seed: int) -> None:
        self._seed = seed
        self._values = Values()
        self._next_pages: dict[str, deque[bytes]] = defaultdict(lambda: deque(maxlen=20))

    def call(self, number: int) -> Sent:
        """The first calls create the records that later calls use."""
        if number < 2 * PEOPLE:
            one = number // 2
            if number % 2:
                return _sent("CreatePatient", patient_id=f"p{one}", patient={"display_name": "Ann Lee"})
            return _sent("CreateTherapist", therapist_id=f"t{one}", therapist={"display_name": "Ann Lee"})
        rng = random.Random(f"{self._seed}:{number}")
        rpc = rng.choice(OFTEN)
        if self._next_pages[rpc] and rng.random() < 0.2:
            data = rng.choice(tuple(self._next_pages[rpc]))
        else:
            data = self._request(rng, rpc).SerializeToString()
        if rng.random() < 0.1:
            data += unknown_fields(rng)
        if rng.random() < 0.2:
            data = mutated(rng, data)
        if rng.random() < 0.0005:
            data += b"\x82\x7d" + _varint(HUGE_BYTES) + bytes(HUGE_BYTES)
        return Sent(rpc, data)

    def learn(self, sent: Sent, answer: bytes) -> None:
        """Collects values for later calls from a response. Raises DecodeError."""
        message: Any = GetMessageClass(RPCS[sent.rpc].output_type).FromString(answer)
        self._values.learn(message)
        if getattr(message, "next_page_token", ""):
            again: Any = GetMessageClass(RPCS[sent.rpc].input_type).FromString(sent.data)
            again.page_token = message.next_page_token
            self._next_pages[sent.rpc].append(again.SerializeToString())

    def _request(self, rng: random.Random, rpc: str) -> Any:
        made = request(rpc)
        _Filling(rng, self._values, *rng.choice(MOODS)).fill(made)
        if rng.random() < 0.8:
            _make_consistent(rng, rpc, made)
        return made


def _make_consistent(rng: random.Random, rpc: str, made: Any) -> None:
    """Clears the fields that exclude each other, and ids of new records, most of which are taken.

    Hardly an assignment or a batch with random ones is accepted.
    """
    unwanted: tuple[str, ...] = ("patient_id", "therapist_id")
    if rpc in ASSIGNING:
        unwanted = rng.choice((("end_time", "end_reason"), ("expire_time", "replace", "replace_primary", "end_reason")))
    elif rpc not in CREATING:
        return
    entries = [made]
    if "requests" in made.DESCRIPTOR.fields_by_name:
        del made.requests[FEW:]
        entries, unwanted = made.requests, (*unwanted, "request_id", "validate_only")
    for entry in entries:
        for name in sorted({*entry.DESCRIPTOR.fields_by_name} & {*unwanted}):
            entry.ClearField(name)


def _sent(rpc: str, **fields: Any) -> Sent:
    return Sent(rpc, request(rpc, **fields).SerializeToString())


class _Filling:
    """Fills one message with one pair of probabilities."""

    def __init__(self, rng: random.Random, known: Values, awkwardness: float, density: float) -> None:
        self._rng = rng
        self._values = known
        self._awkwardness = awkwardness
        self._density = density

    def fill(self, message: Any) -> None:
        for field in message.DESCRIPTOR.fields:
            if any(behaves(field, one) for one in WANTED) or self._rng.random() < self._density:
                self._set(message, field)

    def _set(self, message: Any, field: FieldDescriptor) -> None:
        if field.is_repeated:
            self._set_many(message, field)
        elif is_ours(field):
            getattr(message, field.name).SetInParent()
            self.fill(getattr(message, field.name))
        elif field.message_type:
            message.MergeFrom(type(message)(**{field.name: self._well_known(field)}))
        else:
            setattr(message, field.name, self._scalar(field))

    def _set_many(self, message: Any, field: FieldDescriptor) -> None:
        entries = getattr(message, field.name)
        count = self._count()
        for number in range(min(count, FEW)):
            if is_map(field):
                entries[f"{self._text()}{number}"[-100:]] = self._text()
            elif field.message_type:
                self.fill(entries.add())
            else:
                entries.append(self._scalar(field))
        for number in range(FEW, count):  # many long values would exceed the message limit
            if is_map(field):
                entries[str(number)] = ""
            elif field.message_type:
                entries.add()
            else:
                entries.append(self._values.good(self._rng, field))

    def _count(self) -> int:
        if self._is_awkward() and self._rng.random() < 0.2:
            return self._rng.choice(LENGTHS)
        return self._rng.randint(1, FEW)

    def _text(self) -> str:
        return self._rng.choice(values.STRINGS) if self._is_awkward() else "team"

    def _scalar(self, field: FieldDescriptor) -> Any:
        return (self._values.awkward if self._is_awkward() else self._values.good)(self._rng, field)

    def _well_known(self, field: FieldDescriptor) -> dict[str, Any]:
        kind = field.message_type.name if field.message_type else ""
        if kind == "Timestamp":
            return values.timestamp(self._rng, field.name, is_good=not self._is_awkward())
        if kind == "Date":
            return values.date(self._rng, is_good=not self._is_awkward())
        assert kind == "FieldMask", field.full_name
        return {"paths": [self._path(field) for _ in range(self._count())]}

    def _path(self, mask: Any) -> str:
        if self._is_awkward():
            return self._rng.choice(values.STRINGS)
        [record] = [
            field.message_type for field in mask.containing_type.fields if field.message_type and is_ours(field)
        ]
        return str(self._rng.choice(["*", *(field.name for field in record.fields)]))

    def _is_awkward(self) -> bool:
        return self._rng.random() < self._awkwardness


def unknown_fields(rng: random.Random) -> bytes:
    """Fields of every wire type that are unknown or have another type in the contract; groups are nested deeply."""
    data = b""
    for _ in range(rng.randrange(1, 4)):
        number, wire_type = rng.choice((1, 2, 3, 500, 2**29 - 1)), rng.randrange(8)
        payload = rng.randbytes(rng.randrange(12))
        if wire_type == 2:
            payload = _varint(len(payload)) + payload
        elif wire_type == 3:
            depth = rng.choice((1, 50, 99, 100, 101, 5000))
            payload = _varint(number << 3 | 3) * depth + _varint(number << 3 | 4) * (depth + 1)
        data += _varint(number << 3 | wire_type) + payload
    return data


def mutated(rng: random.Random, data: bytes) -> bytes:
    """The same bytes with one to four mutations."""
    for _ in range(rng.randrange(1, 5)):
        start = rng.randrange(len(data) + 1)
        end = min(len(data), start + rng.randrange(16))
        match rng.randrange(7):
            case 0:
                data = data[:start]
            case 1:
                data = data[:start] + data[end:]
            case 2:
                data = data[:end] + data[start:]
            case 3:
                data = data[:start] + rng.randbytes(rng.randrange(1, 8)) + data[end:]
            case 4:
                data = data[:start] + rng.choice((b"\xff", b"\xed\xa0\x80", b"\x00", b"\x80", b"\xc0\x80")) + data[end:]
            case 5:
                data += data[start:]
            case _ if data:
                place = rng.randrange(len(data))
                data = data[:place] + bytes([data[place] ^ 1 << rng.randrange(8)]) + data[place + 1 :]
    return data


def _varint(number: int) -> bytes:
    data = b""
    while number > 127:
        data += bytes([number & 127 | 128])
        number >>= 7
    return data + bytes([number])
