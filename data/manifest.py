"""manifest.json: what a finished corpus holds. It is written last, so a corpus that has one is whole."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data.config import DataError

FORMAT = 1
"""Version of the corpus format: manifest, shards and their indexes."""

MANIFEST = "manifest.json"


@dataclass(frozen=True)
class Shard:
    """One tar file and its index.

    file, size, sha256: name within the corpus, bytes, checksum. index_file, index_sha256: the same of its index.
    blocks, documents, tokens: what it holds, end-of-document tokens included; bytes: UTF-8 bytes of the text.
    """

    file: str
    size: int
    sha256: str
    index_file: str
    index_sha256: str
    blocks: int
    documents: int
    tokens: int
    bytes: int


@dataclass(frozen=True)
class Split:
    """The shards of `train` or `validation`, and their totals (units as in Shard)."""

    shards: tuple[Shard, ...]

    @property
    def blocks(self) -> int:
        return sum(shard.blocks for shard in self.shards)

    @property
    def documents(self) -> int:
        return sum(shard.documents for shard in self.shards)

    @property
    def tokens(self) -> int:
        return sum(shard.tokens for shard in self.shards)

    @property
    def bytes(self) -> int:
        return sum(shard.bytes for shard in self.shards)


@dataclass(frozen=True)
class Baselines:
    """Cross-entropy of the validation split under models that only count, in nats per token (`data.baselines`).

    unigram, bigram: nats/token. train_tokens: training tokens counted. bigram_weights: weight of the bigram for
    contexts seen 2^k to 2^(k+1)-1 times; the rest goes to the unigram.
    """

    unigram: float
    bigram: float
    train_tokens: int
    bigram_weights: tuple[float, ...]


@dataclass(frozen=True)
class Manifest:
    """Everything about a corpus but its tokens.

    spec: the options and inputs that decided the contents; a build with an equal spec reuses the corpus.
    dtype: how tokens are stored, `uint16` or `uint32`. skipped: documents left out, by reason.
    provenance: versions of what made it. Holds no date and no absolute path: the same text gives the same bytes.
    """

    name: str
    spec: dict[str, Any]
    tokenizer_kind: str
    tokenizer_fingerprint: str
    vocab_size: int
    eod: int
    dtype: str
    splits: dict[str, Split]
    baselines: Baselines | None
    skipped: dict[str, int]
    provenance: dict[str, str]

    @property
    def fingerprint(self) -> str:
        """Hash of the contents: tokens, their division into blocks, and the tokenizer; not of name or provenance."""
        shards = {name: [shard.sha256 for shard in split.shards] for name, split in self.splits.items()}
        return _digest([FORMAT, self.tokenizer_fingerprint, self.vocab_size, self.dtype, shards])[:32]

    def save(self, directory: Path) -> None:
        """Writes manifest.json, with a checksum of itself."""
        body = dataclasses.asdict(self)
        whole = {"format": FORMAT, "checksum": _digest(body), **body}
        (directory / MANIFEST).write_text(json.dumps(whole, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, directory: Path) -> Manifest:
        """Reads manifest.json; DataError when there is none or it is not whole."""
        path = directory / MANIFEST
        try:
            body = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError as error:
            raise DataError(
                f"{directory}: no corpus there ({MANIFEST} is missing); `triaxis data build` makes one"
            ) from error
        except (OSError, ValueError) as error:
            raise DataError(f"{path}: cannot be read ({error}); delete {directory} and build it again") from error
        if not isinstance(body, dict) or body.pop("format", None) != FORMAT:
            raise DataError(f"{path}: not of corpus format {FORMAT}; delete {directory} and build it again")
        if body.pop("checksum", None) != _digest(body):
            raise DataError(f"{path}: was changed after it was written; delete {directory} and build it again")
        splits = {
            name: Split(tuple(Shard(**shard) for shard in split["shards"]))
            for name, split in body.pop("splits").items()
        }
        baselines = body.pop("baselines")
        if baselines is not None:
            baselines = Baselines(**{**baselines, "bigram_weights": tuple(baselines["bigram_weights"])})
        return cls(splits=splits, baselines=baselines, **body)


def _digest(value: Any) -> str:
    """SHA-256 of the canonical JSON of a value."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, separators=(",", ":")).encode()).hexdigest()
