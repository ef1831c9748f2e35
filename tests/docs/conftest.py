"""What the tests of the pages share."""

import shutil
from pathlib import Path

import pytest

from tests.docs.doc_blocks import ROOT


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with the files of a checkout that the commands of the pages need."""
    shutil.copy(ROOT / "client_example.py", tmp_path)
    (tmp_path / "data").mkdir()
    return tmp_path
