"""Corpora of chosen document lengths, whose tokens say where they stand: written as the build writes them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from data.manifest import Manifest, Split
from data.metadata import type_of
from data.shards import ShardWriter
from data.tokenizers import TOKENIZER_DIRECTORY, Tokenizer

EOD = 256


def write_corpus(
    directory: Path, shards: list[list[int]], *, name: str = "synthetic", block_tokens: int = 50, **columns: list[Any]
) -> Path:
    """A corpus whose training shards hold documents of these lengths (eod included), with these columns of metadata.

    Its documents are `document(number, length)`; the validation split holds one document of 40 tokens.
    """
    directory.mkdir(parents=True, exist_ok=True)
    schema = {key: type_of(values[0]) or "str" for key, values in columns.items()}
    splits = {}
    for split, groups in (("train", shards), ("validation", [[40]])):
        found, number = [], 0
        for part, group in enumerate(groups):
            kind = np.dtype(np.uint16)
            with ShardWriter(directory, split, kind, block_tokens, 1 << 40, part=part, columns=schema) as writer:
                for length in group:
                    about = {"source": name, "path": f"{split}/{number}", "row": number, "bytes": length - 1}
                    own = {key: values[number % len(values)] for key, values in columns.items()}
                    writer.add(document(number, length).astype(kind), {**about, **own})
                    number += 1
                found += writer.finish().shards
        splits[split] = Split(tuple(found))
    tokenizer = Tokenizer("byte")
    tokenizer.save(directory / TOKENIZER_DIRECTORY)
    manifest = Manifest(
        name=name,
        spec={},
        tokenizer_kind="byte",
        tokenizer_fingerprint=tokenizer.fingerprint,
        vocab_size=tokenizer.vocab_size,
        eod=EOD,
        dtype="uint16",
        columns=schema,
        splits=splits,
        baselines=None,
        skipped={},
        quarantined={},
        cleaning=[],
        provenance={},
    )
    manifest.save(directory)
    return directory


def document(number: int, length: int) -> np.ndarray:
    """Tokens of a document: token t of document d is (7 * d + 3 * t) mod 256, the last is `eod`."""
    return np.concatenate([(7 * number + 3 * np.arange(length - 1)) % 256, [EOD]])
