"""The first pass over the text: unique documents, which split each belongs to, and a sample to train a tokenizer on.

A split is a property of the document's text alone, so it is the same whatever else is in the corpus. The sample is the
training documents with the smallest hashes: a fair draw that depends on no order and no number of threads.
"""

from __future__ import annotations

import hashlib
import heapq
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

from data.config import CorpusConfig, DataError
from data.document import Document
from data.sources import SourceFile, read_documents

Progress = Callable[[int, int, str], None]
"""Called as progress(done, total, note); done and total are bytes, of files or of text."""

SAMPLE_BYTES = 64 << 20
"""UTF-8 bytes of text that a tokenizer is trained on at most. More changes the merges of a small vocabulary little."""

_HASH_RANGE = 1 << 64


@dataclass(frozen=True)
class Survey:
    """What the first pass found.

    documents, bytes: unique documents and their UTF-8 bytes. threshold: documents whose `split_hash` is below it are
    held out. sample: texts of training documents, in order of hash. skipped: documents left out, by reason.
    """

    documents: int
    bytes: int
    threshold: int
    sample: list[str]
    skipped: dict[str, int]


def unique_documents(
    files: list[SourceFile], config: CorpusConfig, skipped: Counter[str], progress: Progress | None = None
) -> Iterator[tuple[Document, int]]:
    """Every document once, with its 64-bit split hash, in the order of the files; exact copies count in `skipped`."""
    seen: set[bytes] = set()
    total, done = sum(file.size for file in files), 0
    for file in files:
        for document in read_documents(file, config.text_field, skipped):
            for piece in _cut(document, config.max_document_bytes):
                digest = hashlib.blake2b(piece.text.encode(), digest_size=16).digest()
                if digest in seen:
                    skipped["duplicate"] += 1
                    continue
                seen.add(digest)
                yield piece, int.from_bytes(digest[:8], "little")
        done += file.size
        if progress:
            progress(done, total, "reading")


def survey(files: list[SourceFile], config: CorpusConfig, sample: bool, progress: Progress | None = None) -> Survey:
    """Reads everything once. DataError when there is too little for two splits."""
    skipped: Counter[str] = Counter()
    threshold = int(config.validation_fraction * _HASH_RANGE)
    documents, size, held_out, least = 0, 0, 0, _HASH_RANGE
    heap: list[tuple[int, str]] = []
    heap_bytes = 0
    for document, split_hash in unique_documents(files, config, skipped, progress):
        length = len(document.text.encode())
        documents, size, least = documents + 1, size + length, min(least, split_hash)
        if split_hash < threshold:
            held_out += 1
        elif sample:
            heapq.heappush(heap, (-split_hash, document.text))
            heap_bytes += length
            while heap_bytes > SAMPLE_BYTES and len(heap) > 2:
                heap_bytes -= len(heapq.heappop(heap)[1].encode())
    if documents - max(held_out, 1) < 1:
        raise DataError(_too_few(config, documents, skipped))
    if not held_out:
        threshold = least + 1  # a small corpus: the document nearest to the threshold is held out
    texts = [text for negative, text in sorted(heap, reverse=True) if -negative >= threshold]
    return Survey(documents, size, threshold, texts, dict(sorted(skipped.items())))


def _too_few(config: CorpusConfig, documents: int, skipped: Counter[str]) -> str:
    left_out = ", ".join(f"{count} {reason}" for reason, count in sorted(skipped.items()))
    found = f"{documents} usable document(s)" + (f" ({left_out} left out)" if left_out else "")
    return (
        f"corpus.sources = {list(config.sources)}: {found}, but a corpus needs at least one for training and one for "
        "validation; add text, or cut a large file into documents with corpus.max_document_bytes=16384"
    )


def _cut(document: Document, limit: int) -> Iterator[Document]:
    """The document, or its pieces of at most `limit` bytes, cut after the last line end or space that fits."""
    data = document.text.encode()
    if not limit or len(data) <= limit:
        yield document
        return
    start, row = 0, 0
    while start < len(data):
        end = min(start + limit, len(data))
        if end < len(data):
            end = _border(data, start, end)
        text = data[start:end].decode()
        if text.strip():
            yield replace(document, text=text, path=f"{document.path}#{row}")
        start, row = end, row + 1


def _border(data: bytes, start: int, end: int) -> int:
    """The best place at or before `end` to cut UTF-8: after a line end, else after a space, else between characters."""
    for mark in (b"\n", b" "):
        found = data.rfind(mark, start, end) + 1
        if found > start + (end - start) // 2:
            return found
    while data[end] & 0xC0 == 0x80:  # a continuation byte: the character began before
        end -= 1
    return end
