"""What is to be done, decided by names and sizes alone: the inventory cut into parts, and what identifies a build."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from data.clean.pipeline import Pipeline
from data.config import CorpusConfig, TokenizerConfig
from data.manifest import FORMAT
from data.sources import Piece, SourceFile, inventory_hash
from data.sources.files import cut_file
from data.tokenizers import tokenizer_spec

LEAST_PART, LARGEST_PART = 8 << 20, 256 << 20
"""Bytes of a part where `corpus.part_bytes` is 0: a 64th of the inputs within these."""


@dataclass(frozen=True)
class Part:
    """Inputs that one process reads, cleans, encodes and writes to shards of their own."""

    number: int
    pieces: tuple[Piece, ...]

    @property
    def size(self) -> int:
        """Bytes of the files, compressed as they are."""
        return sum(piece.size for piece in self.pieces)


def plan_parts(files: list[SourceFile], part_bytes: int) -> list[Part]:
    """The inventory in order, in parts of at least `part_bytes` (but the last). Number of processes and machines have
    no say in it, so they have none in the bytes of a corpus."""
    total = sum(file.size for file in files)
    size = part_bytes or int(np.clip(total // 64, LEAST_PART, LARGEST_PART))
    parts: list[Part] = []
    pending: list[Piece] = []
    held = 0
    for file in files:
        for piece in cut_file(file, size):
            pending.append(piece)
            held += piece.size
            if held >= size:
                parts.append(Part(len(parts), tuple(pending)))
                pending, held = [], 0
    if pending:
        parts.append(Part(len(parts), tuple(pending)))
    return parts


def spec_of(corpus: CorpusConfig, tokenizer: TokenizerConfig, files: list[SourceFile] | None) -> dict[str, Any]:
    """Everything that decides the contents of a corpus; `corpus.sources (their files)` only when files are given."""
    cleaning = Pipeline(corpus.clean)
    spec: dict[str, Any] = {
        "format": FORMAT,
        "corpus.sources": list(corpus.sources),
        "corpus.text_field": corpus.text_field,
        "corpus.columns": list(corpus.columns),
        "corpus.clean": cleaning.spec(),
        "corpus.validation_fraction": corpus.validation_fraction,
        "corpus.max_document_bytes": corpus.max_document_bytes,
        "corpus.shard_tokens": corpus.shard_tokens,
        "corpus.block_tokens": corpus.block_tokens,
        "corpus.part_bytes": corpus.part_bytes,
        **tokenizer_spec(tokenizer),
    }
    if files is not None:
        spec["corpus.sources (their files)"] = inventory_hash(files)
        if contents := cleaning.contents():
            spec["corpus.clean (files it reads)"] = contents
    return spec


def differences(was: dict[str, Any], now: dict[str, Any]) -> str:
    """What `now` says otherwise than `was`, in words; empty where it says nothing else. An option that is younger than what
    was built was at its default then."""
    plain = spec_of(CorpusConfig("x", ("x",), "x"), TokenizerConfig("byte"), None)
    was = {option: plain[option] for option in now if option in plain} | was
    return "; ".join(
        f"{option} was {was.get(option)!r}, now {value!r}" for option, value in now.items() if was.get(option) != value
    )
