"""The SELECTs of lists of therapists and patients. The module `lists` decides which of them find a page."""

import json
from collections.abc import Iterator
from functools import cached_property
from typing import Any, Final, NamedTuple

from caseload_server.domain.requests import RecordQuery
from caseload_server.store.backends.protocol import Dialect, Query, Value
from caseload_server.store.filters import Filter, filters_of
from caseload_server.store.records import RecordKind

_INDEX_OF_ORDER: Final = {"name_key": "by_name", "updated_us": "by_update"}
"""The index of each column by which lists are ordered, without the name of the table."""
_SELECT_IDS: Final = "SELECT {id} FROM {table} WHERE {where} ORDER BY {order} LIMIT :limit"
_SELECT_WORDS: Final = """
WITH RECURSIVE next_word(word) AS (
    SELECT (SELECT MIN(word) FROM {table} WHERE word >= :{name} AND word < :{name}_end)
    UNION ALL
    SELECT (SELECT MIN(word) FROM {table} WHERE word > next_word.word AND word < :{name}_end)
    FROM next_word WHERE next_word.word IS NOT NULL
)
SELECT word FROM next_word WHERE word IS NOT NULL LIMIT :limit"""
"""It jumps from word to word in the index."""


class Position(NamedTuple):
    """Where a page or a walk begins: after this record. The key is empty in lists by id."""

    key: str | int
    record_id: str


class RecordSelects:
    """The SELECTs of one list. A row has the columns of the record, and then its key in the order, if there is one."""

    def __init__(self, kind: RecordKind[Any], query: RecordQuery, dialect: Dialect) -> None:
        """Raises InvalidField if name_prefix holds no word."""
        self._kind = kind
        self._dialect = dialect
        self._key_column, self._is_descending = query.order
        self._is_live = "" if query.show_deleted or query.deleted_only else "record.deleted_us IS NULL"
        self.filters: Final = filters_of(kind, query)

    # Pages of records.

    def in_order(self, position: Position | None, limit: int, end: Position | None = None) -> Query:
        """Returns the query that reads the table in the order of the list. Args: end, the last position to read."""
        until = [self._compare(">=" if self._is_descending else "<=", "end")] if end else []
        where = _all(*self._after(position), *until, *self._checks())
        sql = f"SELECT {self._columns} FROM {self._table} WHERE {where or 'TRUE'} ORDER BY {self._order} LIMIT :limit"
        end_key, end_id = end or ("", "")
        return Query(sql, {**self._page(position, limit), "end_key": end_key, "end": end_id})

    def in_index(self, filter_: Filter, position: Position | None, limit: int) -> Query:
        """Returns the query that reads the records of a filter by id, in its index. It has one value at most."""
        where, order = self._after_id(filter_, "record", filter_.value(0) if filter_.values else "")
        sql = f"SELECT {self._columns} FROM {self._records(filter_.index_name)} WHERE"
        sql = f"{sql} {_all(where, *self._checks(filter_))} ORDER BY {order} LIMIT :limit"
        return Query(sql, self._page(position, limit))

    def sorted_matches(self, filter_: Filter, position: Position | None, limit: int) -> Query:
        """Returns the query that reads all matches of a filter, and sorts them."""
        found = f"{self._select(self._columns, filter_, *self._after(position))}{self._dialect.fence}"
        direction = " DESC" if self._is_descending else ""
        key = f"{len(self._kind.record._fields) + 1}{direction}, " if self._key_column else ""
        sql = f"SELECT * FROM ({found}) AS gathered ORDER BY {key}1{direction} LIMIT :limit"
        return Query(sql, self._page(position, limit), plan_for_values=True)

    def with_ids(self, ids: list[str], filter_: Filter, limit: int) -> Query:
        """Returns the query that reads the records with these ids by id. Args: filter_, which has found the ids."""
        found = _all(self._join("SELECT atom AS id FROM json_each(:ids)"), *self._checks(filter_))
        sql = f"SELECT {self._columns} FROM {found} ORDER BY 1 LIMIT :limit"
        return Query(sql, {**self._parameters, "ids": json.dumps(ids), "limit": limit})

    # What a walk reads to find them.

    def position_at(self, position: Position | None, offset: int) -> Query:
        """Returns the query of the position that is so many records of the table behind another."""
        where = f" WHERE {_all(*self._after(position))}" if position else ""
        key = f"record.{self._key_column}" if self._key_column else "''"
        columns = f"{key}, record.{self._kind.id_column}"
        sql = f"SELECT {columns} FROM {self._table}{where} ORDER BY {self._order} LIMIT 1 OFFSET :limit"
        return Query(sql, self._page(position, offset))

    def ids(self, filter_: Filter, values: list[Value], position: Position | None, limit: int) -> Query:
        """Returns the query of the ids of a filter's matches, in order. Args: values, of its column, if it has one."""
        template, value = _SELECT_IDS, ":value" if values else ""
        if len(values) > 1:
            template = self._dialect.merged_ids
            value = "CAST(merged.value AS BIGINT)" if isinstance(values[0], int) else "merged.value"
        where, order = self._after_id(filter_, "found", value)
        if len(values) > 1:
            where = where.replace(":after", "merged.id")
        table = self._matches(filter_)
        sql = template.format(id=f"found.{self._kind.id_column}", table=table, where=where, order=order)
        first = values[0] if values else None
        return Query(sql, {**self._page(position, limit), "values": json.dumps(values), "value": first})

    def words(self, filter_: Filter, limit: int) -> Query:
        """Returns the query of the words with the prefix of a filter."""
        sql = _SELECT_WORDS.format(table=filter_.table, name=filter_.name)
        return Query(sql, {**filter_.parameters, "limit": limit})

    # Counts.

    def count_all(self) -> Query:
        """Returns the query of the number of all records. Both counts read an index alone."""
        deleted = f"(SELECT count(*) FROM {self._kind.name} WHERE deleted_us IS NOT NULL)"
        return Query(f"SELECT count(*){f' - {deleted}' if self._is_live else ''} FROM {self._kind.name}", {})

    def count_found(self, filter_: Filter) -> Query:
        """Returns the query of the number of records that meet all filters. Args: filter_, which finds them."""
        return Query(self._select("count(*)", filter_), self._parameters, plan_for_values=True)

    def count_matches(self, filter_: Filter, limit: int) -> Query:
        """Returns the query of the number of a filter's own matches, at most the limit."""
        source = f"{self._matches(filter_)} WHERE {filter_.condition('found')}"
        if filter_.column and not self._dialect.indexed:  # the order leads PostgreSQL to the index
            source += f" ORDER BY {filter_.column.format(row='found')}, found.{filter_.id_column}"
        sql = f"SELECT count(*) FROM (SELECT 1 FROM {source} LIMIT :limit) AS counted"
        return Query(sql, {**filter_.parameters, "limit": limit})

    # Parts of the statements.

    @cached_property
    def _columns(self) -> str:
        return f"{self._kind.columns}, record.{self._key_column}" if self._key_column else self._kind.columns

    @cached_property
    def _table(self) -> str:
        """The table, read in the order of the list."""
        return self._records(f"{self._kind.name}_{_INDEX_OF_ORDER[self._key_column]}" if self._key_column else "")

    @cached_property
    def _order_columns(self) -> list[str]:
        return [f"record.{column}" for column in (self._key_column, self._kind.id_column) if column]

    @cached_property
    def _order(self) -> str:
        return ", ".join(f"{column} DESC" if self._is_descending else column for column in self._order_columns)

    def _after(self, position: Position | None) -> list[str]:
        return [self._compare("<" if self._is_descending else ">", "after")] if position else []

    def _compare(self, operator: str, name: str) -> str:
        values = f":{name}_key, :{name}" if self._key_column else f":{name}"
        return f"({', '.join(self._order_columns)}) {operator} ({values})"

    def _after_id(self, filter_: Filter, row: str, value: str) -> tuple[str, str]:
        """Returns the condition of the matches after :after that have one value, and the order of their index."""
        record_id = f"{row}.{self._kind.id_column}"
        column = filter_.column.format(row=row)
        where = filter_.where.format(row=row)
        if not value:
            return _all(f"{record_id} > :after", where), record_id
        is_after = self._dialect.index_range.format(column=column, value=value, record_id=record_id)
        return _all(is_after, where), self._dialect.index_order.format(column=column, record_id=record_id)

    def _select(self, columns: str, filter_: Filter, *conditions: str) -> str:
        """Returns the SELECT of what meets all filters. One of them finds it."""
        if filter_.table == self._kind.name:
            found = f"{self._records(filter_.index_name)} WHERE {filter_.condition('record')}"
        else:
            ids = f"SELECT DISTINCT found.{self._kind.id_column} AS id FROM {self._matches(filter_)}"
            found = self._join(f"{ids} WHERE {filter_.condition('found')}")
        return f"SELECT {columns} FROM {_all(found, *self._checks(filter_), *conditions)}"

    def _checks(self, found_by: Filter | None = None) -> Iterator[str]:
        """Yields the conditions on a record that one filter has found."""
        if self._is_live:
            yield self._is_live
        yield from (filter_.check(self._kind) for filter_ in self.filters if filter_ is not found_by)

    def _join(self, ids: str) -> str:
        """Returns the records that a SELECT of their ids finds, as FROM and WHERE."""
        return self._dialect.with_ids.format(ids=ids, table=self._kind.name, id=self._kind.id_column)

    def _records(self, index: str) -> str:
        return f"{self._kind.name} AS record{self._indexed(index)}"

    def _matches(self, filter_: Filter) -> str:
        return f"{filter_.table} AS found{self._indexed(filter_.index_name)}"

    def _indexed(self, index: str) -> str:
        return self._dialect.indexed.format(index=index) if index else ""

    @cached_property
    def _parameters(self) -> dict[str, Value]:
        return {name: value for filter_ in self.filters for name, value in filter_.parameters.items()}

    def _page(self, position: Position | None, limit: int) -> dict[str, Value]:
        key, after = position or ("", "")
        return {**self._parameters, "after_key": key, "after": after, "limit": limit}


def _all(*conditions: str) -> str:
    return " AND ".join(condition for condition in conditions if condition)
