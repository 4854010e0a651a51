"""What all tests share: pools of gloo processes that live as long as the session."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.helpers.pool import Pools


@pytest.fixture(scope="session")
def pools() -> Iterator[Pools]:
    """Worker processes by world size, started when first asked for; all are ended with the session."""
    found = Pools()
    yield found
    found.close()
