"""Extracts the ids that the access log shows from requests and responses.

The fields with ids are found once for each message type.
"""

import re
from collections.abc import Callable, Iterable, Iterator
from functools import cache
from itertools import islice
from operator import attrgetter
from typing import Any, Final

from google.api import field_behavior_pb2
from google.protobuf.descriptor import Descriptor, FieldDescriptor

from caseload_server.domain.limits import MAX_LOGGED_IDS

KINDS: Final = ("therapist", "patient", "assignment")

_MAX_ENTRIES: Final = MAX_LOGGED_IDS + 1
"""Entries of a list to look at: as many as a line has, and one more that shows that the line leaves out ids."""
_IDENTIFIER, _OUTPUT_ONLY = field_behavior_pb2.IDENTIFIER, field_behavior_pb2.OUTPUT_ONLY


class IdExtractor:
    """Extracts the ids of one kind from messages of one type. It is false when the type has no such ids.

    The ids of assignments in a list are left out. The ids of their therapists and patients are included.
    """

    def __init__(self, message: Descriptor, kind: str, *, ignored: frozenset[int], listed: bool = False) -> None:
        """Args: ignored, the field behaviors of fields to leave out; listed, whether the message is in a list."""
        self._single: list[Callable[[Any], str]] = []
        self._repeated: list[Callable[[Any], Iterable[str]]] = []
        self._nested: list[tuple[Callable[[Any], Iterable[Any]], IdExtractor]] = []
        name = re.compile(rf"(\w+_)?{kind}_ids?")
        for path, field in _fields(message, "", ignored):
            if field.message_type:
                nested = IdExtractor(field.message_type, kind, ignored=ignored, listed=True)
                self._nested += [(attrgetter(path), nested)] if nested else []
            elif name.fullmatch(field.name) and not (listed and kind == "assignment"):
                getters: list[Any] = self._repeated if field.is_repeated else self._single
                getters.append(attrgetter(path))
        self._has_one_field = len(self._single) == 1 and not (self._repeated or self._nested)

    def __bool__(self) -> bool:
        return bool(self._single or self._repeated or self._nested)

    def extract(self, message: Any, max_entries: int | None = None) -> list[str]:
        """Returns the ids in the order of the fields. Some may be empty or repeated.

        It stops when it has more ids than a line of the log. Args: max_entries, of each list to look at; None for no
        other limit.
        """
        if self._has_one_field:
            return [self._single[0](message)]
        ids = [get(message) for get in self._single]
        enough = max_entries or _MAX_ENTRIES
        for get_all in self._repeated:
            ids += islice(get_all(message), enough)
        for get_messages, nested in self._nested:
            if nested._has_one_field:
                ids += map(nested._single[0], islice(get_messages(message), enough))
            else:
                ids = nested._extract_each(islice(get_messages(message), max_entries), ids)
        return ids

    def _extract_each(self, messages: Iterable[Any], ids: list[str]) -> list[str]:
        """Returns the ids, and those of the messages, until there are too many different ones."""
        for each in messages:
            ids += self.extract(each)
            if len(ids) > 4 * _MAX_ENTRIES:  # many may be the same
                ids = list(dict.fromkeys(ids))
                if len(ids) > _MAX_ENTRIES:
                    break
        return ids


@cache
def request_ids(request: Descriptor, kind: str) -> IdExtractor:
    """Returns the extractor for a request type. It leaves out fields that the server ignores in a request."""
    # A Create takes the id from the request's own field, not from the record.
    ignored = {_OUTPUT_ONLY, _IDENTIFIER} if request.name.startswith("Create") else {_OUTPUT_ONLY}
    return IdExtractor(request, kind, ignored=frozenset(ignored))


@cache
def response_ids(response: Descriptor, kind: str) -> IdExtractor:
    """Returns the extractor for a response type."""
    return IdExtractor(response, kind, ignored=frozenset())


def _fields(message: Descriptor, prefix: str, ignored: frozenset[int]) -> Iterator[tuple[str, FieldDescriptor]]:
    """Yields scalar and repeated fields with their paths. It descends into single messages of the same package."""
    for field in message.fields:
        if ignored.intersection(field.GetOptions().Extensions[field_behavior_pb2.field_behavior]):
            continue
        nested = field.message_type
        if nested is None:
            yield prefix + field.name, field
        elif nested.file.package == message.file.package and not nested.GetOptions().map_entry:
            if field.is_repeated:
                yield prefix + field.name, field
            else:
                yield from _fields(nested, f"{prefix}{field.name}.", ignored)
