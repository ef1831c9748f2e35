"""Without PgBouncer its tests are skipped, and say how to install it."""

from pathlib import Path

import pytest

from tests.support.missing_tool import NoTool
from tests.support.postgres import pgbouncer as module


def test_a_missing_pgbouncer_is_named_with_install_instructions(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(module, "_DEBIAN", str(tmp_path))
    with (
        pytest.raises(NoTool, match="needs PgBouncer: apt-get install pgbouncer"),
        module.pgbouncer("postgresql://127.0.0.1/x", "session"),
    ):
        pass
