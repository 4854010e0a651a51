"""A small corpus of made-up documents, built once, and how to build others."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

import pytest

from data.build import build
from data.config import CorpusConfig, TokenizerConfig
from data.manifest import Manifest

WORDS = (
    "the",
    "model",
    "token",
    "stream",
    "of",
    "and",
    "reads",
    "writes",
    "block",
    "always",
    "it",
    "in\n",
    "def",
    "if",
)


def made_up_documents(count: int, seed: int = 0) -> list[str]:
    """Different documents of 5 to 400 words."""
    draw = random.Random(seed)
    return [f"{i}: " + " ".join(draw.choices(WORDS, k=draw.randint(5, 400))) for i in range(count)]


@pytest.fixture(scope="session")
def documents() -> list[str]:
    return made_up_documents(120)


@pytest.fixture(scope="session")
def text_directory(tmp_path_factory: pytest.TempPathFactory, documents: list[str]) -> Path:
    directory = tmp_path_factory.mktemp("text")
    for number, text in enumerate(documents):
        file = directory / f"{number % 7}" / f"{number:04d}.txt"
        file.parent.mkdir(exist_ok=True)
        file.write_text(text, encoding="utf-8", newline="")
    return directory


Builder = Callable[..., Manifest]


@pytest.fixture(scope="session")
def build_small(text_directory: Path) -> Builder:
    """build_small(directory, tokenizer="byte", **corpus options)"""

    def run(directory: Path, tokenizer: TokenizerConfig | None = None, **options: object) -> Manifest:
        settings: dict = {
            "name": "small",
            "sources": (str(text_directory),),
            "validation_fraction": 0.2,
            "block_tokens": 3000,
            "shard_tokens": 20000,
            "workers": 1,
            **options,
        }
        return build(CorpusConfig(directory=str(directory), **settings), tokenizer or TokenizerConfig("byte"))

    return run


@pytest.fixture(scope="session")
def byte_corpus(tmp_path_factory: pytest.TempPathFactory, build_small: Builder) -> Path:
    """The documents as bytes, about 150,000 tokens; not to be changed."""
    directory = tmp_path_factory.mktemp("corpora") / "bytes"
    build_small(directory)
    return directory


@pytest.fixture
def corpus_copy(tmp_path: Path, byte_corpus: Path) -> Path:
    """A copy of the byte corpus that a test may damage."""
    import shutil

    return Path(shutil.copytree(byte_corpus, tmp_path / "copy"))
