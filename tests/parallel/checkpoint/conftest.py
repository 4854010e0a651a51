"""Makes `checkpoint_cases` importable under any import mode of pytest, and gives each test a seeded generator."""

from __future__ import annotations

import random
import sys
import zlib
from pathlib import Path

import pytest

for _path in (Path(__file__).parent, Path(__file__).parents[3]):
    if str(_path) not in sys.path:
        sys.path.insert(0, str(_path))


@pytest.fixture
def rng(request: pytest.FixtureRequest) -> random.Random:
    """Differs from test to test, the same in every run."""
    return random.Random(zlib.crc32(request.node.nodeid.encode()))
