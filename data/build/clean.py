"""The passes over the text: read (the first) or take up again, cut, clean, and write the documents to a spool.

What stays of a part is in its directory: `documents.spool` with `frames.npy`, `quarantine.jsonl`, `about.json`; after
the last pass `hashes.npy` (uint64 [documents, 2], of the text) and `sizes.npy` (int64, UTF-8 bytes); after the others
`signatures.npy`, for the global step that follows.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import IO, Any

import numpy as np

from data.build.cut import cut
from data.build.job import Job, Report
from data.build.place import committed
from data.build.plan import Part
from data.build.spool import Spool, SpoolWriter, batches
from data.config import DataError
from data.document import Document
from data.metadata import join_types, type_of
from data.sources import Fields, Quarantined, read_piece

QUARANTINE = "quarantine.jsonl"


def clean_part(job: Job, stage: int, part: Part, report: Report) -> None:
    """Pass `stage` over one part; DataError when too much of it is bad."""
    with committed(job.place.cleaned(stage, part.number)) as directory:
        about = _About()
        if stage == 0:
            with (directory / QUARANTINE).open("w", encoding="utf-8") as quarantine:
                documents = _read(job, part, about, quarantine, report)
                _run(job, stage, directory, documents, about)
        else:
            _run(job, stage, directory, _again(job, stage, part, about, report), about)
        about.save(directory)


class _About:
    """What a pass over a part counted."""

    def __init__(self) -> None:
        self.records = 0
        self.bad: Counter[str] = Counter()
        self.empty = 0
        self.first_bad = ""
        self.columns: dict[str, str] = {}
        self.tallies: list[Any] = []

    def see(self, documents: Iterable[Document]) -> None:
        """Types of the documents' columns."""
        for document in documents:
            for name, value in document.columns.items():
                kind = type_of(value)
                if kind and self.columns.get(name) != kind:
                    self.columns[name] = join_types(self.columns.get(name, kind), kind)

    def save(self, directory: Path) -> None:
        body = {
            "records": self.records,
            "bad": dict(self.bad),
            "first_bad": self.first_bad,
            "empty": self.empty,
            "columns": self.columns,
            "tallies": [tally.plain() for tally in self.tallies],
        }
        (directory / "about.json").write_text(json.dumps(body), encoding="utf-8")


def read_about(directory: Path) -> dict[str, Any]:
    """What a pass over a part counted, as JSON data."""
    return json.loads((directory / "about.json").read_text(encoding="utf-8"))


def bad_limit(option: float, records: int) -> float:
    """How many of so many records may be bad: a number from 1 on, or a share below 1 (but always ten)."""
    return option if option >= 1 or option == 0 else max(10.0, option * records)


def too_many(option: float, bad: int, records: int, first: str, where: Path) -> DataError:
    """The message for too much that is bad."""
    return DataError(
        f"corpus.max_bad_records = {option:g}: {bad:,} of {records:,} records cannot be used, the first because of "
        f"{first}; all are in {where}; correct them or the options, or raise corpus.max_bad_records"
    )


def _read(job: Job, part: Part, about: _About, quarantine: IO[str], report: Report) -> Iterator[Document]:
    """The part's documents; what is bad goes to the quarantine."""
    fields = Fields(job.corpus.text_field, job.corpus.columns)
    for piece in part.pieces:
        for found in read_piece(piece, fields):
            about.records += 1
            if isinstance(found, Quarantined):
                about.bad[found.reason] += 1
                about.first_bad = about.first_bad or f"{found.source}: {found.path}, row {found.row}: {found.detail}"
                quarantine.write(json.dumps(asdict(found), ensure_ascii=True) + "\n")
                _stop_early(job, about, Path(quarantine.name))
            elif not found.text.strip():
                about.empty += 1
            else:
                yield from cut(found, job.corpus.max_document_bytes)
        report(piece.size, 0)


def _stop_early(job: Job, about: _About, path: Path) -> None:
    """The limit for all parts cannot be known here, but a number can be passed, and a part be hopeless."""
    limit, bad = job.corpus.max_bad_records, about.bad.total()
    if (limit >= 1 and bad > limit) or (limit < 1 and bad >= 10_000 and bad > about.records / 2):
        raise too_many(limit, bad, about.records, about.first_bad, path)


def _again(job: Job, stage: int, part: Part, about: _About, report: Report) -> Iterator[Document]:
    """The documents of the pass before, less those that the global step between dropped."""
    from data.clean.base import Decision, Tally

    assert job.pipeline
    before = job.pipeline.stages[stage - 1]
    assert before.last
    with np.load(job.place.decided(stage - 1) / f"{part.number:05d}.npz") as found:
        arrays = dict(found)
    keep, note = arrays.pop("keep"), str(arrays.pop("note"))
    decision = Decision(keep, {name.removeprefix("column "): array for name, array in arrays.items()}, note)
    spool, tallies = Spool(job.place.cleaned(stage - 1, part.number)), Tally(before.last[0])
    for first, documents in spool.frames():
        through, tally = before.apply(documents, decision.part(first, first + len(documents)))
        tallies += tally
        yield from through
    report(part.size, 0)
    about.tallies.append(tallies)  # before those of the steps that follow it, which `_run` adds


def _run(job: Job, stage: int, directory: Path, documents: Iterator[Document], about: _About) -> None:
    """Cleans documents and writes them to the spool, with signatures or hashes."""
    own = job.pipeline.stages[stage] if job.pipeline else None
    last = stage == job.stages - 1
    signatures: list[np.ndarray] = []
    hashes: list[bytes] = []
    sizes: list[int] = []
    tallies: list[Any] = own.run([]).tallies if own else []
    with SpoolWriter(directory) as spool:
        for batch in batches(documents):
            if own is not None:
                ran = own.run(batch)
                batch = ran.documents
                tallies = [one + other for one, other in zip(tallies, ran.tallies, strict=True)]
                if ran.signatures is not None:
                    signatures.append(ran.signatures)
            spool.write(batch)
            if last:
                about.see(batch)
                for document in batch:
                    data = document.text.encode()
                    hashes.append(hashlib.blake2b(data, digest_size=16).digest())
                    sizes.append(len(data))
    about.tallies += tallies
    if last:
        np.save(directory / "hashes.npy", np.frombuffer(b"".join(hashes), "<u8").reshape(-1, 2))
        np.save(directory / "sizes.npy", np.array(sizes, np.int64))
    else:
        assert own and own.last
        np.save(directory / "signatures.npy", np.concatenate(signatures or [own.last[1].signature([])]))
