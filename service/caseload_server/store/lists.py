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

from collections.abc import Generator, Iterator
from functools import cached_property
from typing import Any, Final

from caseload_server.domain.requests import PageRequest, RecordQuery
from caseload_server.store.backends.protocol import Dialect, Query, Row, Transaction, Value
from caseload_server.store.filters import Filter
from caseload_server.store.record_selects import Position, RecordSelects
from caseload_server.store.records import RecordKind

_BUDGETS: Final = [10**exponent for exponent in range(3, 19)]
"""How many rows one turn reads at most. With the last one, every filter is rare enough to be gathered."""
_MAX_COUNTED: Final = 8
"""The matches of at most this many filters are counted: the rarest of a long name is among its longest words."""
_MAX_WORDS: Final = 200
"""A walk merges the records of at most this many words with a prefix."""
_MIN_CHUNK: Final = 50
_MAX_CHUNK: Final = 4000
"""How many rows a walk of a filter's matches reads at once, if other filters reject some of them."""

Walk = Generator[Row, None, Position | None]
"""Yields rows. Returns where it stopped, or None at the end."""


class RecordList:
    """The list of one query, as one transaction sees it."""

    def __init__(self, transaction: Transaction, kind: RecordKind[Any], query: RecordQuery, dialect: Dialect) -> None:
        """Raises InvalidField if name_prefix holds no word."""
        self._transaction = transaction
        self._table = kind.name
        self._is_by_id = not query.order.column
        self._dialect = dialect
        self._selects = RecordSelects(kind, query, dialect)
        self._filters = self._selects.filters

    def total(self) -> int:
        """Returns the number of all matches."""
        if not self._filters:
            return self._number(self._selects.count_all())
        [(count,)] = self._transaction.rows(self._selects.count_found(self._rarest()))
        return int(count)

    def rows(self, page: PageRequest) -> Iterator[Row]:
        """Yields the rows of a page and at least one more, if there is one: the record, and its key in the order."""
        position = Position(page.after_key, page.after) if page.after or self._is_by_id else None
        limit = page.size + 1
        if not self._filters:
            return self._transaction.rows(self._selects.in_order(position, limit))
        if self._is_one_scan():
            return self._transaction.rows(self._selects.in_index(self._filters[0], position, limit))
        return self._find(position, limit)

    def _is_one_scan(self) -> bool:
        first, *others = self._filters
        return self._is_by_id and not others and first.table == self._table and len(first.values) <= 1

    def _find(self, position: Position | None, limit: int) -> Iterator[Row]:
        """Walks, and gathers the matches of the rarest filter once they are known to be fewer than the walk reads."""
        walks_only_filter = len(self._filters) == 1 and self._walked is not None  # no other rejects what it reads
        for budget in _BUDGETS:
            if not walks_only_filter and (rare := self._find_rare(budget)):
                yield from self._transaction.rows(self._selects.sorted_matches(rare, position, limit))
                return
            position = yield from self._walk(position, budget, limit)
            if position is None:
                return

    # The rarest filter.

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
        counts = [
            (self._number(self._selects.count_matches(filter_, budget)), n)
            for n, filter_ in enumerate(self._filters[:_MAX_COUNTED])
        ]
        count, n = min(counts)
        return self._filters[n] if count < budget else None

    # Walks.

    def _walk(self, position: Position | None, budget: int, limit: int) -> Walk:
        if self._walked:
            return (yield from self._walk_matches(*self._walked, position, budget, limit))
        ends = self._run(self._selects.position_at(position, budget - 1))
        end = Position(*ends[0]) if ends else None
        yield from self._transaction.rows(self._selects.in_order(position, limit, end))
        return end

    @cached_property
    def _walked(self) -> tuple[Filter, list[Value]] | None:
        """The first filter whose matches can be read by id, with the values of its column, if the list is by id."""
        for filter_ in self._filters if self._is_by_id else ():
            values = self._values(filter_)
            if filter_.is_in_order and values is not None:
                return filter_, values
        return None

    def _values(self, filter_: Filter) -> list[Value] | None:
        """Returns the values of a filter: for a prefix, all words that have it. None if they are too many."""
        if not filter_.prefix:
            return list(filter_.values)
        words = self._run(self._selects.words(filter_, _MAX_WORDS + 1))
        return [word for (word,) in words] if len(words) <= _MAX_WORDS else None

    def _walk_matches(
        self, filter_: Filter, values: list[Value], position: Position | None, budget: int, limit: int
    ) -> Walk:
        """Walks the matches of a filter by id, in growing chunks."""
        if filter_.prefix and not values:  # there is no word with the prefix
            return None
        rows_of_an_id = len(values) if self._dialect.merges_in_full and values else 1
        chunk = limit if len(self._filters) == 1 else max(limit, _MIN_CHUNK)
        max_chunk = max(chunk, _MAX_CHUNK // rows_of_an_id)
        while budget > 0:
            ids = [record_id for (record_id,) in self._run(self._selects.ids(filter_, values, position, chunk))]
            yield from self._transaction.rows(self._selects.with_ids(ids, filter_, limit))
            if len(ids) < chunk:
                return None
            position = Position("", ids[-1])
            budget -= chunk * rows_of_an_id
            chunk = min(4 * chunk, max_chunk)
        return position

    def _run(self, query: Query) -> list[Row]:
        return self._transaction.run(query.sql, query.parameters)

    def _number(self, query: Query) -> int:
        return int(self._run(query)[0][0])
