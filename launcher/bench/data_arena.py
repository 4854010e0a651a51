"""The corpus of `bench data`: made-up documents of lognormal length in the forms that loaders read."""

from __future__ import annotations

import io
import os
import tarfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import tokenizers
from tokenizers import models, pre_tokenizers

from data.config import EOD_TEXT, TokenizerConfig
from data.index import IndexConfig, index
from data.manifest import MANIFEST, Manifest, Split
from data.order import key, mix
from data.shards import ShardWriter
from data.tokenizers import TOKENIZER_DIRECTORY, make_tokenizer

VOCABULARY = 50_000
MEAN, SPREAD = 800.0, 1.0  # of a document's tokens; spread: of the logarithm
MEMBER_TARS = 8
SHARD_TOKENS = 1 << 23

_CHUNK = 1 << 22


def make(place: Path, tokens: int, seed: int) -> dict[str, float]:
    """Writes `tokens.npy` and `ends.npy` (for peers to write their forms from), `tars` with one document a member, `index`
    over them, and `blocks`, a corpus as `triaxis data build` writes it. Returns bytes on disk of each for a byte of tokens."""
    lengths = document_lengths(tokens, seed)
    ends = np.cumsum(lengths)
    line = np.lib.format.open_memmap(place / "tokens.npy", "w+", np.uint16, (int(ends[-1]),))
    for start in range(0, len(line), _CHUNK):
        number = np.arange(start, min(start + _CHUNK, len(line)), dtype=np.uint64)
        line[start : start + _CHUNK] = 1 + mix(number, key("tokens", seed)) % np.uint64(VOCABULARY - 1)
    line[ends - 1] = 0
    line.flush()
    np.save(place / "ends.npy", ends)
    _write_tokenizer(place)
    _write_tars(place, line, ends)
    _write_blocks(place, line, ends)
    tokenizer = TokenizerConfig("file", path=str(place / "tokenizer.json"))
    index(IndexConfig((str(place / "tars"),), str(place / "index"), validation_fraction=0.001, workers=1), tokenizer)
    stored = 2 * len(line)
    return {
        "block shards": _bytes(place / "blocks") / stored,
        "tars, a document a member": _bytes(place / "tars") / stored,
        "index over these tars": _bytes(place / "index") / stored,
    }


def make_many(place: Path, shards: int) -> Manifest:
    """`many`: a corpus whose manifest names the shards of `blocks` again and again, so that its line is as long as that of a
    large corpus, and its files are not."""
    directory = place / "many"
    directory.mkdir()
    for path in (place / "blocks").iterdir():
        (directory / path.name).symlink_to(path)
    manifest = Manifest.load(place / "blocks")
    there = manifest.splits["train"].shards
    many = Split(tuple(there[number % len(there)] for number in range(shards)))
    (directory / MANIFEST).unlink()
    manifest = replace(manifest, splits={**manifest.splits, "train": many})
    manifest.save(directory)
    return manifest


def document_lengths(tokens: int, seed: int) -> np.ndarray:
    """Lengths of documents, `eod` included, that add up to at least `tokens`, int64: lognormal by Box and Muller."""
    count = 2 * int(tokens / MEAN) + 16
    first, second = (
        (mix(np.arange(count, dtype=np.uint64), key("length", seed, part)) >> np.uint64(11)) / 2.0**53
        for part in (0, 1)
    )
    normal = np.sqrt(-2 * np.log(1 - first)) * np.cos(2 * np.pi * second)
    lengths = np.maximum(2, np.exp(np.log(MEAN) - SPREAD**2 / 2 + SPREAD * normal)).astype(np.int64)
    return lengths[: int(np.searchsorted(np.cumsum(lengths), tokens)) + 1]


def _write_tokenizer(place: Path) -> None:
    """A byte-level tokenizer with VOCABULARY ids, the first of them the end of a document."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    words = [a + b for a in letters for b in letters][: VOCABULARY - 1 - len(letters)]
    model = tokenizers.Tokenizer(
        models.BPE({word: number for number, word in enumerate([EOD_TEXT, *letters, *words])}, [])
    )
    model.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    model.add_special_tokens([EOD_TEXT])
    model.save(str(place / "tokenizer.json"))


def _write_tars(place: Path, line: np.ndarray, ends: np.ndarray) -> None:
    (place / "tars").mkdir()
    start = number = 0
    for part, some in enumerate(np.array_split(ends, MEMBER_TARS)):
        with tarfile.open(place / "tars" / f"{part:06d}.tar", "w", format=tarfile.USTAR_FORMAT) as tar:
            for end in some.tolist():
                body = io.BytesIO()
                np.save(body, line[start:end])
                info = tarfile.TarInfo(f"{number:09d}.npy")
                info.size = body.tell()
                body.seek(0)
                tar.addfile(info, body)
                start, number = end, number + 1


def _write_blocks(place: Path, line: np.ndarray, ends: np.ndarray) -> None:
    directory = place / "blocks"
    directory.mkdir()
    tokenizer = make_tokenizer(TokenizerConfig("file", path=str(place / "tokenizer.json")), [])
    tokenizer.save(directory / TOKENIZER_DIRECTORY)
    splits: dict[str, Split] = {}
    cut = len(ends) - max(1, len(ends) // 1000)
    for split, first, last in (("train", 0, cut), ("validation", cut, len(ends))):
        start = int(ends[first - 1]) if first else 0
        with ShardWriter(directory, split, np.dtype(np.uint16), 1 << 16, SHARD_TOKENS) as writer:
            for number, end in enumerate(ends[first:last].tolist(), start=first):
                writer.add(line[start:end], {"source": "made", "path": "up", "row": number, "bytes": 2 * (end - start)})
                start = end
            splits[split] = writer.finish()
    Manifest(
        name="made up",
        spec={},
        tokenizer_kind=tokenizer.kind,
        tokenizer_fingerprint=tokenizer.fingerprint,
        vocab_size=tokenizer.vocab_size,
        eod=tokenizer.eod,
        dtype="uint16",
        columns={},
        splits=splits,
        baselines=None,
        skipped={},
        quarantined={},
        cleaning=[],
        provenance={},
    ).save(directory)


def _bytes(directory: Path) -> int:
    return sum(
        os.path.getsize(path) for path in directory.rglob("*") if path.is_file() and "tokenizer" not in path.parts
    )
