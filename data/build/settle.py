"""What can only be decided over all parts: what global cleaning steps keep, copies, splits, the tokenizer.

A split is a property of the document's text alone, so it is the same whatever else is in the corpus. The tokenizer's
sample is the training documents with the smallest hashes: a fair draw that depends on no order and no number of
processes. Memory: about 40 bytes a document.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from data.build.clean import QUARANTINE, bad_limit, read_about, too_many
from data.build.job import Job
from data.build.place import committed
from data.build.plan import Part
from data.build.spool import Spool
from data.config import CorpusConfig, DataError, TokenizerConfig
from data.metadata import join_types
from data.tokenizers import TOKENIZER_DIRECTORY, make_tokenizer

SAMPLE_BYTES = 64 << 20
"""UTF-8 bytes of text that a tokenizer is trained on at most. More changes the merges of a small vocabulary little."""

CHECK_BYTES = 1 << 19
"""The same for a tokenizer that is given: text on which two ways to encode are compared."""

TRAIN, VALIDATION = 1, 2
"""What becomes of a document (0 = dropped), in `settled/00012.npy`, uint8 [documents]."""

_HASH_RANGE = 1 << 64


def decide(job: Job, stage: int, parts: Sequence[Part]) -> None:
    """The global step that ends cleaning stage `stage`: signatures of all parts to a decision a part."""
    assert job.pipeline
    found = [np.load(job.place.cleaned(stage, part.number) / "signatures.npy", mmap_mode="r") for part in parts]
    decision = job.pipeline.stages[stage].decide(found)
    with committed(job.place.decided(stage)) as directory:
        start = 0
        for part, signatures in zip(parts, found, strict=True):
            own = decision.part(start, start + len(signatures))
            columns: dict[str, Any] = {f"column {name}": values for name, values in own.columns.items()}
            np.savez(directory / f"{part.number:05d}.npz", keep=own.keep, note=np.array(own.note), **columns)
            start += len(signatures)


@dataclass(frozen=True)
class Settled:
    """What `settle` found. documents, bytes: those that stay, and their UTF-8. skipped, quarantined: by reason.
    columns: types of their columns. tallies: of the cleaning steps, as JSON data."""

    documents: int
    bytes: int
    skipped: dict[str, int]
    quarantined: dict[str, int]
    columns: dict[str, str]
    tallies: list[dict[str, Any]]


def read_settled(job: Job) -> Settled:
    """What was settled."""
    return Settled(**json.loads((job.place.settled / "about.json").read_text(encoding="utf-8")))


def settle(job: Job, tokenizer: TokenizerConfig, parts: Sequence[Part]) -> None:
    """Copies, splits and tokenizer. DataError when too much was bad or too little is left for two splits."""
    place, last = job.place, job.stages - 1
    abouts = [[read_about(place.cleaned(stage, part.number)) for part in parts] for stage in range(last + 1)]
    _check_bad(job, abouts[0], parts)
    hashes = [np.load(place.cleaned(last, part.number) / "hashes.npy") for part in parts]
    sizes = np.concatenate([np.load(place.cleaned(last, part.number) / "sizes.npy") for part in parts])
    whole = np.concatenate(hashes)
    skipped = Counter({"empty": sum(about["empty"] for about in abouts[0])})
    fate = _splits(job.corpus, whole, skipped, abouts[0])
    with committed(place.settled) as directory:
        cuts = np.cumsum([len(part) for part in hashes])
        for part, own in zip(parts, np.split(fate, cuts[:-1]), strict=True):
            np.save(directory / f"{part.number:05d}.npy", own)
        most = SAMPLE_BYTES if tokenizer.trained else CHECK_BYTES
        sample = _sample(job, parts, whole, sizes, fate, cuts, most)
        make_tokenizer(tokenizer, sample).save(directory / TOKENIZER_DIRECTORY)
        bad = sum((Counter(about["bad"]) for about in abouts[0]), Counter())
        about = {
            "documents": int((fate > 0).sum()),
            "bytes": int(sizes[fate > 0].sum()),
            "skipped": {reason: count for reason, count in sorted(skipped.items()) if count},
            "quarantined": dict(sorted(bad.items())),
            "columns": _columns(abouts[-1]),
            "tallies": [tally for stage in abouts for tally in _tallies(stage)],
        }
        (directory / "about.json").write_text(json.dumps(about), encoding="utf-8")


def _check_bad(job: Job, abouts: list[dict[str, Any]], parts: Sequence[Part]) -> None:
    bad = sum(sum(about["bad"].values()) for about in abouts)
    records = sum(about["records"] for about in abouts)
    if bad > bad_limit(job.corpus.max_bad_records, records):
        first, part = next(
            (about["first_bad"], part) for about, part in zip(abouts, parts, strict=True) if about["bad"]
        )
        where = job.place.cleaned(0, part.number).parent / "*" / QUARANTINE
        raise too_many(job.corpus.max_bad_records, bad, records, first, where)


def _splits(
    corpus: CorpusConfig, hashes: np.ndarray, skipped: Counter[str], abouts: list[dict[str, Any]]
) -> np.ndarray:
    """What becomes of each document, uint8 [documents]: the first of copies stays, a hash of the text decides where."""
    fate = np.full(len(hashes), TRAIN, np.uint8)
    if len(hashes):
        order = np.lexsort((hashes[:, 1], hashes[:, 0]))  # stable: of copies, the first in the corpus comes first
        copies = order[1:][(hashes[order[1:]] == hashes[order[:-1]]).all(axis=1)]
        fate[copies] = 0
        skipped["duplicate"] += len(copies)
    kept = np.flatnonzero(fate)
    threshold = np.uint64(min(int(corpus.validation_fraction * _HASH_RANGE), _HASH_RANGE - 1))
    held_out = kept[hashes[kept, 0] < threshold]
    if len(kept) and not len(held_out):
        held_out = kept[[np.argmin(hashes[kept, 0])]]  # a small corpus: the document nearest to the threshold
    if len(kept) - len(held_out) < 1:
        raise DataError(_too_few(corpus, len(kept), skipped, abouts))
    fate[held_out] = VALIDATION
    return fate


def _too_few(corpus: CorpusConfig, documents: int, skipped: Counter[str], abouts: list[dict[str, Any]]) -> str:
    reasons = sum((Counter(about["bad"]) for about in abouts), skipped.copy())
    left_out = ", ".join(f"{count} {reason}" for reason, count in sorted(reasons.items()) if count)
    first = next((about["first_bad"] for about in abouts if about["first_bad"]), "")
    found = f"{documents} usable document(s)" + (f" ({left_out} left out)" if left_out else "")
    steps = ", ".join(str(step.get("step")) for step in corpus.clean)
    cure = f"ask less of corpus.clean (its steps drop documents: {steps}), " if steps else ""
    return (
        f"corpus.sources = {list(corpus.sources)}: {found}, but a corpus needs at least one for training and one for "
        f"validation; {cure}add text, or cut a large file into documents with corpus.max_document_bytes=16384"
        + (f". What was left out begins with {first}" if first else "")
    )


def _sample(
    job: Job,
    parts: Sequence[Part],
    hashes: np.ndarray,
    sizes: np.ndarray,
    fate: np.ndarray,
    cuts: np.ndarray,
    most: int,
) -> list[str]:
    """Texts of training documents in order of hash, up to `most` bytes (but two at least)."""
    training = np.flatnonzero(fate == TRAIN)
    training = training[np.lexsort((hashes[training, 1], hashes[training, 0]))]
    fits = max(2, int(np.searchsorted(np.cumsum(sizes[training]), most, side="right")))
    chosen = training[:fits]
    texts: dict[int, str] = {}
    start = 0
    for part, end in zip(parts, cuts.tolist(), strict=True):
        own = np.sort(chosen[(chosen >= start) & (chosen < end)]) - start
        spool = Spool(job.place.cleaned(job.stages - 1, part.number))
        texts.update({start + number: document.text for number, document in spool.chosen(own)})
        start = end
    return [texts[number] for number in chosen.tolist()]


def _columns(abouts: list[dict[str, Any]]) -> dict[str, str]:
    found: dict[str, str] = {}
    for about in abouts:
        for name, kind in about["columns"].items():
            found[name] = join_types(found.get(name, kind), kind)
    return dict(sorted(found.items()))


def _tallies(abouts: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Tallies of one pass, summed over the parts."""
    if not any(about["tallies"] for about in abouts):
        return []
    from data.clean.base import Tally

    rows = zip(*([Tally.of_plain(tally) for tally in about["tallies"]] for about in abouts), strict=True)
    return [sum(row[1:], row[0]).plain() for row in rows]
