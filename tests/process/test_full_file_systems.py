"""A file system without space or inodes is named when a command cannot write its files."""

import errno
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from pathlib import Path

import pytest
from caseload_server.write_faults import NO_SPACE, write_fault

from tests.process.command_runner import SERVE, caseload, refusal, url
from tests.support.disks import CannotMount, mounted

NO_INODES = "its file system has no inodes left: delete files there"


@pytest.fixture
def crowded() -> Iterator[Path | None]:
    """A folder in a file system without free inodes, or None where nothing can be mounted."""
    try:
        with mounted("-t", "tmpfs", "-o", "nr_inodes=2", "tmpfs") as folder:
            (folder / "last").touch()
            yield folder
    except CannotMount:
        yield None


def test_a_file_system_without_inodes_is_named(tmp_path: Path, crowded: Path | None) -> None:
    if crowded is None:  # then the kernel's answer alone
        assert write_fault(tmp_path / "file", OSError(errno.ENOSPC, "")) == NO_SPACE
        return
    database, log = url(tmp_path / "caseload.db"), str(crowded / "access.log")
    assert refusal(tmp_path, *SERVE, "--database", url(crowded / "caseload.db")) == (
        f"--database: the file or its folder cannot be written: {NO_INODES}"
    )
    ended = caseload(tmp_path, *SERVE, "--database", database, "--access-log", log)
    assert (ended.returncode, ended.stderr) == (2, f"caseload: --access-log: cannot be written: {NO_INODES}\n")
    assert caseload(tmp_path, "migrate", "--database", database).returncode == 0
    for command in (("backup", str(crowded / "copy.db")), ("export", str(crowded / "lines.jsonl"))):
        ended = caseload(tmp_path, *command, "--database", database)
        assert ended.returncode == 2
        assert NO_INODES in ended.stderr


def test_a_file_system_without_space_is_named(tmp_path: Path) -> None:
    database = url(tmp_path / "caseload.db")
    assert caseload(tmp_path, "migrate", "--database", database).returncode == 0
    try:
        with mounted("-t", "tmpfs", "-o", "size=64k", "tmpfs") as folder:
            line = refusal(tmp_path, *SERVE, "--database", url(folder / "caseload.db"))
            ended = caseload(tmp_path, "backup", str(folder / "copy.db"), "--database", database)
    except CannotMount:  # then the kernel's answer alone
        assert write_fault(tmp_path / "file", OSError(errno.ENOSPC, "")) == NO_SPACE
        return
    assert line == f"--database: the file cannot be written: {NO_SPACE}"
    assert (ended.returncode, NO_SPACE in ended.stderr) == (2, True), ended.stderr


def fill(folder: Path) -> None:
    with suppress(OSError), (folder / "large").open("wb", buffering=0) as large:
        while large.write(bytes(4096)):
            pass


def take_inodes(folder: Path) -> None:
    for name in ("a", "b"):
        (folder / name).touch()


@pytest.mark.parametrize("exhaust", [fill, take_inodes])
def test_a_database_on_a_full_file_system_can_be_read(tmp_path: Path, exhaust: Callable[[Path], None]) -> None:
    with ExitStack() as opened:
        try:
            folder = opened.enter_context(mounted("-t", "tmpfs", "-o", "size=2m,nr_inodes=4", "tmpfs"))
        except CannotMount:  # then the commands alone
            folder = tmp_path
        database = url(folder / "caseload.db")
        assert caseload(tmp_path, "migrate", "--database", database).returncode == 0
        if folder != tmp_path:
            exhaust(folder)
        for command in (("verify",), ("export", "-"), ("log", "head"), ("backup", "copy.db")):
            ended = caseload(tmp_path, *command, "--database", database)
            assert ended.returncode == 0, ended.stderr


@pytest.mark.parametrize(
    ("number", "text"),
    [(errno.EROFS, "its file system is read-only"), (errno.EDQUOT, "the disk quota is used up"), (errno.EXDEV, "")],
)
def test_the_error_of_a_write_is_described(tmp_path: Path, number: int, text: str) -> None:
    assert text in write_fault(tmp_path / "file", OSError(number, ""))


def test_a_file_that_can_be_written_has_no_fault(tmp_path: Path) -> None:
    assert write_fault(tmp_path / "file") == ""
    assert list(tmp_path.iterdir()) == []
