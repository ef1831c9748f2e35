"""Disks that fail or fill up: real file systems, which root can mount, or limits of a process where a container forbids
that."""

import resource
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final, NamedTuple

from tests.support.servers import ServerProcess
from tests.support.waiting import HUNG_SECONDS

_IMAGE_BYTES: Final = 32 * 2**20
_FAULTS: Final = Path("/sys/fs/ext4")
_TOOLS: Final = "/usr/sbin:/usr/bin:/sbin:/bin"


class CannotMount(Exception):
    """This machine or container mounts no such file system."""


def limit_files(server: ServerProcess, size: int) -> None:
    """Limits the size of the files that a running process may write, in bytes; its hard limit stays."""
    _, hard = resource.prlimit(server.process.pid, resource.RLIMIT_FSIZE)
    resource.prlimit(server.process.pid, resource.RLIMIT_FSIZE, (size, hard))


@contextmanager
def mounted(*arguments: str) -> Iterator[Path]:
    """Mounts a file system for the with block, on a new folder. Args: those of mount(8). Raises CannotMount."""
    with tempfile.TemporaryDirectory(prefix="caseload-disk-") as folder:
        _run("mount", *arguments, folder)
        try:
            yield Path(folder)
        finally:
            _run("umount", "--lazy", folder)


def _run(command: str, *arguments: str) -> str:
    """Returns the output. Raises CannotMount if the command is missing or fails."""
    path = shutil.which(command, path=_TOOLS)
    if path is None:
        raise CannotMount(command)
    done = subprocess.run(
        [path, *arguments], capture_output=True, text=True, timeout=HUNG_SECONDS, stdin=subprocess.DEVNULL, check=False
    )
    if done.returncode != 0:
        raise CannotMount(done.stderr)
    return done.stdout.strip()


class LoopDisk(NamedTuple):
    """An ext4 file system with errors=remount-ro."""

    folder: Path
    trigger: Path

    def turn_read_only(self) -> None:
        """Reports an error to ext4, as of a damaged disk. https://www.kernel.org/doc/html/latest/admin-guide/ext4.html"""
        self.trigger.write_text("x")


@contextmanager
def loop_disk() -> Iterator[LoopDisk]:
    """Raises CannotMount."""
    with tempfile.TemporaryDirectory() as folder:
        image = Path(folder, "image")
        with image.open("wb") as file:
            file.truncate(_IMAGE_BYTES)
        _run("mkfs.ext4", "-q", "-F", str(image))
        device = _run("losetup", "--find", "--show", str(image))
        try:
            with mounted("--options", "errors=remount-ro", device) as disk:
                trigger = _FAULTS / Path(device).name / "trigger_fs_error"
                if not trigger.exists():
                    raise CannotMount(str(trigger))
                yield LoopDisk(disk, trigger)
        finally:
            with suppress(CannotMount):
                _run("losetup", "--detach", device)
