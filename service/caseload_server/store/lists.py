"""SELECTs of lists: which indexes are scanned, and how filters become SQL."""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from caseload_server.domain import enums, errors
from caseload_server.domain.requests import RecordQuery
from caseload_server.store import search
from caseload_server.store.backends.protocol import Dialect, Query, Scan, Value
from caseload_server.store.records import THERAPIST, RecordKind


def select_records(kind: RecordKind[Any], query: RecordQuery, dialect: Dialect) -> Query:
    """Returns the SELECT of one page of therapists or patients, without its parameters :after and :limit.

    It scans an index in id order, once for each status or specialty. Only names and identifiers are looked up first
    and then sorted.
    """
    is_lookup = query.identifier or query.name_prefix
    if query.specialties and not is_lookup:
        scans = list(_specialty_scans(len(query.specialties), dialect))
        conditions, parameters = _conditions(kind, query._replace(specialties=()))
        parameters |= _numbered("specialty", query.specialties)
    elif query.statuses and not is_lookup:
        scans = [_status_scan(kind, status, dialect) for status in sorted(set(query.statuses))]
        conditions, parameters = _conditions(kind, query._replace(statuses=()))
    elif (
        query.name_prefix and not query.identifier and dialect.has_statistics
    ):  # it chooses how to find the ids before it reads a record
        conditions, parameters = _conditions(kind, query._replace(name_prefix=""))
        subquery, words = _with_words(kind, query.name_prefix)
        scans = [_scan(kind, f"(SELECT DISTINCT {subquery})", f"record.{kind.id_column} > :after")]
        parameters |= words
    else:
        scans = [_scan(kind, "", "")]
        conditions, parameters = _conditions(kind, query)
    scans = [scan._replace(select=" AND ".join([scan.select, *conditions])) for scan in scans]
    sql = merge_scans(scans, dialect)
    return Query(sql, parameters, plan_for_values=bool(query.name_prefix))


def _status_scan(kind: RecordKind[Any], status: int, dialect: Dialect) -> Scan:
    record_id = f"record.{kind.id_column}"
    condition = dialect.index_range.format(column="record.status", value=int(status), record_id=record_id)
    return Scan(f"SELECT {kind.columns} FROM {kind.name} AS record WHERE {condition}", order="record.status, 1")


def _scan(kind: RecordKind[Any], found: str, scan: str) -> Scan:
    """Returns the SELECT of one scan, of the records themselves or by the ids that are found in a search table.

    Args: found, the search table or a subquery in parentheses, or empty; scan, the condition that the index serves, or
    empty.
    """
    source, record_id = f"{kind.name} AS record", f"record.{kind.id_column}"
    if found:
        record_id = f"found.{kind.id_column}"
        source = f"{found} AS found JOIN {source} ON record.{kind.id_column} = {record_id}"
    where = " AND ".join([*([scan] if scan else []), f"{record_id} > :after"])
    columns = kind.columns.replace(f"record.{kind.id_column}", record_id, 1)
    return Scan(f"SELECT {columns} FROM {source} WHERE {where}")


def _specialty_scans(count: int, dialect: Dialect) -> Iterator[Scan]:
    """Yields the scan of each specialty. It leaves out records that an earlier specialty's scan returns."""
    for n in range(count):
        earlier = ", ".join(f":specialty{m}" for m in range(n))
        scan = dialect.index_range.format(
            column="found.specialty", value=f":specialty{n}", record_id="found.therapist_id"
        )
        if earlier:
            scan += (
                " AND NOT EXISTS (SELECT 1 FROM therapist_specialty AS other"
                f" WHERE other.therapist_id = found.therapist_id AND other.specialty IN ({earlier}))"
            )
        yield _scan(THERAPIST, "therapist_specialty", scan)._replace(order="found.specialty, 1")


def merge_scans(scans: list[Scan], dialect: Dialect) -> str:
    """Returns the SELECT of one page of all given scans."""
    if len(scans) == 1:
        return f"{scans[0].select} ORDER BY {scans[0].order} LIMIT :limit"
    selects = [
        dialect.merged_scan.format(scan=scan.select, number=number, order=scan.order)
        for number, scan in enumerate(scans)
    ]
    return f"SELECT * FROM ({' UNION ALL '.join(selects)}) AS merged ORDER BY 1 LIMIT :limit"


def _numbered(name: str, values: Sequence[str]) -> dict[str, Value]:
    return {f"{name}{n}": value for n, value in enumerate(values)}


def _conditions(kind: RecordKind[Any], query: RecordQuery) -> tuple[list[str], dict[str, Value]]:
    conditions: list[str] = []
    parameters: dict[str, Value] = {}
    if not query.show_deleted:
        conditions.append("record.deleted_us IS NULL")
    if query.statuses:
        conditions.append(f"record.status IN ({enum_list(query.statuses)})")
    if query.unassigned:
        conditions.append(f"record.{kind.count_column} = 0")
    if query.accepting_patients:
        conditions.append(
            f"record.status = {enums.STATUS_ACTIVE} AND record.deleted_us IS NULL"
            f" AND (record.max_active_patients IS NULL OR record.{kind.count_column} < record.max_active_patients)"
        )
    if query.identifier:
        conditions.append(_id_in(kind, "identifier", "system = :system AND (value_key = :value_key OR value = :value)"))
        parameters["system"], parameters["value"] = query.identifier
        parameters["value_key"] = search.identifier_key(query.identifier[1])
    if query.specialties:
        specialties = _numbered("specialty", query.specialties)
        names = ", ".join(f":{name}" for name in specialties)
        conditions.append(_id_in(kind, "specialty", f"specialty IN ({names})"))
        parameters |= specialties
    if query.name_prefix:
        subquery, words = _with_words(kind, query.name_prefix)
        conditions.append(f"record.{kind.id_column} IN (SELECT {subquery})")
        parameters |= words
    return conditions, parameters


def _with_words(kind: RecordKind[Any], prefix: str) -> tuple[str, dict[str, Value]]:
    """Returns the query of the ids whose names have each of the words, without SELECT, and its parameters.

    Each id is compared with :after: no planner derives that from their equality. Raises InvalidField.
    """
    words = sorted(search.typed_words(prefix), key=len, reverse=True)  # the longest is the rarest, as a rule
    if not words:  # hyphens and accents alone would match every record
        raise errors.InvalidField(errors.Violation("filter.name_prefix", "must hold a word"))
    table, record_id = f"{kind.name}_name_word", kind.id_column
    sql = f"word0.{record_id} FROM {table} AS word0 WHERE {_has_prefix(kind, 0)}"
    for n in range(1, len(words)):
        same = f"word{n}.{record_id} = word0.{record_id}"
        sql += f" AND EXISTS (SELECT 1 FROM {table} AS word{n} WHERE {same} AND {_has_prefix(kind, n)})"
    bounds = {f"word{n}_end": word + search.LAST_CHARACTER for n, word in enumerate(words)}
    return sql, {**_numbered("word", words), **bounds}


def _has_prefix(kind: RecordKind[Any], n: int) -> str:
    return f"word{n}.word >= :word{n} AND word{n}.word < :word{n}_end AND word{n}.{kind.id_column} > :after"


def _id_in(kind: RecordKind[Any], search_table: str, condition: str) -> str:
    subquery = f"SELECT {kind.id_column} FROM {kind.name}_{search_table} WHERE {condition}"
    return f"record.{kind.id_column} IN ({subquery})"


def enum_list(values: Iterable[int]) -> str:
    """Returns enum numbers as SQL text. Only known numbers occur, so there are few statements to prepare."""
    return ", ".join(str(int(value)) for value in sorted(set(values)))
