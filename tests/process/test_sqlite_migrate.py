"""`caseload migrate`, and its dry run."""

from pathlib import Path

from caseload_server.store.backends.sqlite.migrate import migrate

from tests.process.command_runner import STEPS, caseload, url
from tests.support.servers import ServerProcess


def test_migrate_lists_its_migrations_and_runs_each_once(tmp_path: Path) -> None:
    arguments = ("migrate", "--database", url(tmp_path / "caseload.db"))
    assert caseload(tmp_path, *arguments).stdout.splitlines() == STEPS
    again = caseload(tmp_path, *arguments)
    assert (again.returncode, again.stdout) == (0, "")
    assert [path.name for path in tmp_path.iterdir()] == ["caseload.db"]


def test_a_dry_run_lists_pending_migrations_and_creates_nothing(tmp_path: Path) -> None:
    path = tmp_path / "caseload.db"
    dry_run = ("migrate", "--dry-run", "--database", url(path))
    before = caseload(tmp_path, *dry_run)
    assert (before.returncode, before.stdout.splitlines()) == (0, STEPS)
    assert list(tmp_path.iterdir()) == []
    migrate(path)
    after = caseload(tmp_path, *dry_run)
    assert (after.returncode, after.stdout) == (0, "")
    assert [path.name for path in tmp_path.iterdir()] == ["caseload.db"]


def test_a_dry_run_beside_a_running_server_is_correct(tmp_path: Path) -> None:
    path = tmp_path / "caseload.db"
    with ServerProcess(url(path)):
        ended = caseload(tmp_path, "migrate", "--dry-run", "--database", url(path))
    assert (ended.returncode, ended.stdout) == (0, "")
