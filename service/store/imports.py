"""Fills an empty store from the lines that exports.py writes."""

import json
from collections.abc import Iterator, Sequence
from functools import partial
from itertools import groupby, islice, pairwise
from typing import Any, BinaryIO, Final, Protocol

from service.store import content
from service.store.content import FOUND, PAGE_ROWS, TABLES, Table, Tally
from service.store.database import Row
from service.store.exports import FORMAT, Progress

LINE_BYTES: Final = 1024 * 1024
"""No line is as long: a record is 32 KiB at most, and what one call was answered with about 100."""
_TIMES: Final = (-62_135_596_800_000_000, 253_402_300_799_999_999)
"""The microseconds that a Timestamp can say: the years 1 to 9999."""
_NUMBERS: Final = (0, 2**63 - 1)
_decode = json.JSONDecoder().raw_decode
_Numbered = tuple[int, bytes]


class ImportRefused(Exception):
    """These are not the lines of a whole store; the text says which line and field, and no value."""


class RuleBroken(Exception):
    """Rows that the schema refuses; the text names the rule or its columns, and no value."""


class Loading(Protocol):
    """A transaction on an empty store that takes many rows at once. Both methods raise RuleBroken."""

    def add(self, table: str, columns: tuple[str, ...], rows: list[Row]) -> None:
        """Adds rows, in the order of the columns."""

    def adopt(self, secret: bytes, head_revision: int, oldest_revision: int) -> None:
        """Makes the store go on where the exported one stopped."""


def load(source: BinaryIO, loading: Loading, schema: str, progress: Progress) -> Tally:
    """Adds everything, in bits of bounded size. Raises ImportRefused.

    Args: schema, the newest step of the empty store's; progress is of bytes.
    """
    numbered = enumerate(iter(partial(source.readline, LINE_BYTES), b""), 1)
    number, first = next(numbered, (1, b""))
    secret = _header(number, first, schema)
    progress(len(first))
    tally = Tally()
    tables = [(f'{{"{table.name}"'.encode(), table) for table in TABLES]
    for start, group in groupby(numbered, lambda line: line[1].partition(b":")[0]):
        while tables and tables[0][0] != start:
            del tables[0]
        if not tables:
            number, last = next(group)
            progress(len(last))
            return _end(number, last, tally)
        table = tables.pop(0)[1]
        for batch in _batches(table, group):
            if table.name == "store":
                loading.adopt(secret, *batch.rows[0])
            else:
                batch.add_to(loading)
            tally.add(table, len(batch.rows), batch.content)
            progress(len(batch.content))
            number += len(batch.rows)
    raise ImportRefused(f"line {number + 1}: is missing, and all that follow it: the file was cut off")


def _parse(number: int, line: bytes) -> tuple[str, dict[str, Any]]:
    """The one name in a line, and the columns under it. Raises ImportRefused."""
    try:
        text = line.decode()
        one, end = _decode(text)
        [(name, values)] = one.items()
    except (ValueError, AttributeError, RecursionError):
        raise _refusal(number, "is not an object of JSON with one name, or was cut off") from None
    if type(values) is not dict or text[end:] != "\n":
        raise _refusal(number, "is not one object of JSON in another, or was cut off")
    if b"\\u" in line and not all(map(_is_stored, values.values())):
        raise _refusal(number, "holds a character that no text has")
    return name, values


def _is_stored(value: Any) -> bool:
    """Whether a database takes it, where it is text: neither NUL nor half of a surrogate pair."""
    return not (isinstance(value, str) and any(one == "\0" or "\ud800" <= one <= "\udfff" for one in value))


def _refusal(number: int, text: str) -> ImportRefused:
    return ImportRefused(f"line {number}: {text}")


def _header(number: int, line: bytes, schema: str) -> bytes:
    """The secret of the store that was exported. Raises ImportRefused."""
    name, values = _parse(number, line)
    if name != "caseload" or values.get("format") != FORMAT:
        raise _refusal(number, "is not the beginning of an export that this version can read")
    if values.get("schema") != schema:
        raise _refusal(number, "schema: is not the newest of this version: export and import with the same one")
    try:
        return bytes.fromhex(values["secret"])
    except (KeyError, TypeError, ValueError):
        raise _refusal(number, "secret: must be hex") from None


def _end(number: int, line: bytes, tally: Tally) -> Tally:
    """Raises ImportRefused where the lines before are not what was written."""
    name, values = _parse(number, line)
    if name != "end":
        raise _refusal(number, "is of no table, or out of order")
    if tally.rows["store"] != 1 or values != {"rows": tally.rows, "digest": tally.digest}:
        raise _refusal(number, "the lines before it are not those that were exported")
    return tally


def _batches(table: Table, lines: Iterator[_Numbered]) -> Iterator["_Batch"]:
    last: Row = ()
    while some := list(islice(lines, PAGE_ROWS)):
        batch = _Batch(table, some)
        last = batch.check_order(last)
        yield batch


class _Batch:
    """Lines of one table as its rows, checked."""

    def __init__(self, table: Table, lines: list[_Numbered]) -> None:
        """Raises ImportRefused."""
        self._table = table
        self._first = lines[0][0]
        self.content = b"".join(line for _, line in lines)
        columns = tuple(table.columns)
        rows = []
        for number, line in lines:
            values = _parse(number, line)[1]
            if tuple(values) != columns:
                raise _refusal(number, f"must hold the columns of {table.name} in their order, and no others")
            rows.append(tuple(values.values()))
        checked = map(self._column, columns, table.columns.values(), zip(*rows, strict=True))
        self.rows: list[Row] = list(zip(*checked, strict=True))

    def _column(self, name: str, types: tuple[type, ...], values: tuple[Any, ...]) -> Sequence[Any]:
        """One column as it is stored. By columns, because by rows it takes several times as long."""
        in_line = {str if one is bytes else one for one in types}
        if not set(map(type, values)) <= in_line:
            raise self._refusal([type(value) in in_line for value in values].index(False), name, "is not of its type")
        if int in types:
            least, most = _TIMES if name.endswith("_us") else _NUMBERS
            numbers = [least if value is None else value for value in values]
            if min(numbers) < least or max(numbers) > most:
                place = [least <= value <= most for value in numbers].index(False)
                raise self._refusal(place, name, "is out of bounds")
        return [self._unhexed(place, name, value) for place, value in enumerate(values)] if bytes in types else values

    def _unhexed(self, place: int, column: str, value: str) -> bytes:
        try:
            return bytes.fromhex(value)
        except ValueError:
            raise self._refusal(place, column, "is not hex") from None

    def _refusal(self, place: int, column: str, text: str) -> ImportRefused:
        return _refusal(self._first + place, f"{self._table.name}.{column}: {text}")

    def check_order(self, last: Row) -> Row:
        """The last key. Raises ImportRefused unless the keys go up, from the last one before."""
        keys = [last, *(row[: self._table.key_width] for row in self.rows)]
        for place, (one, other) in enumerate(pairwise(keys)):
            if one >= other:
                raise self._refusal(place, self._table.key[0], "is out of order, or there twice")
        return keys[-1]

    def add_to(self, loading: Loading) -> None:
        """Adds the rows, with what they are found by. Raises ImportRefused."""
        table = self._table
        found: dict[str, list[Row]] = {}
        if "display_name" in table.columns:
            for name, more in self._found():
                found.setdefault(name, []).extend(more)
        try:
            loading.add(table.name, tuple(table.columns), self.rows)
            for name, rows in found.items():
                loading.add(name, FOUND[name], rows)
        except RuleBroken as error:
            last = self._first + len(self.rows) - 1
            raise ImportRefused(f"lines {self._first} to {last}: break a rule of {table.name}: {error}") from None

    def _found(self) -> Iterator[tuple[str, list[Row]]]:
        for place, row in enumerate(self.rows):
            try:
                yield from content.found_by(self._table, row).items()
            except content.Malformed as error:
                raise self._refusal(place, str(error), "is not the JSON that it must be") from None
