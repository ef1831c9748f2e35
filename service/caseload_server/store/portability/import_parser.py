"""Parses and validates export lines, in batches. It works column by column, which is fastest."""

from collections.abc import Iterator, Sequence
from itertools import groupby
from operator import lt
from typing import Any, BinaryIO, Final, NamedTuple

from caseload_server.store.backends.protocol import Row
from caseload_server.store.portability import content, value_rules
from caseload_server.store.portability.content import PAGE_ROWS, TABLES, ContentDigest, MalformedColumn, Table
from caseload_server.store.portability.export import FORMAT
from caseload_server.store.portability.import_lines import ImportRefused, lines_of, refusal

HEADER: Final = "caseload"
END: Final = "end"
_PAGE_BYTES: Final = 4 * 1024 * 1024
"""Lines of together this size are parsed at once, even if they are fewer than PAGE_ROWS."""


class Batch(NamedTuple):
    """Consecutive lines as rows."""

    first: int
    """Number of the first line, from 1."""
    last: int
    """Number of the last line."""
    size: int
    """Size of the lines, in bytes."""
    rows: dict[str, list[Row]]
    """Rows by table: those of the lines, and those of the search tables. The header holds the secret, the end line the
    digest."""


def batches(source: BinaryIO, schema: str) -> Iterator[Batch]:
    """Parses all lines, in order. Raises ImportRefused.

    Args: schema, the newest migration of the empty store.
    """
    lines = lines_of(source)
    first = next(lines, b"")
    yield Batch(1, 1, len(first), {HEADER: [(_parse_header(first, schema),)]})
    number = 2
    content_digest = ContentDigest()
    tables = [(f'{{"{table.name}"'.encode(), table) for table in TABLES]
    for start, group in groupby(lines, lambda line: line.partition(b":")[0]):
        while tables and tables[0][0] != start:
            del tables[0]
        if not tables:
            line = next(group)
            digest = _parse_end(number, line, content_digest)
            if next(lines, b""):
                raise refusal(number + 1, "follows the line that ends the export")
            yield Batch(number, number, len(line), {END: [(digest,)]})
            return
        table = tables.pop(0)[1]
        last_key: Row = ()
        while page := _next_page(group):
            text = b"".join(page)
            parsed = _ParsedRows(table, number, page, text)
            last_key = parsed.check_order(last_key)
            content_digest.add(table, len(page), text)
            rows = {table.name: parsed.rows_with_keys(), **parsed.search_rows()}
            yield Batch(number, number + len(page) - 1, len(text), rows)
            number += len(page)
    raise ImportRefused(f"line {number}: is missing: the file is truncated")


def _next_page(lines: Iterator[bytes]) -> list[bytes]:
    """Returns up to PAGE_ROWS lines, and fewer long ones, so that a small compressed file cannot fill the memory."""
    page, size = [], 0
    for line in lines:
        page.append(line)
        size += len(line)
        if len(page) == PAGE_ROWS or size >= _PAGE_BYTES:
            break
    return page


def _parse_line(number: int, line: bytes, table: Table | None = None) -> tuple[str, dict[str, Any]]:
    """Returns the name in a line and the columns under it. Raises ImportRefused. Args: table, that of the line."""
    try:
        if b"\r" in line:  # JSON would allow it, and only the digest would not match
            raise refusal(number, "has a carriage return: line ends must be LF, not CRLF")
        text = line.decode()
        [value] = content.parse_all([text.removesuffix("\n")])
        [(name, columns)] = value.items()
    except content.DuplicateKey as error:
        [key] = error.args
        if table and key in table.columns:
            raise refusal(number, f"{table.name}.{key}: is there twice") from None
        raise refusal(number, "has a key twice") from None
    except (ValueError, AttributeError, RecursionError):
        raise refusal(number, "is not a JSON object with one name, or is truncated") from None
    if type(columns) is not dict or not text.endswith("\n"):
        raise refusal(number, "is not a JSON object inside another, or is truncated")
    if b"\\u" in line and not all(content.is_storable(value) for value in columns.values() if isinstance(value, str)):
        raise refusal(number, "contains a character that cannot be stored")
    return name, columns


def _parse_header(line: bytes, schema: str) -> bytes:
    """Checks the first line and returns the secret of the exported store. Raises ImportRefused."""
    name, values = _parse_line(1, line)
    if name != HEADER or values.get("format") != FORMAT:
        raise refusal(1, "is not the header of an export that this version can read")
    if values.get("schema") != schema:
        raise refusal(1, "schema: is not the newest of this version: export and import with the same version")
    try:
        return bytes.fromhex(values["secret"])
    except (KeyError, TypeError, ValueError):
        raise refusal(1, "secret: must be hex") from None


def _parse_end(number: int, line: bytes, content_digest: ContentDigest) -> str:
    """Checks the last line and returns its digest. Raises ImportRefused if the lines before it were changed."""
    name, values = _parse_line(number, line)
    if name != END:
        raise refusal(number, "belongs to no table, or is out of order")
    expected = {"rows": content_digest.row_counts, "digest": content_digest.digest}
    if content_digest.row_counts["store"] != 1 or values != expected:
        raise refusal(number, "the lines before it do not match its row counts and digest")
    return content_digest.digest


class _ParsedRows:
    """The rows of consecutive lines of one table, validated."""

    def __init__(self, table: Table, first: int, lines: list[bytes], text: bytes) -> None:
        """Args: first, number of the first line; text, the lines joined. Raises ImportRefused."""
        self._table = table
        self._first = first
        names = tuple(table.columns)
        objects = self._parse_objects(lines, text)
        if {*map(tuple, objects)} != {names}:
            index = [tuple(columns) == names for columns in objects].index(False)
            raise refusal(first + index, f"must have exactly the columns of {table.name}, in order")
        columns = zip(*map(dict.values, objects), strict=True)
        checked = map(self._check_column, names, table.columns.values(), columns)
        self.rows: list[Row] = list(zip(*checked, strict=True))

    def _parse_objects(self, lines: list[bytes], text: bytes) -> list[dict[str, Any]]:
        """Returns the object under the table's name of each line. Raises ImportRefused."""
        try:
            *texts, rest = text.decode().split("\n")
            values = content.parse_all(texts)
            objects = [value[self._table.name] for value in values]
            if not rest and {*map(len, values)} == {1} and {*map(type, objects)} == {dict} and b"\\u" not in text:
                return objects
        except (ValueError, LookupError, TypeError, RecursionError):
            pass
        # Line by line, to find the invalid one.
        return [_parse_line(number, line, self._table)[1] for number, line in enumerate(lines, self._first)]

    def _check_column(self, name: str, types: tuple[type, ...], values: tuple[Any, ...]) -> Sequence[Any]:
        """Returns the values of one column in their stored form. Raises ImportRefused."""
        json_types = {str if one is bytes else one for one in types}
        if not set(map(type, values)) <= json_types:
            index = [type(value) in json_types for value in values].index(False)
            raise self._refusal(index, name, "has the wrong type")
        for index in value_rules.invalid(self._table, name, values):
            raise self._refusal(index, name, "is out of range" if int in types else "is malformed")
        return [self._from_hex(index, name, value) for index, value in enumerate(values)] if bytes in types else values

    def _from_hex(self, index: int, column: str, value: str) -> bytes:
        try:
            return bytes.fromhex(value)
        except ValueError:
            raise self._refusal(index, column, "is not hex") from None

    def _refusal(self, index: int, column: str, text: str) -> ImportRefused:
        return refusal(self._first + index, f"{self._table.name}.{column}: {text}")

    def check_order(self, last_key: Row) -> Row:
        """Checks that the keys ascend, from the last key before these rows. Returns their last key.

        Raises ImportRefused.
        """
        keys = [last_key, *(row[: self._table.key_width] for row in self.rows)]
        if not all(map(lt, keys, keys[1:])):
            index = list(map(lt, keys, keys[1:])).index(False)
            raise self._refusal(index, self._table.key[0], "is out of order, or a duplicate")
        return keys[-1]

    def rows_with_keys(self) -> list[Row]:
        """Returns the rows, those of therapists and patients with the columns search.KEY_COLUMNS."""
        if "display_name" not in self._table.columns:
            return self.rows
        keys = content.record_keys(self._table, self.rows)
        return [(*row, *row_keys) for row, row_keys in zip(self.rows, keys, strict=True)]

    def search_rows(self) -> dict[str, list[Row]]:
        """Returns the rows of the search tables, by table. Raises ImportRefused."""
        if "display_name" not in self._table.columns:
            return {}
        try:
            return content.search_rows(self._table, self.rows)
        except MalformedColumn:
            for index, row in enumerate(self.rows):
                self._check_json(index, row)
            raise

    def _check_json(self, index: int, row: Row) -> None:
        try:
            content.search_rows(self._table, [row])
        except MalformedColumn as error:
            raise self._refusal(index, str(error), "is not valid JSON for this column") from None
