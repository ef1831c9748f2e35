"""An import rejects anything incomplete or invalid, and leaves nothing."""

import bz2
import gzip
import hashlib
import io
import json
import lzma
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest
from caseload_server.config import SettingError
from caseload_server.store import THERAPIST, RelationshipStore
from caseload_server.store.backends.factory import migrate
from caseload_server.store.backends.migrations import migrations
from caseload_server.store.portability import import_loader
from caseload_server.store.portability.import_lines import ImportRefused

from tests.store.portability.copies import EXPIRE_US, digest, exported, imported
from tests.store.store_calls import make

SECRET = "do-not-repeat-me"
"""A value that no error may contain."""


def test_an_import_rejects_a_database_that_is_not_empty(
    source: str, store: RelationshipStore, database_url: str
) -> None:
    make(store, THERAPIST, "there")
    before = digest(database_url)
    with pytest.raises((SettingError, FileExistsError)):
        imported(exported(source), database_url)
    assert digest(database_url) == before


def sealed(lines: list[bytes]) -> bytes:
    """The lines with a matching end line."""
    rows = json.loads(lines[-1])["end"]["rows"]
    for table in rows:
        rows[table] = sum(line.startswith(f'{{"{table}":'.encode()) for line in lines)
    digest = f"sha256:{hashlib.sha256(b''.join(lines[1:-1])).hexdigest()}"
    return b"".join([*lines[:-1], json.dumps({"end": {"rows": rows, "digest": digest}}).encode() + b"\n"])


Edit = Callable[[list[bytes]], None]


def replaced(start: str, old: str, new: str) -> Edit:
    """Replaces text in the first line of a table."""

    def edit(lines: list[bytes]) -> None:
        index = next(index for index, line in enumerate(lines) if line.startswith(f'{{"{start}":'.encode()))
        assert old.encode() in lines[index]
        lines[index] = lines[index].replace(old.encode(), new.encode("utf-8", "surrogateescape"), 1)

    return edit


def swapped(lines: list[bytes]) -> None:
    lines[2], lines[3] = lines[3], lines[2]


def doubled(lines: list[bytes]) -> None:
    lines.insert(2, lines[2])


def without(start: str) -> Edit:
    def edit(lines: list[bytes]) -> None:
        lines[:] = [line for line in lines if not line.startswith(f'{{"{start}":'.encode())]

    return edit


def expires_before_its_start(lines: list[bytes]) -> None:
    """Nothing could end such an assignment."""
    index = next(index for index, line in enumerate(lines) if f'"expire_us":{EXPIRE_US}'.encode() in line)
    lines[index] = lines[index].replace(str(EXPIRE_US).encode(), b"1")


MALFORMED: list[tuple[str, int, str, str, str]] = [
    *(
        ("patient", 9, "patient.birth_date", "1990-02-03", date)
        for date in (
            "1990-02-30",
            "1990-2-3",
            "19900203",
            "1990-W05-6",
            "0000-01-01",
            "0000",
            "1990-13",
            "1990-00-01",
            "199",
            "1990-",
            "1990-02-03T00",
            "١٩٩٠-02-03",
            SECRET,
        )
    ),
    ("patient", 9, "patient.birth_date", "1990-02-03", r"1990-02-03\n1990-02-04"),
    *(
        ("patient", 9, "patient.email", '"email":""', f'"email":"{text}"')
        for text in (SECRET, "a@b c", "a" * 255 + "@b")
    ),
    *(("patient", 9, "patient.phone_number", '_number":""', f'_number":"{text}"') for text in (SECRET, "+0123", "123")),
    ("patient", 9, "patient.patient_id", '"p0"', '"P 0"'),
    ("patient", 9, "patient.etag", '"etag":"', '"etag":" '),
    ("therapist", 3, "therapist.therapist_id", '"t0"', r'"t\n0"'),
    ("therapist", 3, "therapist.therapist_id", '"t0"', '""'),
    ("patient", 9, "patient.primary_therapist_id", '"t0"', f'"{SECRET}!"'),
    ("patient", 9, "patient.merged_into_patient_id", '_patient_id":""', f'_patient_id":"{SECRET}!"'),
]
OUT_OF_RANGE: list[tuple[str, str, str, str]] = [
    ("therapist", "therapist.status", '"status":1', '"status":4'),
    ("therapist", "therapist.active_patient_count", '_count":1', f'_count":{2**31}'),
    ("therapist", "therapist.max_active_patients", '"max_active_patients":null', f'"max_active_patients":{2**31}'),
    ("patient", "patient.status", '"status":1', '"status":0'),
    ("assignment", "assignment.role", '"role":1', '"role":9'),
    ("assignment", "assignment.end_reason", '"end_reason":', '"end_reason":1'),
    ("change", "change.kind", '"kind":', '"kind":7'),
]
REFUSED: list[tuple[Edit, str]] = [
    (replaced("caseload", '"format":1', '"format":2'), "line 1: is not the header of an export that"),
    (without("caseload"), "line 1: is not the header"),
    (replaced("caseload", migrations("sqlite")[-1].name, SECRET), "line 1: schema: is not the newest"),
    (replaced("caseload", '"secret":"', f'"secret":"{SECRET}'), "line 1: secret: must be hex"),
    (without("store"), "the lines before it do not match its row counts and digest"),
    (swapped, "line 4: therapist.therapist_id: is out of order, or a duplicate"),
    (doubled, "line 4: therapist.therapist_id: is out of order, or a duplicate"),
    (replaced("patient", '"patient"', f'"{SECRET}"'), "line 9: belongs to no table, or is out of order"),
    (replaced("patient", '"patient"', '"therapist"'), "line 9: must have exactly the columns of therapist"),
    (replaced("patient", '"email"', f'"{SECRET}"'), "line 9: must have exactly the columns of patient, in order"),
    (replaced("patient", '"email":', f'"{SECRET}":1,"email":'), "line 9: must have exactly the columns of patient"),
    (replaced("patient", '"email":""', '"email":7'), "line 9: patient.email: has the wrong type"),
    *(
        (replaced("patient_version", old, new), "patient_version.image: is malformed")
        for old, new in (
            (r"\"status\":1", r"\"status\":9"),
            (r"\"status\":1", rf"\"status\":\"{SECRET}\""),
            (r"\"email\":\"\"", rf"\"email\":\"{SECRET}\""),
            (r"\"email\"", rf"\"{SECRET}\""),
            (r"{\"aliases\"", r"{ \"aliases\""),
        )
    ),
    (replaced("assignment_version", '"role":1', '"role":9'), "assignment_version.role: is out of range"),
    (replaced("patient", '"email":""', '"email":null'), "line 9: patient.email: has the wrong type"),
    (replaced("patient", '"status":1', '"status":true'), "line 9: patient.status: has the wrong type"),
    (replaced("patient", '"status":1', '"status":1.0'), "line 9: patient.status: has the wrong type"),
    (replaced("patient", '"status":1', '"status":NaN'), "line 9: patient.status: has the wrong type"),
    (replaced("patient", '"status":1', '"status":-1'), "line 9: patient.status: is out of range"),
    (replaced("patient", '"status":1', f'"status":{2**63}'), "line 9: patient.status: is out of range"),
    (replaced("patient", '"created_us":1', '"created_us":9991'), "line 9: patient.created_us: is out of range"),
    (
        replaced("patient", '"email":""', f'"email":"{SECRET}\\u0000"'),
        "line 9: contains a character that cannot be stored",
    ),
    (
        replaced("patient", '"email":""', f'"email":"{SECRET}\\ud800"'),
        "line 9: contains a character that cannot be stored",
    ),
    (replaced("patient", '"email":""', f'"email":"{SECRET}\udcff"'), "line 9: is not a JSON object"),
    (replaced("patient", "}}\n", "}}{}\n"), "line 9: is not a JSON object with one name"),
    (replaced("patient", "}}\n", '},"x":1}\n'), "line 9: is not a JSON object with one name"),
    (replaced("patient", '{"patient":{', '{"patient":[{'), "line 9: is not a JSON object"),
    (replaced("patient", '"email":""', f'"email":"{SECRET}","email":""'), "line 9: patient.email: is there twice"),
    (replaced("patient", '"email":""', '"email":"","ema\\u0069l" : ""'), "line 9: patient.email: is there twice"),
    (replaced("patient", '"email":""', f'"{SECRET}":1,"{SECRET}":2'), "line 9: has a key twice"),
    (replaced("patient", "}}\n", '},"patient":{}}\n'), "line 9: has a key twice"),
    (replaced("caseload", '"secret":"', '"secret":"","secret":"'), "line 1: has a key twice"),
    (replaced("end", '"rows":', '"rows":{},"rows":'), "has a key twice"),
    (
        replaced("patient", r'"annotations":"{\"k\"', rf'"annotations":"{{\"k\":\"{SECRET}\",\"k\"'),
        "line 9: patient.annotations: is not valid JSON",
    ),
    (replaced("patient", '"email":""', f'"email":"{SECRET * 100_000}"'), "line 9: is not a JSON object"),
    (replaced("therapist", '"specialties":"[', '"specialties":"[7,'), "line 3: therapist.specialties: is not"),
    (
        replaced("therapist", r'"specialties":"[\"', rf'"specialties":"[\"{SECRET}!'),
        "line 3: therapist.specialties: is not",
    ),
    (
        replaced("therapist", '"identifiers":"[', '"identifiers":"[[],'),
        "line 3: therapist.identifiers: is not",
    ),
    *(
        (replaced(table, old, new), f"line {number}: {field}: is malformed")
        for table, number, field, old, new in MALFORMED
    ),
    *((replaced(table, old, new), f": {field}: is out of range") for table, field, old, new in OUT_OF_RANGE),
    (replaced("patient", '"annotations":"{', '"annotations":"{{'), "line 9: patient.annotations: is not valid JSON"),
    (replaced("patient", r'"aliases":"[\"', r'"aliases":"[\"\\ud800'), "line 9: patient.aliases: is not valid JSON"),
    (replaced("therapist", r'"aliases":"[\"', r'"aliases":"[\"\\u0000'), "line 3: therapist.aliases: is not valid"),
    (
        replaced("patient", r'"annotations":"{\"', r'"annotations":"{\"\\udfff'),
        "line 9: patient.annotations: is not valid JSON",
    ),
    (replaced("request", '"fingerprint":"', f'"fingerprint":"{SECRET}'), "request.fingerprint: is not hex"),
    (
        replaced("patient", '"email":""', f'"email":"{SECRET}@example.org"'),
        "the lines before it do not match its row counts and digest",
    ),
    (replaced("end", '"therapist":6', '"therapist":7'), "the lines before it do not match its row counts and digest"),
    (replaced("end", "sha256:", f"sha256:{SECRET}"), "the lines before it do not match its row counts and digest"),
]


@pytest.mark.slow
@pytest.mark.parametrize(("edit", "text"), REFUSED, ids=range(len(REFUSED)))
def test_an_import_rejects_invalid_lines_and_leaves_nothing(source: str, tmp_path: Path, edit: Edit, text: str) -> None:
    lines = exported(source).splitlines(keepends=True)
    edit(lines)
    with pytest.raises(ImportRefused) as refused:
        imported(b"".join(lines), f"sqlite:///{tmp_path}/target.db")
    assert text in str(refused.value)
    assert SECRET not in str(refused.value)
    assert [file.name for file in tmp_path.iterdir()] == ["source.db"]


@pytest.mark.parametrize("extra", [b"\n", b"x", b"{}\n", None], ids=["empty line", "text", "object", "export"])
def test_an_import_rejects_what_follows_the_end(source: str, database_url: str, extra: bytes | None) -> None:
    whole = exported(source)
    number = whole.count(b"\n") + 1
    with pytest.raises(ImportRefused, match=f"^line {number}: follows the line that ends the export$"):
        imported(whole + (whole if extra is None else extra), database_url)
    assert imported(whole, database_url) == digest(source)


def in_tar(content: bytes) -> bytes:
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w") as tar:
        member = tarfile.TarInfo("export.jsonl")
        member.size = len(content)
        tar.addfile(member, io.BytesIO(content))
    return archive.getvalue()


CRLF = "has a carriage return: line ends must be LF, not CRLF"


FORMATS: dict[str, tuple[Callable[[bytes], bytes], str]] = {
    "BOM": (lambda whole: whole.decode().encode("utf-8-sig"), "line 1: begins with a byte order mark (BOM)"),
    "CRLF": (lambda whole: whole.replace(b"\n", b"\r\n"), f"line 1: {CRLF}"),
    "CR": (lambda whole: whole.replace(b"\n", b"\r"), f"line 1: {CRLF}"),
    "one CRLF": (lambda whole: whole.replace(b"\n", b"\r\n", 3).replace(b"\r\n", b"\n", 2), f"line 3: {CRLF}"),
    "last CRLF": (lambda whole: whole[:-1] + b"\r\n", CRLF),
    "UTF-16": (lambda whole: whole.decode().encode("utf-16"), "line 1: is in UTF-16"),
    "UTF-16 without BOM": (lambda whole: whole.decode().encode("utf-16-le"), "line 1: is in UTF-16"),
    "UTF-16 big": (lambda whole: whole.decode().encode("utf-16-be"), "line 1: is in UTF-16"),
    "UTF-32, big-endian": (lambda whole: whole.decode().encode("utf-32-be"), "line 1: is in UTF-16 or UTF-32"),
    "zeros": (lambda whole: bytes(len(whole)), "line 1: begins with a NUL byte: the file is damaged"),
    "UTF-32": (lambda whole: whole.decode().encode("utf-32"), "line 1: is in UTF-16 or UTF-32"),
    "zstd": (lambda whole: b"\x28\xb5\x2f\xfd" + whole, "line 1: is compressed with zstd: decompress it first"),
    "bzip2": (bz2.compress, "line 1: is compressed with bzip2: decompress it first"),
    "xz": (lzma.compress, "line 1: is compressed with xz: decompress it first"),
    "zip": (lambda whole: b"PK\3\4" + whole, "line 1: is a zip archive: decompress it first"),
    "tar": (in_tar, "line 1: is a tar archive: unpack it first"),
    "compressed tar": (lambda whole: gzip.compress(in_tar(whole)), "line 1: is a tar archive: unpack it first"),
    "7z": (lambda whole: b"7z\xbc\xaf\x27\x1c" + whole, "line 1: is a 7z archive: decompress it first"),
    "empty": (lambda _: b"", "line 1: is missing: the file is empty"),
    "SQL": (lambda _: b"--\n-- PostgreSQL database dump\n", "line 1: is a dump of PostgreSQL: use psql"),
    "OpenPGP": (lambda _: b"-----BEGIN PGP MESSAGE-----\n", "line 1: is encrypted with OpenPGP: decrypt it first"),
    "openssl": (lambda whole: b"Salted__" + whole, "line 1: is encrypted with openssl: decrypt it first"),
    "age": (lambda whole: b"age-encryption.org/v1\n" + whole, "line 1: is encrypted with age: decrypt it first"),
    "backup": (lambda whole: b"SQLite format 3\0" + whole, "line 1: is a SQLite database: use caseload restore"),
    "truncated gzip": (lambda whole: gzip.compress(whole)[:-9], "the gzip file is truncated"),
    "gzip without its checksum": (lambda whole: gzip.compress(whole)[:-8], "the gzip file is truncated"),
    "damaged gzip": (lambda whole: gzip.compress(whole)[:-8] + bytes(8), "the gzip file is damaged"),
    "gzip with text": (
        lambda whole: gzip.compress(whole) + b"text",
        "or other data follow it",
    ),
    "two gzip": (lambda whole: gzip.compress(whole) * 2, "follows the line that ends the export"),
    "gzip in gzip": (lambda whole: gzip.compress(gzip.compress(whole)), "line 1: is compressed with gzip twice"),
    "gzip of CRLF": (lambda whole: gzip.compress(whole.replace(b"\n", b"\r\n")), f"line 1: {CRLF}"),
}


@pytest.mark.parametrize(("convert", "text"), FORMATS.values(), ids=FORMATS)
def test_an_import_says_what_a_converted_file_is(
    source: str, tmp_path: Path, convert: Callable[[bytes], bytes], text: str
) -> None:
    with pytest.raises(ImportRefused) as refused:
        imported(convert(exported(source)), f"sqlite:///{tmp_path}/target.db")
    assert text in str(refused.value)
    assert [file.name for file in tmp_path.iterdir()] == ["source.db"]


def test_a_failed_import_leaves_a_migrated_database_empty(source: str, database_url: str) -> None:
    migrate(database_url)
    whole = exported(source)
    lines = whole.splitlines(keepends=True)
    without("therapist")(lines)
    for invalid in (sealed(lines), whole[:-1], whole * 2):
        with pytest.raises((ImportRefused, import_loader.ConstraintViolation)):
            imported(invalid, database_url)
    assert imported(whole, database_url) == digest(source) == digest(database_url)


def test_an_import_rejects_a_served_database(source: str, store: RelationshipStore, database_url: str) -> None:
    with pytest.raises(SettingError, match=r"^--database: is served: stop its instances first$"):
        imported(exported(source), database_url)
    make(store, THERAPIST, "t")


def test_an_import_rejects_a_file_truncated_anywhere(source: str, tmp_path: Path) -> None:
    whole = exported(source)
    target = f"sqlite:///{tmp_path}/target.db"
    for size in [*range(0, len(whole) - 1, 997), *(len(whole[:1]) + extra for extra in range(5))]:
        with pytest.raises(ImportRefused):
            imported(whole[:size], target)
    assert imported(whole, target) == digest(source)


@pytest.mark.parametrize(
    ("edit", "text"),
    [
        (without("therapist"), ""),
        (without("change_set"), ""),
        (expires_before_its_start, "violate a constraint of assignment: "),
        (replaced("therapist", '"urn:x\\", \\"0', '"urn:x\\", \\"1'), "violate a constraint of therapist: "),
    ],
    ids=range(4),
)
def test_an_import_rejects_rows_that_break_the_schema_and_leaves_nothing(
    source: str, database_url: str, edit: Edit, text: str
) -> None:
    whole = exported(source)
    lines = whole.splitlines(keepends=True)
    edit(lines)
    with pytest.raises((ImportRefused, import_loader.ConstraintViolation)) as refused:
        imported(sealed(lines), database_url)
    assert text in str(refused.value)
    assert imported(whole, database_url) == digest(source)


def test_an_import_rejects_two_active_assignments_of_a_pair(source: str, database_url: str) -> None:
    whole = exported(source)
    lines = whole.splitlines(keepends=True)
    index = next(index for index, line in enumerate(lines) if b'"end_us":null' in line)
    row = json.loads(lines[index])
    row["assignment"]["assignment_id"] += "0"
    lines.insert(index + 1, json.dumps(row).encode() + b"\n")
    with pytest.raises(import_loader.ConstraintViolation):
        imported(sealed(lines), database_url)
    assert imported(whole, database_url) == digest(source)
