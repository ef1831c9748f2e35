"""Lists of therapists and patients: how their pages are found.

Each filter and each order by itself is a walk of its index: it reads about as many rows as the page has, however large
the table is. A combination costs the matches of its rarest filter at most. A total costs the matches of one filter.

No planner chooses between the ways to find a page, because a wrong choice reads the whole table. The rows of a page are
found in one of these ways:

- One scan of an index, if there is no filter, or one with one value and the order of ids.
- A walk in the order of the list, of an index of the table or of the matches of one filter by id, which checks each
  record.
- The matches of the rarest filter, gathered and then sorted.

Which of the last two ends first is not known before. So they take turns with growing budgets of rows.
"""

import json
from collections.abc import Generator, Iterable, Iterator
from functools import cached_property
from typing import Any, Final, NamedTuple

from caseload_server.domain.requests import PageRequest, RecordQuery
from caseload_server.store.backends.protocol import Dialect, Query, Row, Scan, Transaction, Value
from caseload_server.store.filters import Filter, filters_of
from caseload_server.store.records import RecordKind

_BUDGETS: Final = [10**exponent for exponent in range(3, 19)]
"""How many rows one turn reads at most. With the last one, every filter is rare enough to be gathered."""
_MAX_COUNTED: Final = 8
"""The matches of at most this many filters are counted: the rarest of a long name is among its longest words."""
_MAX_WORDS: Final = 200
"""A walk merges the records of at most this many words with a prefix."""
_MIN_CHUNK: Final = 50
_MAX_CHUNK: Final = 4000
"""How many ids a walk of a filter's matches reads at once, if other filters reject some of them."""
_SELECT_WORDS: Final = """
WITH RECURSIVE next_word(word) AS (
    SELECT (SELECT MIN(word) FROM {table} WHERE word >= :{name} AND word < :{name}_end)
    UNION ALL
    SELECT (SELECT MIN(word) FROM {table} WHERE word > next_word.word AND word < :{name}_end)
    FROM next_word WHERE next_word.word IS NOT NULL
)
SELECT word FROM next_word WHERE word IS NOT NULL LIMIT :limit"""
"""It jumps from word to word in the index."""


class _Position(NamedTuple):
    """Where a page or a walk begins: after this record. The key is empty in lists by id."""

    key: str | int
    record_id: str


Walk = Generator[Row, None, _Position | None]
"""Yields rows. Returns where it stopped, or None at the end."""


class RecordList:
    """The list of one query, as one transaction sees it."""

    def __init__(self, transaction: Transaction, kind: RecordKind[Any], query: RecordQuery, dialect: Dialect) -> None:
        """Raises InvalidField if name_prefix holds no word."""
        self._transaction = transaction
        self._kind = kind
        self._dialect = dialect
        self._key_column, self._is_descending = query.order
        self._filters = filters_of(kind, query)
        self._is_live = "" if query.show_deleted or query.deleted_only else "record.deleted_us IS NULL"

    def total(self) -> int:
        """Returns the number of all matches."""
        if not self._filters:
            return self._count_all()
        select = Query(*self._select("count(*)", self._rarest()), plan_for_values=True)
        [(count,)] = self._transaction.rows(select)
        return int(count)

    def rows(self, page: PageRequest) -> Iterator[Row]:
        """Yields the rows of a page and at least one more, if there is one: the record, and its key in the order."""
        position = _Position(page.after_key, page.after) if page.after or not self._key_column else None
        limit = page.size + 1
        if not self._filters:
            return self._transaction.rows(self._walk_of_table(position, None, limit))
        if not self._key_column and len(self._filters) == 1 and self._is_one_scan(self._filters[0]):
            return self._transaction.rows(self._scan(self._filters[0], position, limit))
        return self._find(position, limit)

    def _is_one_scan(self, filter_: Filter) -> bool:
        return filter_.table == self._kind.name and len(filter_.values) <= 1

    def _find(self, position: _Position | None, limit: int) -> Walk:
        """Walks, and gathers the matches of the rarest filter once they are known to be fewer than the walk reads."""
        for budget in _BUDGETS:
            is_alone = len(self._filters) == 1 and self._walked is not None
            rare = None if is_alone else self._find_rare(budget)
            if rare:
                yield from self._transaction.rows(self._gather(rare, position, limit))
                return None
            position = yield from self._walk(position, budget, limit)
            if position is None:
                return None
        return None

    def _rarest(self) -> Filter:
        """Returns the filter with the fewest matches, approximately."""
        if len(self._filters) == 1:
            return self._filters[0]
        return next(rare for budget in _BUDGETS if (rare := self._find_rare(budget)))

    def _find_rare(self, budget: int) -> Filter | None:
        """Returns the filter with the fewest matches, if they are fewer than the budget."""
        for filter_ in self._filters:
            if filter_.has_few:
                return filter_
        counts = [(self._count(filter_, budget), n) for n, filter_ in enumerate(self._filters[:_MAX_COUNTED])]
        count, n = min(counts)
        return self._filters[n] if count < budget else None

    def _count(self, filter_: Filter, budget: int) -> int:
        """Returns the number of a filter's matches, but at most the budget."""
        source = f"{filter_.table} AS found{self._indexed(filter_.index_name)} WHERE {filter_.condition('found')}"
        if filter_.column and not self._dialect.indexed:  # the order leads PostgreSQL to the index
            source += f" ORDER BY {filter_.column.format(row='found')}, found.{filter_.id_column}"
        sql = f"SELECT count(*) FROM (SELECT 1 FROM {source} LIMIT :limit) AS counted"
        return int(self._transaction.run(sql, {**filter_.parameters, "limit": budget})[0][0])

    def _count_all(self) -> int:
        """Returns the number of all records. Both counts read an index alone."""
        deleted = f"(SELECT count(*) FROM {self._kind.name} WHERE deleted_us IS NOT NULL)"
        counted = f"count(*) - {deleted}" if self._is_live else "count(*)"
        return int(self._transaction.run(f"SELECT {counted} FROM {self._kind.name}")[0][0])

    # The matches of one filter.

    def _gather(self, filter_: Filter, position: _Position | None, limit: int) -> Query:
        """Returns the query that sorts all matches of a filter."""
        sql, parameters = self._select(self._columns, filter_, *self._after(position))
        direction = " DESC" if self._is_descending else ""
        key = f"{len(self._kind.record._fields) + 1}{direction}, " if self._key_column else ""
        sql = f"SELECT * FROM ({sql}{self._dialect.fence}) AS gathered ORDER BY {key}1{direction} LIMIT :limit"
        return Query(sql, {**parameters, **self._parameters(position, limit)}, plan_for_values=True)

    def _select(self, columns: str, filter_: Filter, *conditions: str) -> tuple[str, dict[str, Value]]:
        """Returns the SELECT of what meets all filters, found by one of them, and its parameters."""
        if filter_.table == self._kind.name:
            table = f"{filter_.table} AS record{self._indexed(filter_.index_name)}"
            found = f"{table} WHERE {filter_.condition('record')}"
        else:
            table = f"{filter_.table} AS found{self._indexed(filter_.index_name)}"
            found = self._with_ids(
                f"SELECT DISTINCT found.{self._kind.id_column} AS id FROM {table} WHERE {filter_.condition('found')}"
            )
        return f"SELECT {columns} FROM {_all(found, *self._checks(filter_), *conditions)}", self._filter_parameters

    def _scan(self, filter_: Filter, position: _Position | None, limit: int) -> Query:
        """Returns the query that reads the records of a filter in the order of its index."""
        table = f"{self._kind.name} AS record{self._indexed(filter_.index_name)}"
        scan = self._ids_of(filter_, "record", filter_.value(0) if filter_.values else "")
        sql = f"SELECT {self._columns} FROM {table} WHERE {_all(scan.select, *self._checks(filter_))}"
        return Query(f"{sql} ORDER BY {scan.order} LIMIT :limit", self._with_page(position, limit))

    def _ids_of(self, filter_: Filter, row: str, value: str) -> Scan:
        """Returns the condition of the records after :after that have one value, and the order of their index."""
        record_id = f"{row}.{self._kind.id_column}"
        column = filter_.column.format(row=row)
        where = filter_.where.format(row=row)
        if not value:
            return Scan(_all(f"{record_id} > :after", where), record_id)
        is_after = self._dialect.index_range.format(column=column, value=value, record_id=record_id)
        return Scan(_all(is_after, where), self._dialect.index_order.format(column=column, record_id=record_id))

    # Walks.

    def _walk(self, position: _Position | None, budget: int, limit: int) -> Walk:
        if self._walked:
            return (yield from self._walk_matches(*self._walked, position, budget, limit))
        end = self._end_of_walk(position, budget)
        yield from self._transaction.rows(self._walk_of_table(position, end, limit))
        return end

    def _walk_of_table(self, position: _Position | None, end: _Position | None, limit: int) -> Query:
        """Returns the query that reads the table in the order of the list, up to a position."""
        until = [self._compare(">=" if self._is_descending else "<=", "end")] if end else []
        where = _all(*self._after(position), *until, *self._checks())
        sql = f"SELECT {self._columns} FROM {self._table} WHERE {where or 'TRUE'} ORDER BY {self._order} LIMIT :limit"
        parameters = self._with_page(position, limit)
        return Query(sql, {**parameters, **({"end_key": end.key, "end": end.record_id} if end else {})})

    def _end_of_walk(self, position: _Position | None, budget: int) -> _Position | None:
        """Returns the position that a walk of some rows reaches, or None for the end of the table."""
        where = f" WHERE {_all(*self._after(position))}" if position else ""
        key = f"record.{self._key_column}" if self._key_column else "''"
        columns = f"{key}, record.{self._kind.id_column}"
        sql = f"SELECT {columns} FROM {self._table}{where} ORDER BY {self._order} LIMIT 1 OFFSET :limit"
        rows = self._transaction.run(sql, self._parameters(position, budget - 1))
        return _Position(*rows[0]) if rows else None

    @cached_property
    def _walked(self) -> tuple[Filter, list[Value]] | None:
        """The first filter whose matches can be read by id, with its values, if the list is by id."""
        if self._key_column:
            return None
        for filter_ in self._filters:
            values = self._values(filter_)
            if filter_.is_in_order and values is not None:
                return filter_, values
        return None

    def _values(self, filter_: Filter) -> list[Value] | None:
        """Returns the values of a filter: for a prefix, all words that have it. None if they are too many."""
        if not filter_.prefix:
            return list(filter_.values)
        sql = _SELECT_WORDS.format(table=filter_.table, name=filter_.name)
        words = self._transaction.run(sql, {**filter_.parameters, "limit": _MAX_WORDS + 1})
        return [word for (word,) in words] if len(words) <= _MAX_WORDS else None

    def _walk_matches(
        self, filter_: Filter, values: list[Value], position: _Position | None, budget: int, limit: int
    ) -> Walk:
        """Walks the matches of a filter by id, in growing chunks."""
        chunk = limit if len(self._filters) == 1 else max(limit, _MIN_CHUNK)
        if filter_.column and not values:  # there is no word with the prefix
            return None
        while budget > 0:
            ids = self._ids(filter_, values, position, chunk)
            yield from self._transaction.rows(self._fetch(ids, filter_, limit))
            if len(ids) < chunk:
                return None
            position = _Position("", ids[-1])
            budget -= chunk
            chunk = min(4 * chunk, _MAX_CHUNK)
        return position

    def _ids(self, filter_: Filter, values: list[Value], position: _Position | None, limit: int) -> list[str]:
        """Returns the ids of a filter's matches after a position, in order."""
        template, value = "SELECT {id} FROM {table} WHERE {where} ORDER BY {order} LIMIT :limit", ":value"
        if len(values) > 1:
            template = self._dialect.merged_ids
            value = "CAST(merged.value AS BIGINT)" if isinstance(values[0], int) else "merged.value"
        scan = self._ids_of(filter_, "found", value if values else "")
        sql = template.format(
            id=f"found.{self._kind.id_column}",
            table=f"{filter_.table} AS found{self._indexed(filter_.index_name)}",
            where=scan.select.replace(":after", "merged.id") if len(values) > 1 else scan.select,
            order=scan.order,
        )
        parameters = {**self._filter_parameters, **self._parameters(position, limit), "values": json.dumps(values)}
        rows = self._transaction.run(sql, {**parameters, "value": values[0] if values else None})
        return [record_id for (record_id,) in rows]

    def _fetch(self, ids: list[str], filter_: Filter, limit: int) -> Query:
        """Returns the query of those records that meet the other filters."""
        found = _all(self._with_ids("SELECT atom AS id FROM json_each(:ids)"), *self._checks(filter_))
        sql = f"SELECT {self._columns} FROM {found} ORDER BY 1 LIMIT :limit"
        return Query(sql, {**self._filter_parameters, "ids": json.dumps(ids), "limit": limit})

    # Parts of the statements.

    @cached_property
    def _columns(self) -> str:
        return f"{self._kind.columns}, record.{self._key_column}" if self._key_column else self._kind.columns

    @cached_property
    def _table(self) -> str:
        """The table, read in the order of the list."""
        index = {"name_key": "by_name", "updated_us": "by_update"}.get(self._key_column)
        return f"{self._kind.name} AS record{self._indexed(f'{self._kind.name}_{index}' if index else '')}"

    @cached_property
    def _order_columns(self) -> list[str]:
        return [f"record.{column}" for column in (self._key_column, self._kind.id_column) if column]

    @cached_property
    def _order(self) -> str:
        return ", ".join(f"{column} DESC" if self._is_descending else column for column in self._order_columns)

    def _after(self, position: _Position | None) -> list[str]:
        return [self._compare("<" if self._is_descending else ">", "after")] if position else []

    def _compare(self, operator: str, name: str) -> str:
        values = f":{name}_key, :{name}" if self._key_column else f":{name}"
        return f"({', '.join(self._order_columns)}) {operator} ({values})"

    def _checks(self, found_by: Filter | None = None) -> Iterator[str]:
        """Yields the conditions on a record that one filter has found."""
        if self._is_live:
            yield self._is_live
        yield from (filter_.check(self._kind) for filter_ in self._filters if filter_ is not found_by)

    def _with_ids(self, ids: str) -> str:
        return self._dialect.with_ids.format(ids=ids, table=self._kind.name, id=self._kind.id_column)

    def _indexed(self, index: str) -> str:
        return self._dialect.indexed.format(index=index) if index else ""

    @cached_property
    def _filter_parameters(self) -> dict[str, Value]:
        return {name: value for filter_ in self._filters for name, value in filter_.parameters.items()}

    def _parameters(self, position: _Position | None, limit: int) -> dict[str, Value]:
        key, after = position or ("", "")
        return {"after_key": key, "after": after, "limit": limit}

    def _with_page(self, position: _Position | None, limit: int) -> dict[str, Value]:
        return {**self._filter_parameters, **self._parameters(position, limit)}


def merge_scans(scans: list[Scan], dialect: Dialect) -> str:
    """Returns the SELECT of one page of all given scans."""
    if len(scans) == 1:
        return f"{scans[0].select} ORDER BY {scans[0].order} LIMIT :limit"
    selects = [
        dialect.merged_scan.format(scan=scan.select, number=number, order=scan.order)
        for number, scan in enumerate(scans)
    ]
    return f"SELECT * FROM ({' UNION ALL '.join(selects)}) AS merged ORDER BY 1 LIMIT :limit"


def enum_list(values: Iterable[int]) -> str:
    """Returns enum numbers as SQL text. Only known numbers occur, so there are few statements to prepare."""
    return ", ".join(str(int(value)) for value in sorted(set(values)))


def _all(*conditions: str) -> str:
    return " AND ".join(condition for condition in conditions if condition)
