"""Lists of therapists, patients and assignments: the indexes that are walked, and what a filter says in SQL."""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from caseload_server.domain import enums, errors
from caseload_server.domain.requests import RecordQuery
from caseload_server.store import search
from caseload_server.store.backends.protocol import Value
from caseload_server.store.records import RecordKind


def of_people(kind: RecordKind[Any], query: RecordQuery) -> tuple[str, dict[str, Value]]:
    """The SELECT of one page of a list, and its parameters but for :after and :limit.

    An index is walked in the order of the ids, one for each status or specialty. Only names and identifiers are looked
    up before, and sorted.
    """
    is_looked_up = query.identifier or query.name_prefix
    if query.specialties and not is_looked_up:
        selects = [_select(kind, "specialty", walk) for walk in _specialty_walks(len(query.specialties))]
        conditions, parameters = _conditions(kind, query._replace(specialties=()))
        parameters |= _named("specialty", query.specialties)
    elif query.statuses and not is_looked_up:
        selects = [_select(kind, "", f"one.status = {number}") for number in sorted(set(query.statuses))]
        conditions, parameters = _conditions(kind, query._replace(statuses=()))
    else:
        selects = [_select(kind, "", "")]
        conditions, parameters = _conditions(kind, query)
    return merged([" AND ".join([select, *conditions]) for select in selects]), parameters


def _select(kind: RecordKind[Any], found_in: str, walk: str) -> str:
    """Those who are walked through, directly or by a table that they are found by."""
    source, first = f"{kind.name} AS one", f"one.{kind.id}"
    if found_in:
        first = f"found.{kind.id}"
        source = f"{kind.name}_{found_in} AS found JOIN {source} ON one.{kind.id} = {first}"
    where = " AND ".join([*([walk] if walk else []), f"{first} > :after"])
    return f"SELECT {kind.columns.replace(f'one.{kind.id}', first, 1)} FROM {source} WHERE {where}"


def _specialty_walks(count: int) -> Iterator[str]:
    """The condition of each specialty; who has an earlier one too is met there."""
    for n in range(count):
        earlier = ", ".join(f":specialty{m}" for m in range(n))
        walk = f"found.specialty = :specialty{n}"
        if earlier:
            walk += (
                " AND NOT EXISTS (SELECT 1 FROM therapist_specialty AS other"
                f" WHERE other.therapist_id = found.therapist_id AND other.specialty IN ({earlier}))"
            )
        yield walk


def merged(selects: list[str]) -> str:
    """One page of SELECTs that each walk an index in the order of their first column."""
    if len(selects) == 1:
        return f"{selects[0]} ORDER BY 1 LIMIT :limit"
    return f"SELECT * FROM ({' UNION ALL '.join(selects)}) AS walked ORDER BY 1 LIMIT :limit"


def _named(name: str, values: Sequence[str]) -> dict[str, Value]:
    return {f"{name}{n}": value for n, value in enumerate(values)}


def _conditions(kind: RecordKind[Any], query: RecordQuery) -> tuple[list[str], dict[str, Value]]:
    conditions: list[str] = []
    parameters: dict[str, Value] = {}
    if not query.show_deleted:
        conditions.append("one.deleted_us IS NULL")
    if query.statuses:
        conditions.append(f"one.status IN ({numbers(query.statuses)})")
    if query.unassigned:
        conditions.append(f"one.{kind.count} = 0")
    if query.accepting_patients:
        conditions.append(
            f"one.status = {enums.STATUS_ACTIVE} AND one.deleted_us IS NULL"
            f" AND (one.max_active_patients IS NULL OR one.{kind.count} < one.max_active_patients)"
        )
    if query.identifier:
        conditions.append(_found_in(kind, "identifier", "system = :system AND value = :value"))
        parameters["system"], parameters["value"] = query.identifier
    if query.specialties:
        named = _named("specialty", query.specialties)
        conditions.append(_found_in(kind, "specialty", f"specialty IN ({', '.join(f':{name}' for name in named)})"))
        parameters |= named
    if query.name_prefix:
        words = search.name_words(query.name_prefix)
        if not words:  # hyphens and accents alone would match everyone
            raise errors.InvalidField(errors.Violation("filter.name_prefix", "must hold a word"))
        for n, word in enumerate(words):
            conditions.append(_found_in(kind, "name_word", f"word >= :word{n} AND word < :word{n}_end"))
            parameters |= {f"word{n}": word, f"word{n}_end": word + search.LAST_CHARACTER}
    return conditions, parameters


def _found_in(kind: RecordKind[Any], table: str, condition: str) -> str:
    return f"one.{kind.id} IN (SELECT {kind.id} FROM {kind.name}_{table} WHERE {condition})"


def numbers(values: Iterable[int]) -> str:
    """Enumeration numbers as SQL text: known ones only, so the statements stay few and prepared."""
    return ", ".join(str(int(value)) for value in sorted(set(values)))
