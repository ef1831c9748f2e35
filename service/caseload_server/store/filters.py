"""The filters of lists of therapists and patients, each with an index that has its matches."""

from collections.abc import Iterator
from typing import Any, NamedTuple

from caseload_server.domain import enums, errors
from caseload_server.domain.requests import RecordQuery
from caseload_server.domain.text_folding import email_key, identifier_key
from caseload_server.store import search
from caseload_server.store.backends.protocol import Value
from caseload_server.store.records import RecordKind

_ACCEPTING = (
    f"{{row}}.status = {enums.STATUS_ACTIVE} AND {{row}}.deleted_us IS NULL"
    " AND ({row}.max_active_patients IS NULL OR {row}.active_patient_count < {row}.max_active_patients)"
)
_LIVE_STATUS = "CAST(CASE WHEN {row}.deleted_us IS NULL THEN {row}.status ELSE -{row}.status END AS BIGINT)"
"""The status, negative in a soft-deleted record. Indexes begin with it. Without CAST, SQLite would not use them in a
comparison with another CAST."""
_HAS_VALUE = "{row}.value_key = :any_value_key AND {row}.value_key <> ''"
_HAS_IDENTIFIER = """{{row}}.{id} IN (
    SELECT {id} FROM {table} WHERE system = :system AND value_key = :value_key AND value_key <> ''
    UNION ALL SELECT {id} FROM {table} WHERE system = :system AND value = :value)"""
"""Two lookups, because for an OR SQLite reads all identifiers of the system."""


class Filter(NamedTuple):
    """A condition on the rows of a table. The rows that meet it are in one index, by value and then by record id.

    SQL of a filter has {row} for the alias of the table.
    """

    name: str
    """The name of its parameters."""
    table: str
    """The table of the records, or a search table with their ids."""
    id_column: str
    index_name: str = ""
    """Empty if the database finds one for the condition."""
    column: str = ""
    """The first column of the index. Empty if the index holds ids alone."""
    values: tuple[str | int, ...] = ()
    """The column has one of these values. Integers become a part of the SQL, as they are few."""
    prefix: str = ""
    """The column begins with this, instead of having one of the values."""
    where: str = ""
    """A further condition, which the index implies."""
    where_parameters: tuple[tuple[str, Value], ...] = ()
    has_few: bool = False
    """Whether few records can meet it."""
    is_in_order: bool = True
    """Whether the index has the ids of each value in order."""

    @property
    def parameters(self) -> dict[str, Value]:
        """Returns the parameters of its condition."""
        if self.prefix:
            return {self.name: self.prefix, f"{self.name}_end": self.prefix + search.LAST_CHARACTER}
        texts = {f"{self.name}{n}": value for n, value in enumerate(self.values) if isinstance(value, str)}
        return {**texts, **dict(self.where_parameters)}

    def condition(self, row: str) -> str:
        """Returns the condition as SQL. Args: row, the alias of the table."""
        return " AND ".join(part for part in (self._has_value(), self.where) if part).format(row=row)

    def _has_value(self) -> str:
        if self.prefix:
            return f"{self.column} >= :{self.name} AND {self.column} < :{self.name}_end"
        values = ", ".join(map(self.value, range(len(self.values))))
        return f"{self.column} IN ({values})" if len(self.values) > 1 else f"{self.column} = {values}" if values else ""

    def value(self, n: int) -> str:
        """Returns one of the values as SQL."""
        value = self.values[n]
        return str(int(value)) if isinstance(value, int) else f":{self.name}{n}"

    def check(self, kind: RecordKind[Any]) -> str:
        """Returns the condition on a record, whose alias is `record`. It never reads all matches of a search table."""
        if self.table == kind.name:
            return self.condition("record")
        return (
            f"EXISTS (SELECT 1 FROM {self.table} AS other WHERE other.{self.id_column} = record.{self.id_column}"
            f" AND {self.condition('other')} LIMIT 1 OFFSET 0)"  # PostgreSQL joins no subquery that has an OFFSET
        )


def filters_of(kind: RecordKind[Any], query: RecordQuery) -> list[Filter]:
    """Returns the filters of a query: those first that have fewer matches, as a rule. Raises InvalidField."""
    parts = (_identifiers, _contacts, _birth_dates, _words, _flags, _statuses)
    return [filter_ for part in parts for filter_ in part(kind, query)]


def _identifiers(kind: RecordKind[Any], query: RecordQuery) -> Iterator[Filter]:
    if query.identifier:
        system, value = query.identifier
        parameters = {"system": system, "value": value, "value_key": identifier_key(value)}
        condition = _HAS_IDENTIFIER.format(id=kind.id_column, table=f"{kind.name}_identifier")
        yield _identifier(kind, "identifier", condition, parameters)
    if query.identifier_value:
        parameters = {"any_value_key": identifier_key(query.identifier_value)}
        yield _identifier(kind, "identifier_value", _HAS_VALUE, parameters)


def _identifier(kind: RecordKind[Any], name: str, condition: str, parameters: dict[str, str]) -> Filter:
    return Filter(
        name,
        f"{kind.name}_identifier",
        kind.id_column,
        where=condition,
        where_parameters=tuple(parameters.items()),
        has_few=True,
        is_in_order=False,
    )


def _contacts(kind: RecordKind[Any], query: RecordQuery) -> Iterator[Filter]:
    if query.email:
        yield _text(kind, "email", "email_key", email_key(query.email))
    if query.phone_number:
        yield _text(kind, "phone_number", "phone_number", query.phone_number)


def _text(kind: RecordKind[Any], name: str, column: str, value: str) -> Filter:
    not_empty = f"{{row}}.{column} <> ''"
    index = f"{kind.name}_by_{name}"
    return Filter(name, kind.name, kind.id_column, index, f"{{row}}.{column}", (value,), where=not_empty)


def _birth_dates(kind: RecordKind[Any], query: RecordQuery) -> Iterator[Filter]:
    """Yields the filter of a date, of a month with all its days, or of a year with all its months."""
    date = query.birth_date
    if len(date) == len("YYYY-MM-DD"):
        yield _text(kind, "birth_date", "birth_date", date)
    elif date:
        months = (date,) if len(date) > len("YYYY") else (date, *(f"{date}-{month:02}" for month in range(1, 13)))
        index = f"{kind.name}_by_birth_month"
        column, not_empty = "substr({row}.birth_date, 1, 7)", "{row}.birth_date <> ''"
        yield Filter("birth_month", kind.name, kind.id_column, index, column, months, where=not_empty)


def _words(kind: RecordKind[Any], query: RecordQuery) -> Iterator[Filter]:
    """Yields the filter of each word of a name, the longest first, which is the rarest as a rule."""
    if not query.name_prefix:
        return
    words = sorted(search.typed_words(query.name_prefix), key=len, reverse=True)
    if not words:  # hyphens and accents alone would match every record
        raise errors.InvalidField(errors.Violation("filter.name_prefix", "must contain a letter, a digit or a symbol"))
    table = f"{kind.name}_name_word"
    for n, word in enumerate(words):
        yield Filter(f"word{n}", table, kind.id_column, f"{table}_by_word", "{row}.word", prefix=word)


def _flags(kind: RecordKind[Any], query: RecordQuery) -> Iterator[Filter]:
    if query.specialties:
        index, specialties = "therapist_specialty_by_specialty", tuple(dict.fromkeys(query.specialties))
        yield Filter("specialty", "therapist_specialty", kind.id_column, index, "{row}.specialty", specialties)
    if query.deleted_only:
        is_deleted = "{row}.deleted_us IS NOT NULL"
        yield Filter("deleted", kind.name, kind.id_column, f"{kind.name}_deleted", where=is_deleted)
    if query.accepting_patients:
        active = (enums.STATUS_ACTIVE,)
        yield Filter(
            "accepting", kind.name, kind.id_column, "therapist_accepting", "{row}.status", active, where=_ACCEPTING
        )


def _statuses(kind: RecordKind[Any], query: RecordQuery) -> Iterator[Filter]:
    statuses = tuple(sorted(set(query.statuses))) or tuple(range(enums.STATUS_ACTIVE, kind.idle_status + 1))
    if query.without_primary:
        yield _status(kind, query, "without_primary", statuses, "{row}.primary_therapist_id = ''")
    if query.unassigned:
        yield _status(kind, query, "unassigned_by_live_status", statuses, f"{{row}}.{kind.count_column} = 0")
    if query.statuses and not query.without_primary and not query.unassigned:
        yield _status(kind, query, "by_live_status", statuses)


def _status(kind: RecordKind[Any], query: RecordQuery, name: str, statuses: tuple[int, ...], where: str = "") -> Filter:
    """Returns the filter of statuses. Its index has soft-deleted records apart, which have no active assignment."""
    live = () if query.deleted_only else statuses
    deleted = tuple(-status for status in statuses) if query.show_deleted or query.deleted_only else ()
    return Filter(name, kind.name, kind.id_column, f"{kind.name}_{name}", _LIVE_STATUS, live + deleted, where=where)
