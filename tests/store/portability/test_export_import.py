"""Export and import copy a store exactly; an import rejects anything incomplete or invalid."""

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
from caseload_server.commands.export_import_verify import open_bulk_load, open_snapshot
from caseload_server.config import Config, SettingError
from caseload_server.domain import errors
from caseload_server.domain.enums import END_EXPIRED, ROLE_PRIMARY, STATE_ENDED
from caseload_server.domain.requests import AssignmentQuery, ChangeQuery, Fields, Merge, Update
from caseload_server.store import PATIENT, THERAPIST, RelationshipStore
from caseload_server.store.backends.factory import migrate, open_store
from caseload_server.store.backends.migrations import migrations
from caseload_server.store.portability import export, import_loader
from caseload_server.store.portability.chain_check import broken_chain
from caseload_server.store.portability.import_lines import ImportRefused
from caseload_server.store.portability.import_parser import batches
from caseload_server.store.portability.verify import ContentCheck, broken_rules

from tests.store.conftest import Clock
from tests.store.store_calls import (
    ALL,
    CALL,
    AnyKind,
    assign,
    both_kinds,
    delete,
    dump,
    ids,
    make,
    request,
    unassign,
    update,
)

EXPIRE_US = 4_000_000_000_000_000
"""The planned end of one assignment."""
SECRET = "do-not-repeat-me"
"""A value that no error may contain."""
# Composed and decomposed accents, letters that fold to two, characters that JSON escapes, and similar text.
AWKWARD = [
    "Zoë Müller-Lüdenscheidt",
    'O"Neil \\ Ⅷ',
    "\U0001d504da \u2028 ﬀ",
    "e\u0301 and é",
    "İstanbul ß",
    "C:\\new\\u0000",
]


def nothing(_: int) -> None:
    """No progress to show."""


def exported(url: str) -> bytes:
    lines = io.BytesIO()
    with open_snapshot(url) as transaction:
        export.export(transaction, lines.write, nothing)
    return lines.getvalue()


def imported(lines: bytes, url: str) -> str:
    """Imports the lines. Returns the digest."""
    with open_bulk_load(url) as (loading, schema):
        return import_loader.load(batches(io.BytesIO(lines), schema), loading, nothing)


def digest(url: str) -> str:
    with open_snapshot(url) as transaction:
        contents = ContentCheck(transaction)
        assert [*broken_rules(transaction), *contents.read(nothing), *broken_chain(transaction)] == []
    return contents.content_digest.digest


def fill(store: RelationshipStore) -> None:
    """One of everything: people with every field set, periods of every kind, and a partly purged log."""
    for number, name in enumerate(AWKWARD):
        identifiers = json.dumps([["https://example.org/staff", name], ["urn:x", str(number)]], ensure_ascii=False)
        aliases = json.dumps([f"Alias {name}", f"Other{number}"], ensure_ascii=False, separators=(",", ":"))
        more: Fields = {"display_name": name, "aliases": aliases}
        make(store, THERAPIST, f"t{number}", identifiers=identifiers, specialties='["a","b"]', **more)
        make(store, PATIENT, f"p{number}", birth_date="1990-02-03", annotations='{"k":"\\""}', **more)
        assign(store, f"t{number}", f"p{number}", role=ROLE_PRIMARY, focus=name)
    store.purger.purge_changes(2**62)
    unassign(store, "t1", "p1", end_reason=5)
    assign(store, "t1", "p2", expire_us=EXPIRE_US)
    delete(store, THERAPIST, "t2", force=True)
    update(store, THERAPIST, "t3", max_active_patients=0, status=2)
    store.merge(Merge("p5", "p4"), CALL)
    store.merge(Merge("p4", "p3"), CALL)
    store.update(THERAPIST, Update("t4", {"email": "t4@example.org"}), request("remembered"))


@pytest.fixture
def source(tmp_path: Path, clock: Clock) -> str:
    """The URL of a database with one of everything."""
    url = f"sqlite:///{tmp_path}/source.db"
    store = open_store(Config(database=url), clock)
    fill(store)
    store.close()
    return url


def test_an_import_equals_the_export_and_breaks_no_rule(source: str, database_url: str, clock: Clock) -> None:
    assert imported(exported(source), database_url) == digest(source) == digest(database_url)
    old, new = (open_store(Config(database=url), clock) for url in (source, database_url))
    before, after = dump(old), dump(new)
    for tables in (before, after):
        [(_, _, *rest)] = tables.pop("store")
        tables["rest"] = rest  # the secret, and the bounds of the log
    assert after == before
    old.close()
    new.close()


def test_a_new_file_imports_the_export_of_any_database(
    store: RelationshipStore, database_url: str, tmp_path: Path
) -> None:
    fill(store)
    target = f"sqlite:///{tmp_path}/target.db"
    imported(exported(database_url), target)
    assert digest(target) == digest(database_url)
    assert exported(target) == exported(database_url)


def test_the_imported_store_continues_from_the_last_revision(source: str, database_url: str, clock: Clock) -> None:
    imported(exported(source), database_url)
    old, new = (open_store(Config(database=url), clock) for url in (source, database_url))
    assert ids(new, THERAPIST, name_prefix="zoe muller") == ["t0"]
    assert ids(new, PATIENT, name_prefix='o"neil') == ["p1"]
    assert ids(new, PATIENT, name_prefix="other2") == ["p2"]
    assert ids(new, PATIENT, name_prefix="alias zoe muller") == ids(new, PATIENT, name_prefix="other0") == ["p0"]
    assert ids(new, THERAPIST, identifier=("urn:x", "4")) == ["t4"]
    assert ids(new, THERAPIST, specialties=("b",)) == ["t0", "t1", "t3", "t4", "t5"]
    # A repeat of a remembered request writes nothing, and a revision of the old store is refused.
    head = new.head_revision()
    assert new.update(THERAPIST, Update("t4", {"email": "t4@example.org"}), request("remembered")).record.email
    assert new.head_revision() == head == old.head_revision()
    with pytest.raises(errors.RevisionForeign):
        new.list_changes(ChangeQuery(), old.keys.revision(head), 10)
    with pytest.raises(errors.IdentifierTaken):
        make(new, THERAPIST, "another", identifiers='[["urn:x","4"]]')
    logs = [one.list_changes(ChangeQuery(), "", 1000).change_sets for one in (old, new)]
    assert len({str(log).replace(one.keys.store_id, "id") for one, log in zip((old, new), logs, strict=True)}) == 1
    assert new.log_head() == old.log_head()
    make(new, THERAPIST, "another")
    assert new.head_revision() == head + 1
    old.close()
    new.close()


@both_kinds
def test_the_imported_store_does_not_reuse_a_purged_id(
    tmp_path: Path, database_url: str, clock: Clock, kind: AnyKind
) -> None:
    url = f"sqlite:///{tmp_path}/source.db"
    old = open_store(Config(database=url), clock)
    make(old, kind, "gone")
    delete(old, kind, "gone")
    assert [*old.purger.purge_records(kind, 2**62)] == [(1, 0)]
    old.close()
    imported(exported(url), database_url)
    new = open_store(Config(database=database_url), clock)
    with pytest.raises(errors.IdTaken):
        make(new, kind, "gone")
    new.close()


def test_what_expired_since_the_export_is_not_in_force_and_is_ended(
    source: str, database_url: str, clock: Clock
) -> None:
    imported(exported(source), database_url)
    store = open_store(Config(database=database_url), clock)
    pair = [("t1", "p2")]
    assert store.check_assignments(pair, clock())[0][0].assignment_id is not None
    clock.now_us = EXPIRE_US
    assert store.check_assignments(pair, clock())[0][0].assignment_id is None
    store.end_expired()
    [ended] = store.list_assignments(AssignmentQuery("t1", "p2", states=(STATE_ENDED,)), ALL).records
    assert (ended.end_us, ended.end_reason) == (EXPIRE_US, END_EXPIRED)
    store.close()
    digest(database_url)


def test_an_empty_store_can_be_exported_and_imported(tmp_path: Path, database_url: str, clock: Clock) -> None:
    empty = f"sqlite:///{tmp_path}/empty.db"
    open_store(Config(database=empty), clock).close()
    assert imported(exported(empty), database_url) == digest(database_url)


@pytest.mark.slow
def test_an_export_of_several_pages_is_complete_and_in_order(
    tmp_path: Path, store: RelationshipStore, database_url: str
) -> None:
    count = 2500
    for number in range(count):
        make(store, PATIENT, f"p{number:04}")
    lines = exported(database_url)
    assert lines.count(b'\n{"patient":') == lines.count(b'\n{"change_set":') == lines.count(b'\n{"change":') == count
    target = f"sqlite:///{tmp_path}/target.db"
    imported(lines, target)
    assert digest(target) == digest(database_url)


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
    (replaced("patient", '"email":""', f'"email":"{SECRET * 100_000}"'), "line 9: is not a JSON object"),
    (replaced("therapist", '"specialties":"[', '"specialties":"[7,'), "line 3: therapist.specialties: is not"),
    (
        replaced("therapist", '"identifiers":"[', '"identifiers":"[[],'),
        "line 3: therapist.identifiers: is not",
    ),
    (replaced("patient", '"annotations":"{', '"annotations":"{{'), "line 9: patient.annotations: is not valid JSON"),
    (replaced("patient", r'"aliases":"[\"', r'"aliases":"[\"\\ud800'), "line 9: patient.aliases: is not valid JSON"),
    (replaced("therapist", r'"aliases":"[\"', r'"aliases":"[\"\\u0000'), "line 3: therapist.aliases: is not valid"),
    (
        replaced("patient", r'"annotations":"{\"', r'"annotations":"{\"\\udfff'),
        "line 9: patient.annotations: is not valid JSON",
    ),
    (replaced("request", '"fingerprint":"', f'"fingerprint":"{SECRET}'), "request.fingerprint: is not hex"),
    (
        replaced("patient", '"email":""', f'"email":"{SECRET}"'),
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


def test_an_import_reads_a_file_compressed_with_gzip(source: str, database_url: str) -> None:
    assert imported(gzip.compress(exported(source)), database_url) == digest(source) == digest(database_url)


def test_an_import_holds_few_of_the_longest_lines_at_once(source: str) -> None:
    """Compressed, a thousand of them take less than a mebibyte."""
    header, row, *_ = exported(source).splitlines(keepends=True)
    line = b'{"therapist":{"a":"%s"}}\n' % (b"x" * 1_000_000)
    lines = io.BytesIO(header + row + 100 * line)
    with pytest.raises(ImportRefused, match=r"^line 3: must have exactly the columns of therapist"):
        list(batches(lines, migrations("sqlite")[-1].name))
    assert lines.tell() < 10 * len(line)


def test_an_import_fills_a_migrated_and_empty_database_in_place(source: str, database_url: str, clock: Clock) -> None:
    migrate(database_url)
    assert imported(exported(source), database_url) == digest(source) == digest(database_url)
    store = open_store(Config(database=database_url), clock)
    make(store, THERAPIST, "another")
    store.close()
    with pytest.raises(SettingError, match=r"^--database: is not empty$"):
        imported(exported(source), database_url)


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
        (replaced("assignment", '"role":1', '"role":9'), "violate a constraint of assignment: "),
        (replaced("therapist", '"status":1', '"status":9'), "violate a constraint of therapist: "),
        (replaced("therapist", '"urn:x\\", \\"0', '"urn:x\\", \\"1'), "violate a constraint of therapist: "),
    ],
    ids=range(6),
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


def test_an_export_of_a_missing_file_is_rejected(tmp_path: Path) -> None:
    with pytest.raises(SettingError, match="--database: the file does not exist"):
        exported(f"sqlite:///{tmp_path}/nothing.db")
    assert list(tmp_path.iterdir()) == []
