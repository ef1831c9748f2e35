"""The command blocks of a Markdown page, run in a folder as a reader would run them."""

import os
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from tests.process.command_runner import without_record
from tests.support.missing_tool import NoTool
from tests.support.waiting import HUNG_SECONDS

ROOT = Path(__file__).parents[2]
OPERATIONS = ROOT / "docs" / "operations"
PROTOC = ROOT / ".tools" / "proto" / "bin"
"""The folder of protoc, for the end of PATH: it has a Python of its own."""

_FENCE = re.compile(r"^```(\w+)\n(.*?)^```\n(\s*^```text\n(.*?)^```)?", re.MULTILINE | re.DOTALL)
_NOT_RUN = re.compile(r"(make [a-z-]+|\. \.venv/bin/activate)( *#.*)?")
_MASKS = (
    (re.compile(r"\b[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}\b"), "ID"),
    (re.compile(r"\b\d{4}-\d\d-\d\dT[\d:.]+Z"), "TIME"),
    (re.compile(r"\b[0-9a-f]{12}\.\d+\b"), "REVISION"),
    (re.compile(r"(?<=\")[0-9a-f]{16}(?=\")"), "ETAG"),
    (re.compile(r"\bcaseload_[\w-]{43}(?!\w)"), "TOKEN"),
    (re.compile(r"\bsha256:[0-9a-f]{64}\b"), "HASH"),
    (re.compile(r"\b\d+:[0-9a-f]{64}\b"), "HEAD"),
    (re.compile(r"^revision \d+$", re.MULTILINE), "REVISION"),
    (re.compile(r"^\d+ (?:change sets|versions) purged$", re.MULTILINE), "PURGED"),
    (re.compile(r"^\d+ patients, \d+ therapists, \d+ assignments purged$", re.MULTILINE), "PURGED"),
    (re.compile(r"^  Message: .*deadline exceeded.*$", re.MULTILINE | re.IGNORECASE), "DEADLINE"),
    (re.compile(r"\s+"), " "),
)


class Block(NamedTuple):
    """A fenced block, and the output in the `text` block right below it, or None."""

    language: str
    text: str
    output: str | None

    @property
    def lines(self) -> list[str]:
        """The lines of the block without blank ones."""
        return [line for line in self.text.splitlines() if line.strip()]


def blocks(page: Path) -> list[Block]:
    """All fenced blocks except output blocks."""
    found = _FENCE.findall(page.read_text())
    return [Block(language, text, output if below else None) for language, text, below, output in found]


def is_only_named(line: str) -> bool:
    """Whether other tests cover the command: a make target, or the activation of the environment."""
    return bool(_NOT_RUN.fullmatch(line))


def masked(output: str) -> str:
    """Masks output that differs between runs: ids, times, revisions, etags, white space, and who ran a command."""
    output = without_record(output)
    for pattern, name in _MASKS:
        output = pattern.sub(name, output)
    return output.strip()


def run(block: Block, folder: Path) -> subprocess.CompletedProcess[str]:
    """Runs a block unchanged, in the environment that `. .venv/bin/activate` creates."""
    if block.language == "python":
        command: Sequence[str] = [sys.executable, "-c", block.text]
    else:
        lines = ["" if is_only_named(line) else line for line in block.text.splitlines()]
        command = ["bash", "-e", "-c", "\n".join(lines)]
    return subprocess.run(
        command,
        cwd=folder,
        env=os.environ | {"PATH": search_path()},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=HUNG_SECONDS,
        check=False,
    )


def artifacts() -> list[Path]:
    """The files that `make artifacts` writes. Raises NoTool if it did not run."""
    found = [*(ROOT / "dist").glob("caseload-protos-*.zip"), *(ROOT / "dist").glob("caseload.binpb")]
    if len(found) != 2:
        raise NoTool("needs the artifacts: make artifacts")
    return found


def search_path() -> str:
    """PATH: the commands of this environment, then those of `make grpcurl`, the system's, and protoc."""
    return os.pathsep.join(
        [str(Path(sys.executable).parent), str(ROOT / ".tools" / "bin"), os.environ["PATH"], str(PROTOC)]
    )
