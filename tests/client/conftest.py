from collections.abc import Iterator

import pytest

from tests.client.answering import Answering, answering


@pytest.fixture
def peer() -> Iterator[Answering]:
    with answering() as server:
        yield server
