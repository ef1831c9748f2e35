"""`caseload purge`: permanently erases deleted records, old versions of records, or old changes."""

from collections.abc import Callable
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any

import apsw
import click

from caseload_server import config as settings
from caseload_server.commands.audited import InterruptibleAuditedCommand
from caseload_server.commands.options import database_option
from caseload_server.commands.progress import progress_bar
from caseload_server.commands.signals import defer_signals
from caseload_server.commands.standard_streams import print_line, print_notice
from caseload_server.config import Config, SettingError
from caseload_server.domain.errors import DomainError
from caseload_server.domain.id_formats import ID_PATTERN
from caseload_server.store import PATIENT, THERAPIST, RecordKind, RelationshipStore
from caseload_server.store.purges import NotPurgeable


def _record_id(_: click.Context, parameter: click.Parameter, text: str | None) -> str | None:
    """Rejects a malformed id before the record of this command has it: it could be a name."""
    if text is not None and not ID_PATTERN.fullmatch(text):
        raise SettingError(parameter.opts[0], "must be an id: 1 to 63 of a-z, 0-9 and -, and not begin with -")
    return text


@click.command(cls=InterruptibleAuditedCommand)
@database_option
@click.option(
    "--deleted-before",
    metavar="TIME",
    help="Erase records deleted before a time (RFC 3339) or age (30d).",
)
@click.option(
    "--versions-before",
    metavar="TIME",
    help="Erase versions of records that ended before a time (RFC 3339) or age (30d).",
)
@click.option("--changes-before", metavar="TIME", help="Erase changes made before a time (RFC 3339) or age (30d).")
@click.option(
    "--patient", metavar="ID", callback=_record_id, help="Erase one deleted patient, and those merged into it."
)
@click.option("--therapist", metavar="ID", callback=_record_id, help="Erase one deleted therapist.")
@click.option("--vacuum", is_flag=True, help="Vacuum the SQLite file even while a server uses it. Writes wait.")
def purge(database: str, vacuum: bool, **chosen: str | None) -> None:  # noqa: FBT001
    """Permanently erase deleted therapists and patients, old versions, or old changes. The server can keep running."""
    from caseload_server.clock import now_us
    from caseload_server.store.backends.factory import open_store

    erases_people = _check_combination(chosen)
    is_file = not settings.is_postgres(database)
    if vacuum and not (erases_people and is_file):
        raise SettingError(
            "--vacuum", "needs a SQLite database, and people or versions to erase: PostgreSQL vacuums by itself"
        )
    times = _parse_times(chosen, now_us())
    if is_file and not settings.sqlite_path(database).exists():
        raise SettingError("--database", "the file does not exist")
    may_leave_traces = erases_people and is_file
    store = open_store(Config(database=database), now_us)
    try:
        _purge(store, times, chosen, now_us())
    except KeyboardInterrupt:
        if may_leave_traces:
            print_notice("caseload: the file may still contain traces of erased records: run purge again")
        raise
    finally:
        store.close()
    if may_leave_traces:
        _vacuum(settings.sqlite_path(database), even_in_use=vacuum)


def _check_combination(chosen: dict[str, str | None]) -> bool:
    """Returns whether the command erases data of people. Raises SettingError if the options do not go together."""
    given = [f"--{name.replace('_', '-')}" for name, text in chosen.items() if text is not None]
    if not given:
        raise SettingError(
            "--deleted-before", "is required, or --versions-before, --changes-before, --patient or --therapist"
        )
    if (one := {"--patient", "--therapist"}.intersection(given)) and len(given) > 1:
        raise SettingError(min(one), "must not be combined with another choice of what to erase")
    return given != ["--changes-before"]


def _parse_times(chosen: dict[str, str | None], now_us: int) -> dict[str, int]:
    """Returns the times that were chosen, in microseconds since 1970 (UTC), and not in the future."""
    return {
        name: min(_parse_time(f"--{name.replace('_', '-')}", text, now_us), now_us)
        for name in ("deleted_before", "versions_before", "changes_before")
        if (text := chosen[name]) is not None
    }


def _parse_time(setting: str, text: str, now_us: int) -> int:
    """Parses a time (RFC 3339) or an age in days (30d). Raises SettingError.

    Args: setting, the name of the setting for the error; now_us, the current time in microseconds since 1970 (UTC).
    Returns: microseconds since 1970 (UTC).
    """
    if text.endswith("d") and text[:-1].isascii() and text[:-1].isdigit() and len(text) < 8:
        return now_us - int(text[:-1]) * 24 * 3600 * 1_000_000
    try:
        parsed = datetime.fromisoformat(text)
    except ValueError:
        raise SettingError(setting, "must be a time such as 2026-01-31T00:00:00Z, or an age such as 30d") from None
    if parsed.tzinfo is None:
        raise SettingError(setting, "needs a time zone, such as Z")
    return int(parsed.timestamp() * 1_000_000)


def _purge(store: RelationshipStore, times: dict[str, int], chosen: dict[str, str | None], now_us: int) -> None:
    """Erases what was chosen. Raises SettingError where the database fails, or the one record cannot be erased."""
    from caseload_server.store.backends.factory import domain_setting_error

    try:
        for kind in (PATIENT, THERAPIST):
            if record_id := chosen[kind.name]:
                _purge_record(store, kind, record_id)
        if "deleted_before" in times:
            _purge_records(store, times["deleted_before"])
            _report_future(store, now_us)
        if "versions_before" in times:
            _purge_in_batches(store.purger.purge_versions, times["versions_before"], "versions")
        if "changes_before" in times:
            _purge_in_batches(store.purger.purge_changes, times["changes_before"], "change sets")
    except DomainError as error:
        raise domain_setting_error(error) from None


def _purge_record(store: RelationshipStore, kind: RecordKind[Any], record_id: str) -> None:
    """Erases one record. Prints the numbers of erased records, even if it is interrupted."""
    try:
        with defer_signals():
            purged = store.purger.purge_record(kind, record_id)
            _report({kind.name: purged.records, "assignment": purged.assignments})
    except kind.not_found as error:
        raise SettingError(f"--{kind.name}", error.message) from None
    except NotPurgeable as error:
        raise SettingError(f"--{kind.name}", str(error)) from None


def _report(erased: dict[str, int]) -> None:
    names = ("patient", "therapist", "assignment")
    print_line(", ".join(f"{erased.get(name, 0)} {name}s" for name in names) + " purged")


def _vacuum(path: Path, *, even_in_use: bool) -> None:
    """Removes traces of erased records from a SQLite file, or prints how to do that when the file is in use."""
    from caseload_server.store.backends.factory import database_setting_error
    from caseload_server.store.backends.sqlite import vacuum

    try:
        if even_in_use or not vacuum.is_in_use(path):
            vacuum.vacuum(path)
        else:
            problem = "the file is in use and may still contain traces of erased records"
            print_notice(f"caseload: {problem}: run purge with --vacuum, or again when it is not in use")
    except apsw.Error as error:
        raise database_setting_error(error, path) from None


def _purge_records(store: RelationshipStore, before_us: int) -> None:
    """Erases records in batches. Prints the numbers of erased records at the end, even if it is interrupted."""
    kinds = (PATIENT, THERAPIST)
    erased = dict.fromkeys((*(kind.name for kind in kinds), "assignment"), 0)
    try:
        count = partial(sum, (store.purger.count_purgeable(kind, before_us) for kind in kinds))
        with progress_bar("purging", count) as progress, defer_signals() as deliver_signals:
            for kind in kinds:
                for batch in store.purger.purge_records(kind, before_us):
                    erased[kind.name] += batch.records
                    erased["assignment"] += batch.assignments
                    progress(batch.records)
                    deliver_signals()
    finally:
        _report(erased)


def _report_future(store: RelationshipStore, time_us: int) -> None:
    """Prints how many records have a time of deletion in the future, because a clock was ahead."""
    if count := sum(store.purger.count_deleted_after(kind, time_us) for kind in (PATIENT, THERAPIST)):
        text = f"{count} deleted records stay: their time of deletion is in the future"
        print_notice(f"caseload: {text}: undelete and delete them again, or wait")


def _purge_in_batches(purge: Callable[[int, Callable[[int], None]], int], before_us: int, noun: str) -> None:
    """Erases change sets or versions. Prints their number at the end, even if it is interrupted."""
    erased = 0

    def add(count: int) -> None:
        nonlocal erased
        erased += count
        deliver_signals()

    try:
        with defer_signals() as deliver_signals:
            purge(before_us, add)
    finally:
        print_line(f"{erased} {noun} purged")
