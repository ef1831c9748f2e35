"""The hash chain: verify finds each kind of tampering, which a test does once with plain SQL."""

import hashlib
import json
import threading

import pytest
from caseload_server.config import Config
from caseload_server.domain.enums import ROLE_PRIMARY
from caseload_server.domain.requests import Update
from caseload_server.domain.results import LogHead
from caseload_server.store import PATIENT, THERAPIST, RelationshipStore
from caseload_server.store.backends.factory import open_store
from caseload_server.store.backends.protocol import Value
from caseload_server.store.portability.chain_check import CUT, HEAD, KEPT, LINKS, PrunedHead, broken_chain

from tests.store.conftest import Clock
from tests.store.store_builders import assign, patients, run, therapists, transfer
from tests.store.store_calls import CALL, make, update
from tests.support.waiting import join

SET_COLUMNS = "committed_us, actor, on_behalf_of, method, request_id"
CHANGE_COLUMNS = "kind, changed_fields, therapist_id, patient_id, assignment_id, through_revision, version_hash"


def broken(store: RelationshipStore, *kept: LogHead) -> dict[str, list[str]]:
    """The broken rules, and the revisions that break each."""
    with store._database.snapshot() as transaction:
        return {rule: revisions for rule, _, revisions in broken_chain(transaction, kept)}


@pytest.fixture
def chained(store: RelationshipStore, clock: Clock) -> RelationshipStore:
    """A log of revisions 3 to 9. Revisions 1 and 2 were purged, which revision 7 records."""
    therapists(store, "gone", "gone-too")
    kept_from = clock.advance(1)
    therapists(store, "t", "u")
    patients(store, "p")
    assign(store, "t", "p", role=ROLE_PRIMARY)
    assert store.purger.purge_changes(kept_from) == 2
    transfer(store, "t", "u")
    store.update(THERAPIST, Update("u", {"email": "u@example.org"}), CALL._replace(on_behalf_of="jdoe", request_id="r"))
    assert store.head_revision() == 9
    return store


def moved(old: int, new: int) -> list[str]:
    """SQL that gives a change set another revision."""
    columns = f"{SET_COLUMNS}, hash_version, hash"
    return [
        f"INSERT INTO change_set (revision, {columns}) SELECT {new}, {columns} FROM change_set WHERE revision = {old}",
        f"UPDATE change SET revision = {new} WHERE revision = {old}",
        f"DELETE FROM change_set WHERE revision = {old}",
    ]


def removed(revision: int) -> list[str]:
    return [f"DELETE FROM {table} WHERE revision = {revision}" for table in ("change", "change_set")]


def copied_change(revision: int, position: int) -> str:
    return (
        f"INSERT INTO change (revision, position, {CHANGE_COLUMNS}) SELECT {revision}, {position}, {CHANGE_COLUMNS}"
        " FROM change WHERE revision = 3"
    )


def copied_set(revision: int) -> list[str]:
    columns = f"{SET_COLUMNS}, hash_version, hash"
    return [
        f"INSERT INTO change_set (revision, {columns}) SELECT {revision}, {columns} FROM change_set WHERE revision = 9",
        copied_change(revision, 0),
        f"UPDATE store SET head_revision = {revision}",
    ]


TAMPERED: list[tuple[str, list[str], dict[str, list[str]]]] = [
    *(
        (f"an edited {column} of a change set", [f"UPDATE change_set SET {column} = {value} WHERE revision = 5"], at)
        for at in [{LINKS: ["5"]}]
        for column, value in (
            ("committed_us", "committed_us + 1"),
            ("actor", "'eve'"),
            ("on_behalf_of", "'eve'"),
            ("method", "'/caseload.v1.PatientService/UpdatePatient'"),
            ("request_id", "'eve'"),
            ("hash_version", "1"),
            ("hash_version", "3"),
            ("hash_version", "0"),
        )
    ),
    ("an erased on_behalf_of", ["UPDATE change_set SET on_behalf_of = '' WHERE revision = 9"], {LINKS: ["9"]}),
    (
        "an edited hash",
        ["UPDATE change_set SET hash = (SELECT oldest_hash FROM store) WHERE revision = 5"],
        {LINKS: ["5", "6"]},
    ),
    *(
        (f"an edited {column} of a change", [f"UPDATE change SET {column} = {value} WHERE revision = 6"], at)
        for at in [{LINKS: ["6"]}]
        for column, value in (
            ("kind", "2"),
            ("changed_fields", "'focus'"),
            ("therapist_id", "'u'"),
            ("therapist_id", "NULL"),
            ("patient_id", "'q'"),
            ("assignment_id", "'0'"),
            ("through_revision", "2"),
            ("version_hash", "'eve'"),
        )
    ),
    ("an erased hash of a version", ["UPDATE change SET version_hash = NULL WHERE revision = 8"], {LINKS: ["8"]}),
    ("a shifted position", ["UPDATE change SET position = 7 WHERE revision = 6"], {LINKS: ["6"]}),
    (
        "reordered changes",
        [
            f"UPDATE change SET position = {new} WHERE revision = 8 AND position = {old}"
            for old, new in ((0, 9), (1, 0), (9, 1))
        ],
        {LINKS: ["8"]},
    ),
    ("a removed change", ["DELETE FROM change WHERE revision = 8 AND position = 1"], {LINKS: ["8"]}),
    ("all changes of a change set removed", ["DELETE FROM change WHERE revision = 8"], {LINKS: ["8"]}),
    ("an inserted change", [copied_change(8, 2)], {LINKS: ["8"]}),
    ("a removed change set", removed(5), {LINKS: ["6"]}),
    ("a removed change set, and the later ones moved up", [*removed(5), *moved(6, 5)], {LINKS: ["5"]}),
    ("the newest change set removed", removed(9), {HEAD: ["9"]}),
    ("an inserted change set", copied_set(10), {LINKS: ["10"]}),
    (
        "a change set of an older version inserted",
        [*copied_set(10), "UPDATE change_set SET hash_version = 0 WHERE revision = 10"],
        {LINKS: ["10"]},
    ),
    ("two reordered change sets", [*moved(5, 99), *moved(6, 5), *moved(99, 6)], {LINKS: ["5", "6", "7"]}),
    ("an edited head hash", ["UPDATE store SET head_hash = oldest_hash"], {HEAD: ["9"]}),
    (
        "the cut moved forward",
        [*removed(3), "UPDATE store SET oldest_revision = 3"],
        {LINKS: ["4"], CUT: ["3"]},
    ),
    (
        "the cut moved forward with its hash",
        [
            "UPDATE store SET oldest_revision = 3, oldest_hash = (SELECT hash FROM change_set WHERE revision = 3)",
            *removed(3),
        ],
        {CUT: ["3"]},
    ),
    ("the cut moved back", ["UPDATE store SET oldest_revision = 1"], {CUT: ["1"]}),
    ("the hash at the cut edited", ["UPDATE store SET oldest_hash = head_hash"], {LINKS: ["3"]}),
    (
        "the record of a purge removed from the end",
        [
            "UPDATE store SET head_revision = 6, head_hash = (SELECT hash FROM change_set WHERE revision = 6)",
            *removed(9),
            *removed(8),
            *removed(7),
        ],
        {CUT: ["2"]},
    ),
    (
        "the start of the chain moved forward",
        [
            "UPDATE store SET chain_revision = 5",
            "UPDATE change_set SET hash_version = 0, hash = (SELECT substr(hash, 1, 0)) WHERE revision <= 5",
        ],
        {LINKS: ["6"], CUT: ["2"]},
    ),
]


def test_the_chain_of_an_intact_log_is_intact(chained: RelationshipStore) -> None:
    assert broken(chained) == {}
    assert broken(chained, chained.log_head()) == {}


@pytest.mark.slow
@pytest.mark.parametrize(("statements", "found"), [case[1:] for case in TAMPERED], ids=[case[0] for case in TAMPERED])
def test_verify_finds_a_log_that_was_tampered_with(
    chained: RelationshipStore, statements: list[str], found: dict[str, list[str]]
) -> None:
    for statement in statements:
        run(chained, statement)
    assert broken(chained) == found


def documented_hash(previous: bytes, content: list[object]) -> bytes:
    """The hash as the documentation has it, written without the server's code."""
    canonical = json.dumps(content, ensure_ascii=False, separators=(",", ":"))
    return hashlib.blake2b(previous + canonical.encode(), digest_size=32).digest()


def recompute(store: RelationshipStore, version: int = 2) -> None:
    """Rewrites all hashes, as an attacker who may write to the database can."""
    [(previous,)] = run(store, "SELECT oldest_hash FROM store")
    for revision, *columns in run(store, f"SELECT revision, {SET_COLUMNS} FROM change_set ORDER BY revision"):
        at = {"revision": revision}
        changes = run(store, f"SELECT {CHANGE_COLUMNS} FROM change WHERE revision = :revision ORDER BY position", at)
        if version == 1:
            changes = [change[:-1] for change in changes]
        previous = documented_hash(previous, [version, revision, *columns, changes])
        hashed: dict[str, Value] = {**at, "version": version, "hash": previous}
        run(store, "UPDATE change_set SET hash_version = :version, hash = :hash WHERE revision = :revision", hashed)
    run(store, "UPDATE store SET head_hash = :hash", {"hash": previous})


def test_the_hashes_are_those_of_the_documentation(chained: RelationshipStore) -> None:
    make(chained, PATIENT, "q", display_name="Zoë")
    call = CALL._replace(actor='Zoë "\\\n\x7f \U0001d504', request_id="s")
    chained.update(PATIENT, Update("q", {"email": "q@example.org"}), call)
    head = chained.log_head()
    recompute(chained)
    assert chained.log_head() == head
    assert broken(chained, head) == {}


def test_a_change_set_of_an_older_server_has_no_hashes_of_versions(chained: RelationshipStore) -> None:
    run(chained, "UPDATE change SET version_hash = NULL")
    recompute(chained, version=1)
    assert broken(chained, chained.log_head()) == {}
    run(chained, "UPDATE change SET version_hash = :hash WHERE revision = 8", {"hash": "0" * 64})
    assert broken(chained) == {LINKS: ["8"]}


FORGET = ["DELETE FROM therapist_version", "UPDATE store SET head_revision = 8"]


@pytest.mark.parametrize(
    "edit",
    [
        ["UPDATE change_set SET actor = 'eve' WHERE revision = 5"],
        ["UPDATE change SET patient_id = 'q' WHERE revision = 6"],
        [*removed(5), *moved(6, 5), *moved(7, 6), *moved(8, 7), *moved(9, 8), *FORGET],
    ],
    ids=["edited", "an edited change", "removed"],
)
def test_only_a_head_kept_elsewhere_finds_a_recomputed_chain(chained: RelationshipStore, edit: list[str]) -> None:
    head = chained.log_head()
    for statement in edit:
        run(chained, statement)
    recompute(chained)
    update(chained, THERAPIST, "u", email="later@example.org")
    assert broken(chained) == {}
    assert broken(chained, head) == {KEPT: ["9"]}


def test_only_a_head_kept_elsewhere_finds_that_the_end_was_cut(chained: RelationshipStore) -> None:
    before, head = LogHead(8, run(chained, "SELECT hash FROM change_set WHERE revision = 8")[0][0]), chained.log_head()
    for statement in [*removed(9), "DELETE FROM therapist_version"]:
        run(chained, statement)
    run(chained, "UPDATE store SET head_revision = 8, head_hash = :hash", {"hash": before.hash})
    assert broken(chained) == broken(chained, before) == {}
    assert broken(chained, before, head) == {KEPT: ["9"]}
    update(chained, THERAPIST, "u", email="other@example.org")  # a new revision 9 in place of the old one
    assert broken(chained, before, head) == {KEPT: ["9"]}


def test_only_a_head_kept_elsewhere_finds_that_the_chain_was_removed(store: RelationshipStore, clock: Clock) -> None:
    therapists(store, "t", "u")
    head = store.log_head()
    clock.advance(1)
    therapists(store, "v")
    start: dict[str, Value] = {"start": bytes(32), "none": b""}
    run(store, "UPDATE change_set SET hash_version = 0, hash = :none, actor = 'eve'", start)
    run(store, "UPDATE store SET chain_revision = head_revision, head_hash = :start", start)
    assert broken(store) == {}
    assert broken(store, head) == {KEPT: ["2"]}


def test_a_head_from_before_a_purge_cannot_be_compared(chained: RelationshipStore) -> None:
    with pytest.raises(PrunedHead, match="pruned up to revision 2"):
        broken(chained, LogHead(1, bytes(32)))
    assert broken(chained, LogHead(2, run(chained, "SELECT oldest_hash FROM store")[0][0])) == {}
    assert broken(chained, LogHead(2, bytes(32))) == {KEPT: ["2"]}


def test_every_purge_of_the_log_keeps_the_chain_and_its_heads(store: RelationshipStore, clock: Clock) -> None:
    heads = [store.log_head()]
    for number in range(30):
        clock.advance(1)
        therapists(store, f"t{number}")
        heads.append(store.log_head())
        if number % 7 == 6:
            store.purger.purge_changes(clock.now_us - 3_000_000)
            heads = [head for head in heads if head.revision >= run(store, "SELECT oldest_revision FROM store")[0][0]]
        assert broken(store, *heads) == {}
    assert store.purger.purge_changes(2**62) > 0
    assert broken(store, store.log_head()) == {}
    clock.advance(1)
    therapists(store, "last")
    assert broken(store) == {}


def test_two_processes_that_write_at_once_continue_one_chain(database_url: str) -> None:
    stores = [open_store(Config(database=database_url), lambda: 1) for _ in range(2)]

    def write(store: RelationshipStore, name: str) -> None:
        make(store, THERAPIST, name)
        for number in range(25):
            update(store, THERAPIST, name, email=f"{number}@example.org")

    threads = [
        threading.Thread(target=write, args=(store, f"t{number}-{thread}"))
        for number, store in enumerate(stores)
        for thread in range(3)
    ]
    for thread in threads:
        thread.start()
    join(*threads)
    heads = {store.log_head() for store in stores}
    assert [head.revision for head in heads] == [6 * 26]
    assert broken(stores[0]) == {}
    for number in range(4):  # in turn, so that each finds the head moved by the other
        update(stores[number % 2], THERAPIST, "t0-0", email=f"turn{number}@example.org")
    assert broken(stores[0]) == {}
    for store in stores:
        store.close()


@pytest.fixture
def upgraded(store: RelationshipStore, clock: Clock) -> RelationshipStore:
    """A log whose revisions 1 and 2 are older than the chain, as migration 0005 leaves them."""
    for name in "tu":
        therapists(store, name)
        clock.advance(1)
    run(store, "UPDATE change_set SET hash_version = 0, hash = :none", {"none": b""})
    run(store, "UPDATE store SET chain_revision = 2, head_hash = :start", {"start": bytes(32)})
    for name in "vw":
        therapists(store, name)
        clock.advance(1)
    return store


def test_the_chain_of_an_upgraded_store_begins_after_the_older_change_sets(upgraded: RelationshipStore) -> None:
    assert broken(upgraded, upgraded.log_head(), LogHead(2, bytes(32))) == {}
    run(upgraded, "UPDATE store SET chain_revision = 1")
    assert broken(upgraded) == {LINKS: ["2", "3"]}
    run(upgraded, "UPDATE store SET chain_revision = 3")
    assert broken(upgraded) == {LINKS: ["3", "4"]}


@pytest.mark.parametrize("seconds", [1, 2, 3, 4])
def test_a_purge_on_either_side_of_the_start_keeps_the_chain(
    upgraded: RelationshipStore, clock: Clock, seconds: int
) -> None:
    head = upgraded.log_head()
    assert upgraded.purger.purge_changes(clock.now_us - (4 - seconds) * 1_000_000) == seconds
    assert broken(upgraded, head) == {}
