"""What all tests share: pools of gloo processes that live as long as the session, and how workers share out the tests."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator

import pytest

from tests.helpers.pool import Pools

if "PYTEST_XDIST_WORKER" in os.environ:  # workers stand beside one another, and torch's threads spin while they wait
    os.environ.setdefault("OMP_NUM_THREADS", "1")


def pytest_configure() -> None:
    """Told to end by SIGTERM, as CI does, a session ends as by Ctrl-C: fixtures end what they have started."""
    if "PYTEST_XDIST_WORKER" not in os.environ:  # workers end with the session
        signal.signal(signal.SIGTERM, signal.default_int_handler)


@pytest.fixture(scope="session")
def pools() -> Iterator[Pools]:
    """Worker processes by world size, started when first asked for; all are ended with the session."""
    found = Pools()
    yield found
    found.close()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """A file's tests stay together, and so do all that use the pools, but for the longest list of layouts: one worker takes
    it, the other what else uses pools, and both start processes of their own."""
    for item in items:
        pooled = "pools" in getattr(item, "fixturenames", ()) and item.path.name != "test_parity.py"
        item.add_marker(pytest.mark.xdist_group("pools" if pooled else item.path.name))
