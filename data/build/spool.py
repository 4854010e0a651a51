"""Documents between the steps of a build: frames of about a megabyte of text, compressed, in a file of their own.

Temporary, read only by the same build on the same version of Python (it is part of the plan): marshal is the fastest
way to and from Python's own objects, and keeps floats and missing values exactly.
"""

from __future__ import annotations

import marshal
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import IO, Self

import numpy as np
import zstandard

from data.document import Document

FRAME_CHARACTERS = 1 << 20
_LEVEL = -3  # a quarter of the size is saved at 1 GB/s; slower levels would be felt beside encoding


class SpoolWriter:
    """Writes `documents.spool` and, beside it, where each frame begins and which document is its first."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._file: IO[bytes] = (directory / "documents.spool").open("wb")
        self._compress = zstandard.ZstdCompressor(_LEVEL).compress
        self._frames = [(0, 0)]

    def write(self, documents: Sequence[Document]) -> None:
        """A frame of some documents."""
        rows = [
            (document.text, document.source, document.path, document.row, document.columns) for document in documents
        ]
        data = self._compress(marshal.dumps(rows))
        self._file.write(data)
        place, count = self._frames[-1]
        self._frames.append((place + len(data), count + len(documents)))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()
        np.save(self._directory / "frames.npy", np.array(self._frames, np.int64))


class Spool:
    """Reads it back."""

    def __init__(self, directory: Path) -> None:
        self._path = directory / "documents.spool"
        self._frames = np.load(directory / "frames.npy")
        self.documents = int(self._frames[-1, 1])

    def frames(self) -> Iterator[tuple[int, list[Document]]]:
        """(number of the first document, documents) of each frame, in order."""
        yield from self._read(range(len(self._frames) - 1))

    def chosen(self, numbers: np.ndarray) -> Iterator[tuple[int, Document]]:
        """(number, document) of the given documents, sorted int64 [n], reading only frames that hold some."""
        wanted = np.unique(np.searchsorted(self._frames[:, 1], numbers, side="right") - 1)
        for first, documents in self._read(wanted.tolist()):
            low, high = np.searchsorted(numbers, [first, first + len(documents)])
            yield from ((number, documents[number - first]) for number in numbers[low:high].tolist())

    def _read(self, wanted: Iterable[int]) -> Iterator[tuple[int, list[Document]]]:
        decompress = zstandard.ZstdDecompressor().decompress
        with self._path.open("rb") as file:
            for frame in wanted:
                (start, first), (end, _) = self._frames[frame].tolist(), self._frames[frame + 1].tolist()
                file.seek(start)
                yield first, [Document(*row) for row in marshal.loads(decompress(file.read(end - start)))]


def batches(documents: Iterable[Document], characters: int = FRAME_CHARACTERS) -> Iterator[list[Document]]:
    """Lists of documents of about so many characters each, in order."""
    batch: list[Document] = []
    size = 0
    for document in documents:
        batch.append(document)
        size += len(document.text)
        if size >= characters:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch
