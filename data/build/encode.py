"""Documents of one part to tokens, blocks and shards."""

from __future__ import annotations

import json
from dataclasses import asdict
from functools import lru_cache
from pathlib import Path

import numpy as np

from data.build.job import Job, Report
from data.build.place import committed
from data.build.plan import Part
from data.build.settle import TRAIN, VALIDATION, read_settled
from data.build.spool import Spool
from data.manifest import Shard, Split
from data.shards import ShardWriter
from data.tokenizers import TOKENIZER_DIRECTORY, Tokenizer

SPLITS = {"train": TRAIN, "validation": VALIDATION}


def encode_part(job: Job, part: Part, report: Report) -> None:
    """Writes the part's shards and, in `shards.json`, what the manifest will say of them."""
    place, corpus = job.place, job.corpus
    tokenizer, columns = _tokenizer(place.settled / TOKENIZER_DIRECTORY), read_settled(job).columns
    fate = np.load(place.settled / f"{part.number:05d}.npy")
    cleaned = place.cleaned(job.stages - 1, part.number)
    sizes = np.load(cleaned / "sizes.npy")
    with committed(place.written(part.number)) as directory:
        writers = {
            own: ShardWriter(
                directory, split, tokenizer.dtype, corpus.block_tokens, corpus.shard_tokens,
                part=part.number, columns=columns,
            )
            for split, own in SPLITS.items()
        }  # fmt: skip
        with writers[TRAIN], writers[VALIDATION]:
            for first, documents in Spool(cleaned).frames():
                own = fate[first : first + len(documents)]
                kept = [(document, int(fate)) for document, fate in zip(documents, own.tolist(), strict=True) if fate]
                tokens = tokenizer.encode_documents([document.text for document, _ in kept])
                held = sizes[first : first + len(documents)][own > 0].tolist()
                for (document, split), ids, size in zip(kept, tokens, held, strict=True):
                    about = {"source": document.source, "path": document.path, "row": document.row, "bytes": size}
                    writers[split].add(ids, {**document.columns, **about})
                report(sum(held), sum(map(len, tokens)))
            splits = {split: [asdict(shard) for shard in writers[own].finish().shards] for split, own in SPLITS.items()}
        (directory / "shards.json").write_text(json.dumps(splits), encoding="utf-8")


@lru_cache(maxsize=1)
def _load(directory: Path, changed: int) -> Tokenizer:
    return Tokenizer.load(directory)


def _tokenizer(directory: Path) -> Tokenizer:
    """The tokenizer, with the words that it has learnt from the parts before."""
    return _load(directory, directory.stat().st_mtime_ns)


def read_splits(directory: Path) -> dict[str, Split]:
    """The shards of one part."""
    body = json.loads((directory / "shards.json").read_text(encoding="utf-8"))
    return {split: Split(tuple(Shard.from_json(shard) for shard in shards)) for split, shards in body.items()}
