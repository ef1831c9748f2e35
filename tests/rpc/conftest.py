"""What the tests of calls share."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.rpc.admission_scene import Scene, scene_with


@pytest.fixture
def scene(tmp_path: Path) -> Iterator[Scene]:
    with scene_with(tmp_path) as made:
        yield made
