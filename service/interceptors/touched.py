"""The ids in a message: what a call touched or disclosed. Where they are is worked out once for each type."""

import re
from collections.abc import Callable, Iterable, Iterator
from operator import attrgetter
from typing import Any, Final

from google.api import field_behavior_pb2
from google.protobuf.descriptor import Descriptor, FieldDescriptor

from service.fields import ID

MOST: Final = 1000
"""Ids of a kind that one line of the access log names; no page has more records."""
KINDS: Final = ("therapist", "patient", "assignment")

_ID_FIELD: Final = re.compile(rf"(?:\w+_)?({'|'.join(KINDS)})_ids?")

Ids = tuple[dict[str, None], dict[str, None], dict[str, None]]
"""Of therapists, patients and assignments, in the order they came in, each once."""


def none() -> Ids:
    """No ids yet."""
    return {}, {}, {}


class Places:
    """Where the ids of one type of message are.

    Assignments are not named where a list holds them: their therapist and patient are.
    """

    def __init__(self, message: Descriptor, *, sent: bool, listed: bool = False) -> None:
        """Args: sent, by a caller: fields that the server sets are then no ids; listed, whether a list holds it."""
        self._single: list[tuple[int, Callable[[Any], str]]] = []
        self._many: list[tuple[int, Callable[[Any], Iterable[str]]]] = []
        self._nested: list[tuple[Callable[[Any], Iterable[Any]], Places]] = []
        for path, field in _fields(message, "", _unread(message) if sent else frozenset()):
            if field.message_type:
                self._nested.append((attrgetter(path), Places(field.message_type, sent=sent, listed=True)))
                continue
            found = _ID_FIELD.fullmatch(field.name)
            if found and not (listed and found[1] == "assignment"):
                places: list[Any] = self._many if field.is_repeated else self._single
                places.append((KINDS.index(found[1]), attrgetter(path)))
        self._nested = [(get, places) for get, places in self._nested if places]

    def __bool__(self) -> bool:
        return bool(self._single or self._many or self._nested)

    def add(self, message: Any, ids: Ids) -> None:
        """Adds the ids of a message to those given."""
        for kind, get in self._single:
            if value := get(message):
                ids[kind][value] = None
        for kind, get_all in self._many:
            ids[kind].update(dict.fromkeys(get_all(message)))
        for get_each, places in self._nested:
            for each in get_each(message):
                places.add(each, ids)


def _unread(request: Descriptor) -> frozenset[int]:
    """What of a record in the request the server does not read; a Create takes the id from beside the record."""
    output_only = {field_behavior_pb2.OUTPUT_ONLY}
    return frozenset(output_only | ({field_behavior_pb2.IDENTIFIER} if request.name.startswith("Create") else set()))


def _fields(message: Descriptor, prefix: str, unread: frozenset[int]) -> Iterator[tuple[str, FieldDescriptor]]:
    """The strings, and the messages of ours that are in lists, with their paths."""
    for field in message.fields:
        if unread.intersection(field.GetOptions().Extensions[field_behavior_pb2.field_behavior]):
            continue
        nested = field.message_type
        if nested is None:
            yield prefix + field.name, field
        elif nested.file.package == message.file.package and not nested.GetOptions().map_entry:
            if field.is_repeated:
                yield prefix + field.name, field
            else:
                yield from _fields(nested, f"{prefix}{field.name}.", unread)


def wellformed(ids: Ids) -> Ids:
    """Those that are ids: what a caller sent in the place of one may be a name."""
    therapists, patients, assignments = (dict.fromkeys(filter(ID.fullmatch, kind)) for kind in ids)
    return therapists, patients, assignments
