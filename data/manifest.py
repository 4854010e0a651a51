"""manifest.json: what a finished corpus holds. It is written last, so a corpus that has one is whole."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data.config import DataError

FORMAT = 2
"""Version of the corpus format: manifest, shards, their indexes and tables of metadata."""

MANIFEST = "manifest.json"


@dataclass(frozen=True)
class Totals:
    """documents; tokens, end-of-document tokens included; bytes of UTF-8 text."""

    documents: int = 0
    tokens: int = 0
    bytes: int = 0

    def __add__(self, other: Totals) -> Totals:
        return Totals(self.documents + other.documents, self.tokens + other.tokens, self.bytes + other.bytes)


@dataclass(frozen=True)
class Shard:
    """One tar file, its index and the table of its documents' metadata.

    file, size, sha256: name within the corpus, bytes, checksum; with index_ and meta_ the same of index and table.
    blocks: how many it holds. sources: what it holds of each source.
    """

    file: str
    size: int
    sha256: str
    index_file: str
    index_size: int
    index_sha256: str
    meta_file: str
    meta_size: int
    meta_sha256: str
    blocks: int
    sources: dict[str, Totals]

    @property
    def totals(self) -> Totals:
        return sum(self.sources.values(), Totals())

    @property
    def documents(self) -> int:
        return self.totals.documents

    @property
    def tokens(self) -> int:
        return self.totals.tokens

    @property
    def bytes(self) -> int:
        return self.totals.bytes

    @classmethod
    def from_json(cls, body: dict[str, Any]) -> Shard:
        return cls(**{**body, "sources": {name: Totals(**totals) for name, totals in body["sources"].items()}})


@dataclass(frozen=True)
class Split:
    """The shards of `train` or `validation`, and their totals (units as in Totals)."""

    shards: tuple[Shard, ...]

    @property
    def blocks(self) -> int:
        return sum(shard.blocks for shard in self.shards)

    @property
    def sources(self) -> dict[str, Totals]:
        """What the split holds of each source, by name."""
        found: dict[str, Totals] = {}
        for shard in self.shards:
            for name, totals in shard.sources.items():
                found[name] = found.get(name, Totals()) + totals
        return found

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
    dtype: how tokens are stored, `uint16` or `uint32`. columns: types of the metadata columns that documents have beside
    those of every corpus (`data.metadata`). skipped: documents left out, by
    reason; quarantined: records that could not be used, by reason (all are in quarantine.jsonl.zst). cleaning: for each
    step its name and the documents before and after it (more in cleaning.json).
    provenance: versions of what made it. Holds no date and no absolute path: the same text gives the same bytes.
    """

    name: str
    spec: dict[str, Any]
    tokenizer_kind: str
    tokenizer_fingerprint: str
    vocab_size: int
    eod: int
    dtype: str
    columns: dict[str, str]
    splits: dict[str, Split]
    baselines: Baselines | None
    skipped: dict[str, int]
    quarantined: dict[str, int]
    cleaning: list[dict[str, Any]]
    provenance: dict[str, str]

    @property
    def fingerprint(self) -> str:
        """Hash of the contents: tokens, their division into blocks, and the tokenizer; not of name or provenance."""
        shards = {name: [shard.sha256 for shard in split.shards] for name, split in self.splits.items()}
        parts = [FORMAT, self.tokenizer_fingerprint, self.vocab_size, self.dtype, shards]
        if "plain" in self.spec:  # which documents tars of others hold, and of which split each is (`data.plain`)
            parts.append(self.spec["plain"])
        return _digest(parts)[:32]

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
        found = body.pop("format", None) if isinstance(body, dict) else None
        if found != FORMAT:
            raise DataError(
                f"{path}: of corpus format {found}, this version reads format {FORMAT}; delete {directory} and build it "
                "again (`triaxis data build`)"
            )
        if body.pop("checksum", None) != _digest(body):
            raise DataError(f"{path}: was changed after it was written; delete {directory} and build it again")
        splits = {
            name: Split(tuple(Shard.from_json(shard) for shard in split["shards"]))
            for name, split in body.pop("splits").items()
        }
        baselines = body.pop("baselines")
        if baselines is not None:
            baselines = Baselines(**{**baselines, "bigram_weights": tuple(baselines["bigram_weights"])})
        return cls(splits=splits, baselines=baselines, **body)


def _digest(value: Any) -> str:
    """SHA-256 of the canonical JSON of a value."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, separators=(",", ":")).encode()).hexdigest()
