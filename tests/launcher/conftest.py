"""A small corpus, a directory to run commands in, and straight runs that others are held against."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from data.build import build
from data.config import CorpusConfig, TokenizerConfig
from tests.launcher.running import Together, Triaxis, minute, write_text


@pytest.fixture(scope="session")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory of made-up documents."""
    return write_text(tmp_path_factory.mktemp("text"))


@pytest.fixture(scope="session")
def corpus(tmp_path_factory: pytest.TempPathFactory, text: Path) -> Path:
    """The documents as bytes; not to be changed."""
    directory = tmp_path_factory.mktemp("corpora") / "bytes"
    options = {"validation_fraction": 0.2, "block_tokens": 3000, "shard_tokens": 20000, "workers": 1}
    build(CorpusConfig("bytes", (str(text),), str(directory), **options), TokenizerConfig("byte"))
    return directory


@pytest.fixture
def triaxis(tmp_path: Path) -> Iterator[Triaxis]:
    """Commands in the test's directory; whatever is left of them is killed."""
    found = Triaxis(tmp_path)
    yield found
    found.end()


@pytest.fixture(scope="module")
def together(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Together]:
    """Jobs of a module that run beside one another."""
    found = Together(lambda name: tmp_path_factory.mktemp(name))
    yield found
    found.close()


STEPS = 120  # of the straight run


@pytest.fixture(scope="session")
def straight(tmp_path_factory: pytest.TempPathFactory, corpus: Path) -> Path:
    """The run directory of one process that nobody disturbed: a checkpoint every 20 steps, validation every 30."""
    directory = tmp_path_factory.mktemp("straight")
    triaxis = Triaxis(directory, cold=True)  # what forks compute is held against it
    try:
        triaxis.run("train", *straight_recipe(corpus))
    finally:
        triaxis.end()
    return directory / "runs" / "run"


def straight_recipe(corpus: Path, *more: str, **options: object) -> list[str]:
    """Overrides of the straight run, changed where asked."""
    every = {"checkpoint__every_tokens": 20 * 128, "train__validate_every_tokens": 30 * 128}
    return minute(corpus, STEPS, *more, **{**every, **options})
