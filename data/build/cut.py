"""Long documents cut into several."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from data.document import Document


def cut(document: Document, limit: int) -> Iterator[Document]:
    """The document, or its pieces of at most `limit` bytes (0 = any), cut after the last line end or space that fits."""
    if not limit or len(document.text) * 4 <= limit or len(data := document.text.encode()) <= limit:
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
