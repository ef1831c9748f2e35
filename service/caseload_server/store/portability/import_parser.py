"""The lines that exports.py writes, as rows: checked, in batches, and column by column, which is quickest."""

from collections.abc import Iterator, Sequence
from functools import partial
from itertools import groupby, islice
from operator import lt
from typing import Any, BinaryIO, Final, NamedTuple

from caseload_server.store.backends.protocol import Row
from caseload_server.store.portability import content
from caseload_server.store.portability.content import PAGE_ROWS, TABLES, Table, Tally
from caseload_server.store.portability.export import FORMAT

LINE_BYTES: Final = 1024 * 1024
"""No line is as long: a record is 32 KiB at most, and what one call was answered with about 100."""
HEADER: Final = "caseload"
END: Final = "end"
_TIMES: Final = (-62_135_596_800_000_000, 253_402_300_799_999_999)
"""The microseconds that a Timestamp can say: the years 1 to 9999."""
_NUMBERS: Final = (0, 2**63 - 1)


class ImportRefused(Exception):
    """These are not the lines of a whole store; the text says which line and field, and no value."""


class Batch(NamedTuple):
    """Some lines as rows."""

    first: int
    """The number of the first line."""
    last: int
    size: int
    """In bytes."""
    rows: dict[str, list[Row]]
    """The rows of the lines' table, and those of the tables that its records are found by. The header has its secret,
    the end the digest."""


def batches(source: BinaryIO, schema: str) -> Iterator[Batch]:
    """All lines, in order. Raises ImportRefused.

    Args: schema, the newest step of the empty store's.
    """
    lines = iter(partial(source.readline, LINE_BYTES), b"")
    first = next(lines, b"")
    yield Batch(1, 1, len(first), {HEADER: [(_secret(first, schema),)]})
    number = 2
    tally = Tally()
    tables = [(f'{{"{table.name}"'.encode(), table) for table in TABLES]
    for start, group in groupby(lines, lambda line: line.partition(b":")[0]):
        while tables and tables[0][0] != start:
            del tables[0]
        if not tables:
            line = next(group)
            yield Batch(number, number, len(line), {END: [(_digest(number, line, tally),)]})
            return
        table = tables.pop(0)[1]
        last: Row = ()
        while some := list(islice(group, PAGE_ROWS)):
            text = b"".join(some)
            rows = _Rows(table, number, some, text)
            last = rows.check_order(last)
            tally.add(table, len(some), text)
            yield Batch(number, number + len(some) - 1, len(text), {table.name: rows.rows, **rows.found_by()})
            number += len(some)
    raise ImportRefused(f"line {number}: is missing, and all that follow it: the file was cut off")


def _parse(number: int, line: bytes) -> tuple[str, dict[str, Any]]:
    """The one name in a line, and the columns under it. Raises ImportRefused."""
    try:
        text = line.decode()
        [one] = content.scan([text.removesuffix("\n")])
        [(name, values)] = one.items()
    except (ValueError, AttributeError, RecursionError):
        raise _refusal(number, "is not an object of JSON with one name, or was cut off") from None
    if type(values) is not dict or not text.endswith("\n"):
        raise _refusal(number, "is not one object of JSON in another, or was cut off")
    if b"\\u" in line and not all(map(_is_stored, values.values())):
        raise _refusal(number, "holds a character that no text has")
    return name, values


def _is_stored(value: Any) -> bool:
    """Whether a database takes it, where it is text: neither NUL nor half of a surrogate pair."""
    return not (isinstance(value, str) and any(one == "\0" or "\ud800" <= one <= "\udfff" for one in value))


def _refusal(number: int, text: str) -> ImportRefused:
    return ImportRefused(f"line {number}: {text}")


def _secret(line: bytes, schema: str) -> bytes:
    """The secret of the store that was exported, from its first line. Raises ImportRefused."""
    name, values = _parse(1, line)
    if name != HEADER or values.get("format") != FORMAT:
        raise _refusal(1, "is not the beginning of an export that this version can read")
    if values.get("schema") != schema:
        raise _refusal(1, "schema: is not the newest of this version: export and import with the same one")
    try:
        return bytes.fromhex(values["secret"])
    except (KeyError, TypeError, ValueError):
        raise _refusal(1, "secret: must be hex") from None


def _digest(number: int, line: bytes, tally: Tally) -> str:
    """The digest in the last line. Raises ImportRefused where the lines before are not what was written."""
    name, values = _parse(number, line)
    if name != END:
        raise _refusal(number, "is of no table, or out of order")
    if tally.rows["store"] != 1 or values != {"rows": tally.rows, "digest": tally.digest}:
        raise _refusal(number, "the lines before it are not those that were exported")
    return tally.digest


class _Rows:
    """LogSink of one table as its rows, checked."""

    def __init__(self, table: Table, first: int, lines: list[bytes], text: bytes) -> None:
        """Args: text, the lines joined. Raises ImportRefused."""
        self._table = table
        self._first = first
        names = tuple(table.columns)
        objects = self._objects(lines, text)
        if {*map(tuple, objects)} != {names}:
            place = [tuple(one) == names for one in objects].index(False)
            raise _refusal(first + place, f"must hold the columns of {table.name} in their order, and no others")
        columns = zip(*map(dict.values, objects), strict=True)
        checked = map(self._column, names, table.columns.values(), columns)
        self.rows: list[Row] = list(zip(*checked, strict=True))

    def _objects(self, lines: list[bytes], text: bytes) -> list[dict[str, Any]]:
        """What stands under the table's name in each line. Raises ImportRefused."""
        try:
            *texts, rest = text.decode().split("\n")
            wholes = content.scan(texts)
            objects = [one[self._table.name] for one in wholes]
            if not rest and {*map(len, wholes)} == {1} and {*map(type, objects)} == {dict} and b"\\u" not in text:
                return objects
        except (ValueError, LookupError, TypeError, RecursionError):
            pass
        # Line by line, to tell which one it is.
        return [_parse(number, line)[1] for number, line in enumerate(lines, self._first)]

    def _column(self, name: str, types: tuple[type, ...], values: tuple[Any, ...]) -> Sequence[Any]:
        """One column as it is stored."""
        in_line = {str if one is bytes else one for one in types}
        if not set(map(type, values)) <= in_line:
            raise self._refusal([type(value) in in_line for value in values].index(False), name, "is not of its type")
        if int in types:
            least, most = _TIMES if name.endswith("_us") else _NUMBERS
            numbers = [least if value is None else value for value in values] if len(types) > 1 else values
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
        if not all(map(lt, keys, keys[1:])):
            place = list(map(lt, keys, keys[1:])).index(False)
            raise self._refusal(place, self._table.key[0], "is out of order, or there twice")
        return keys[-1]

    def found_by(self) -> dict[str, list[Row]]:
        """The rows that people are found by, by table. Raises ImportRefused."""
        if "display_name" not in self._table.columns:
            return {}
        try:
            return content.found_by(self._table, self.rows)
        except content.Malformed:
            for place, row in enumerate(self.rows):
                self._check_nested(place, row)
            raise

    def _check_nested(self, place: int, row: Row) -> None:
        try:
            content.found_by(self._table, [row])
        except content.Malformed as error:
            raise self._refusal(place, str(error), "is not the JSON that it must be") from None
