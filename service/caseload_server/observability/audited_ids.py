"""The ids in a message: whom a call touched or disclosed. Where they are is worked out once for each type."""

import re
from collections.abc import Callable, Iterable, Iterator
from operator import attrgetter
from typing import Any, Final

from google.api import field_behavior_pb2
from google.protobuf.descriptor import Descriptor, FieldDescriptor

KINDS: Final = ("therapist", "patient", "assignment")

_IDENTIFIER, _OUTPUT_ONLY = field_behavior_pb2.IDENTIFIER, field_behavior_pb2.OUTPUT_ONLY


class IdExtractor:
    """Where a type of message has the ids of one kind; false where it has none.

    Assignments in a list are not named: their therapists and patients are.
    """

    def __init__(self, message: Descriptor, kind: str, *, unread: frozenset[int], listed: bool = False) -> None:
        """Args: unread, the behaviours of fields to leave out; listed, whether a list holds the message."""
        self._single: list[Callable[[Any], str]] = []
        self._many: list[Callable[[Any], Iterable[str]]] = []
        self._nested: list[tuple[Callable[[Any], Iterable[Any]], IdExtractor]] = []
        name = re.compile(rf"(\w+_)?{kind}_ids?")
        for path, field in _fields(message, "", unread):
            if field.message_type:
                nested = IdExtractor(field.message_type, kind, unread=unread, listed=True)
                self._nested += [(attrgetter(path), nested)] if nested else []
            elif name.fullmatch(field.name) and not (listed and kind == "assignment"):
                places: list[Any] = self._many if field.is_repeated else self._single
                places.append(attrgetter(path))
        self._is_one = len(self._single) == 1 and not (self._many or self._nested)

    def __bool__(self) -> bool:
        return bool(self._single or self._many or self._nested)

    def ids(self, message: Any) -> list[str]:
        """The ids as they come, some perhaps more than once, or empty."""
        if self._is_one:
            return [self._single[0](message)]
        found = [get(message) for get in self._single]
        for get_all in self._many:
            found += get_all(message)
        for get_each, places in self._nested:
            if places._is_one:
                found += map(places._single[0], get_each(message))
                continue
            for each in get_each(message):
                found += places.ids(each)
        return found


def request_ids(request: Descriptor, kind: str) -> IdExtractor:
    """Where a request has ids. What the server does not read there is none, whatever a caller puts into it."""
    # A Create takes the id from beside the record.
    unread = {_OUTPUT_ONLY, _IDENTIFIER} if request.name.startswith("Create") else {_OUTPUT_ONLY}
    return IdExtractor(request, kind, unread=frozenset(unread))


def response_ids(response: Descriptor, kind: str) -> IdExtractor:
    """Where a response has ids."""
    return IdExtractor(response, kind, unread=frozenset())


def _fields(message: Descriptor, prefix: str, unread: frozenset[int]) -> Iterator[tuple[str, FieldDescriptor]]:
    """The fields that hold one value or a list, with their paths; those of a single message of ours, in its place."""
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
