"""A corpus in a few lines, for people: `triaxis data inspect`."""

from __future__ import annotations

import math
from pathlib import Path

from data.config import DataError
from data.corpus import Corpus
from data.manifest import Manifest
from data.orderings.store import load, names
from data.remote import open_location
from data.tokenizers import load_corpus_tokenizer

_EXCERPT = 160
_MOST_SOURCES = 10


def describe(path: Path | str) -> str:
    """What a corpus at a path or URL holds, its baselines, how a held-out document begins; DataError when it is not whole."""
    place = open_location(path)
    path = place.directory
    manifest = Manifest.load(path)
    lines = [
        f"corpus {manifest.name} at {place.location} (fingerprint {manifest.fingerprint[:12]})",
        f"tokenizer {manifest.tokenizer_kind}, {manifest.vocab_size:,} ids, eod {manifest.eod}, as {manifest.dtype}",
    ]
    for name, split in manifest.splits.items():
        lines.append(
            f"{name:<11}{split.documents:>10,} documents {split.tokens:>14,} tokens {split.bytes / 1e6:>10,.2f} MB "
            f"({split.bytes / split.tokens:.2f} bytes/token) in {split.blocks:,} blocks, {len(split.shards):,} shards"
        )
    lines += _sources(manifest)
    if manifest.columns:
        lines.append("columns    " + ", ".join(f"{name} ({kind})" for name, kind in manifest.columns.items()))
    lines += [_ordering(path, name) for name in names(path)]
    if manifest.skipped:
        lines.append("left out   " + ", ".join(f"{count:,} {reason}" for reason, count in manifest.skipped.items()))
    if manifest.quarantined:
        lines.append(
            "quarantined " + ", ".join(f"{count:,} {reason}" for reason, count in manifest.quarantined.items())
        )
    if manifest.baselines:
        held_out = manifest.splits["validation"]
        per_byte = held_out.tokens / held_out.bytes / math.log(2)
        for kind in ("unigram", "bigram"):
            nats = getattr(manifest.baselines, kind)
            lines.append(f"{kind + ' baseline':<17}{nats:.4f} nats/token, {nats * per_byte:.4f} bits/byte")
    held = Corpus(path, "validation")
    meta = held.columns(0, ["source", "path", "bytes"])
    text = load_corpus_tokenizer(path).decode(held.document(0)[:-1][:_EXCERPT])
    lines.append(f"a held-out document: {meta['source'][0]}: {meta['path'][0]}, {meta['bytes'][0]:,} bytes")
    lines.extend("    " + line for line in text.splitlines()[:6])
    return "\n".join(lines)


def _ordering(path: Path, name: str) -> str:
    """What an ordering is, or why it is of no use."""
    try:
        found = load(path, name)
    except DataError as error:
        return f"ordering   {name}: NOT USABLE: {error}"
    told = ", ".join(f"{one['documents']:,} documents of {split}" for split, one in found.splits.items())
    return f"ordering   {name}: by {found.method}, {told}"


def _sources(manifest: Manifest) -> list[str]:
    """A line for each of several sources of the training split, most tokens first."""
    train = manifest.splits["train"]
    found = sorted(train.sources.items(), key=lambda pair: -pair[1].tokens)
    if len(found) < 2:
        return []
    return [
        f"source     {name}: {one.documents:,} documents, {one.tokens:,} tokens ({100 * one.tokens / train.tokens:.1f} %)"
        for name, one in found[:_MOST_SOURCES]
    ] + [f"           and {len(found) - _MOST_SOURCES:,} more (`triaxis data stats`)"] * (len(found) > _MOST_SOURCES)
