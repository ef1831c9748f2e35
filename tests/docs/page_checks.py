"""The pages, and the check of a block of a page."""

import subprocess
import sys
from pathlib import Path

from tests.docs.doc_blocks import ROOT, Block, is_only_named, masked, run
from tests.support.waiting import HUNG_SECONDS

PAGES = [path for path in (ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))) if path.exists()]


def name(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def check_block(block: Block, folder: Path) -> None:
    if all(map(is_only_named, block.lines)):
        return
    done = run(block, folder)
    refused = block.output is not None and "ERROR:" in block.output.splitlines()
    assert (done.returncode != 0) == refused, f"{block.text}{done.stdout}"
    if block.output is not None:
        assert masked(done.stdout) == masked(block.output), f"{block.text}{done.stdout}"


def tour(address: str) -> int:
    command = [sys.executable, str(ROOT / "client_example.py"), address]
    return subprocess.run(command, stdout=subprocess.DEVNULL, timeout=HUNG_SECONDS, check=False).returncode
