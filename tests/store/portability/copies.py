"""Exports and imports for tests, and a store with one of everything."""

import io
import json

from caseload_server.commands.export_import_verify import open_bulk_load
from caseload_server.commands.snapshots import open_snapshot
from caseload_server.domain.enums import ROLE_PRIMARY
from caseload_server.domain.requests import Fields, Merge, Update
from caseload_server.store import PATIENT, THERAPIST, RelationshipStore
from caseload_server.store.portability import export, import_loader
from caseload_server.store.portability.chain_check import broken_chain
from caseload_server.store.portability.import_parser import batches
from caseload_server.store.portability.verify import ContentCheck, broken_rules
from caseload_server.store.portability.version_check import broken_versions

from tests.store.store_calls import CALL, assign, delete, make, request, unassign, update

EXPIRE_US = 4_000_000_000_000_000
"""The planned end of one assignment."""


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


BIRTH_DATES = {1: "0085-02-03", 2: "1990", 4: "1990-02"}
"""Partial ones, and one that an older version accepted."""


def digest(url: str) -> str:
    with open_snapshot(url) as transaction:
        contents = ContentCheck(transaction)
        assert [*broken_rules(transaction), *contents.read(nothing)] == []
        assert [*broken_chain(transaction), *broken_versions(transaction)] == []
    return contents.content_digest.digest


def fill(store: RelationshipStore) -> None:
    """One of everything: people with every field set, periods of every kind, and a partly purged log."""
    for number, name in enumerate(AWKWARD):
        identifiers = json.dumps([["https://example.org/staff", name], ["urn:x", str(number)]], ensure_ascii=False)
        aliases = json.dumps([f"Alias {name}", f"Other{number}"], ensure_ascii=False, separators=(",", ":"))
        more: Fields = {"display_name": name, "aliases": aliases}
        make(store, THERAPIST, f"t{number}", identifiers=identifiers, specialties='["a","b"]', **more)
        birth_date = BIRTH_DATES.get(number, "1990-02-03")
        make(store, PATIENT, f"p{number}", birth_date=birth_date, annotations='{"k":"\\""}', **more)
        assign(store, f"t{number}", f"p{number}", role=ROLE_PRIMARY, focus=f"focus-{number}")
    store.purger.purge_changes(2**62)
    unassign(store, "t1", "p1", end_reason=5)
    store.purger.purge_versions(2**62)
    assign(store, "t1", "p2", expire_us=EXPIRE_US)
    delete(store, THERAPIST, "t2", force=True)
    update(store, THERAPIST, "t3", max_active_patients=0, status=2)
    store.merge(Merge("p5", "p4"), CALL)
    store.merge(Merge("p4", "p3"), CALL)
    store.update(THERAPIST, Update("t4", {"email": "t4@example.org"}), request("remembered"))
