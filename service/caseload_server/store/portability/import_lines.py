"""Reads the lines of an export, also of a compressed one. Names a file that is something else."""

import gzip
import io
import zlib
from collections.abc import Iterator
from functools import partial
from typing import BinaryIO, Final, cast

MAX_LINE_BYTES: Final = 1024 * 1024
"""Every line is shorter: a record takes 32 KiB at most, and a stored outcome about 100 KiB."""
_GZIP: Final = b"\x1f\x8b"
_DECOMPRESS: Final = "decompress it first: caseload reads plain and gzip exports"
_CONVERT: Final = "is in UTF-16 or UTF-32: an export is in UTF-8"
_FORMATS: Final = {
    b"\xef\xbb\xbf": "begins with a byte order mark (BOM), which some editor has added: remove these three bytes",
    b"\xff\xfe": _CONVERT,
    b"\xfe\xff": _CONVERT,
    b"{\0": _CONVERT,
    b"\0{": _CONVERT,
    b"\0\0\0{": _CONVERT,
    b"\0\0\xfe\xff": _CONVERT,
    b"\0": "begins with a NUL byte: the file is damaged",
    _GZIP: "is compressed with gzip twice: decompress it once",
    b"\x28\xb5\x2f\xfd": f"is compressed with zstd: {_DECOMPRESS}",
    b"BZh": f"is compressed with bzip2: {_DECOMPRESS}",
    b"\xfd7zXZ\0": f"is compressed with xz: {_DECOMPRESS}",
    b"\x04\x22\x4d\x18": f"is compressed with lz4: {_DECOMPRESS}",
    b"PK\3\4": f"is a zip archive: {_DECOMPRESS}",
    b"age-encryption.org/": "is encrypted with age: decrypt it first",
    b"-----BEGIN AGE ": "is encrypted with age: decrypt it first",
    b"-----BEGIN PGP ": "is encrypted with OpenPGP: decrypt it first",
    b"Salted__": "is encrypted with openssl: decrypt it first",
    b"7z\xbc\xaf\x27\x1c": f"is a 7z archive: {_DECOMPRESS}",
    b"SQLite format 3\0": "is a SQLite database: use caseload restore",
    b"PGDMP": "is a dump of PostgreSQL: use pg_restore",
    b"--\n": "is a dump of PostgreSQL: use psql",
}
"""What a file is, by its first bytes."""
_TAR: Final = b"ustar"
_TAR_START: Final = 257
"""https://pubs.opengroup.org/onlinepubs/9799919799/utilities/pax.html#tag_20_92_13_06"""


class ImportRefused(Exception):
    """The lines are no complete export. The text names the line and the field, and no value."""


def refusal(number: int, text: str) -> ImportRefused:
    """Returns the error for a line. Args: number, of the line, from 1."""
    return ImportRefused(f"line {number}: {text}")


def lines_of(source: BinaryIO) -> Iterator[bytes]:
    """Yields lines, decompressed, with their ends. A line that is too long comes in parts.

    Raises ImportRefused for a file of another format, and for damaged compressed data.
    """
    start = source.read(len(_GZIP))
    try:
        if start == _GZIP:
            start, source = b"", _decompress(start, source)
        first = start + source.readline(MAX_LINE_BYTES)
        _require_export(first)
        yield first
        yield from iter(partial(source.readline, MAX_LINE_BYTES), b"")
    except EOFError:
        raise ImportRefused("the gzip file is truncated") from None
    except (zlib.error, gzip.BadGzipFile):
        raise ImportRefused("the gzip file is damaged, or other data follow it") from None


def _require_export(line: bytes) -> None:
    """Raises ImportRefused if the first line shows that the file is something else."""
    if not line:
        raise refusal(1, "is missing: the file is empty")
    if line.startswith(_TAR, _TAR_START):
        raise refusal(1, "is a tar archive: unpack it first")
    for first_bytes, text in _FORMATS.items():
        if line.startswith(first_bytes):
            raise refusal(1, text)


class _Joined(io.RawIOBase):
    """A file whose first bytes were read already."""

    def __init__(self, start: bytes, rest: BinaryIO) -> None:
        self._start, self._rest = start, rest

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]  # a narrower type than any buffer
        data = self._start or self._rest.read(len(buffer))
        self._start = b""
        buffer[: len(data)] = data
        return len(data)


def _decompress(start: bytes, rest: BinaryIO) -> BinaryIO:
    return cast("BinaryIO", gzip.GzipFile(fileobj=io.BufferedReader(_Joined(start, rest))))
