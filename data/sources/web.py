"""Archives of the web: WARC files (pages as they were fetched, turned to text here) and WET extracts (text)."""

from __future__ import annotations

import io
from collections.abc import Iterator
from typing import Any

from data.compression import open_bytes
from data.config import DataError
from data.document import Scalar
from data.sources.files import Piece
from data.sources.records import Fields, Problem, Record, columns_of, record_of_bytes

_HTML = ("text/html", "application/xhtml+xml")


def read_warc(piece: Piece, fields: Fields) -> Iterator[Record | Problem]:
    """A document a `conversion` record (WET) or fetched page of HTML or plain text (WARC); other records are passed over.

    Columns: `url`, `date` (ISO 8601), `content_type`, and `language` where the archive says it. HTML becomes text by
    resiliparse's main-content extraction (Bevendorff et al. 2018), which leaves out navigation and boilerplate.
    """
    try:
        from warcio.archiveiterator import ArchiveIterator
        from warcio.exceptions import ArchiveLoadFailed
    except ImportError as error:
        raise DataError(
            f"{piece.file.file}: reading it needs warcio and resiliparse; pip install triaxis[web]"
        ) from error
    with open_bytes(piece.file.file) as raw:
        try:
            for record in ArchiveIterator(_Short(raw)):
                found = _text_of(record)
                if found is not None:
                    yield _with_columns(found, record, fields)
        except ArchiveLoadFailed as error:
            raise OSError(" ".join(str(error).split())) from error


class _Short:
    """A stream whose reads may be shorter than asked for, so that nothing is lost that comes before damage."""

    def __init__(self, stream: io.BufferedReader) -> None:
        self.read = stream.read1


def _text_of(record: Any) -> Record | Problem | None:
    """The text of a record, None where it is not one that holds text."""
    kind = _type_of(record)
    if record.rec_type not in ("conversion", "response", "resource") or kind not in (*_HTML, "text/plain"):
        return None
    if record.http_headers is not None and record.http_headers.get_statuscode() != "200":
        return None
    data = record.content_stream().read()
    if record.raw_stream.limit > 0:
        raise EOFError(f"it ends within the record of {record.rec_headers.get_header('WARC-Target-URI')}")
    if record.rec_type == "conversion":
        return record_of_bytes(data)
    from resiliparse.extract.html2text import extract_plain_text
    from resiliparse.parse.encoding import bytes_to_str, detect_encoding

    declared = (record.http_headers and record.http_headers.get_header("Content-Type")) or ""
    charset = declared.partition("charset=")[2].split(";")[0].strip(" \"'") or detect_encoding(data) or "utf-8"
    text = bytes_to_str(data, charset)
    return Record(extract_plain_text(text, main_content=True) if kind in _HTML else text)


def _type_of(record: Any) -> str:
    """The media type of what a record holds: as the server said it, or as the archive does."""
    headers = record.http_headers if record.http_headers is not None else record.rec_headers
    return (headers.get_header("Content-Type") or "").split(";")[0].strip().lower()


def _with_columns(found: Record | Problem, record: Any, fields: Fields) -> Record | Problem:
    if isinstance(found, Problem):
        return found
    headers = record.rec_headers
    values: dict[str, Scalar] = {
        "url": headers.get_header("WARC-Target-URI"),
        "date": headers.get_header("WARC-Date"),
        "content_type": _type_of(record),
        "language": headers.get_header("WARC-Identified-Content-Language"),
    }
    return Record(found.text, columns_of(values, fields))
