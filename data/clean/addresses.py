"""Documents by where they came from: lists of domains and of beginnings of addresses, against a column of URLs."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar
from urllib.parse import urlsplit

from data.clean.base import Dropped, Outcome, Seams, Step
from data.config import DataError
from data.document import Document

MISSING = ("keep", "drop")


@dataclass(frozen=True)
class UrlsConfig:
    """Drops documents by their address. An entry is a domain (`example.com`, which covers www.example.com and not
    badexample.com) or a domain and the beginning of a path (`example.com/shop`); schemes and ports are not looked at."""

    name: ClassVar[str] = "urls"
    reads: ClassVar[tuple[str, ...]] = ()
    writes: ClassVar[tuple[str, ...]] = ()

    block: tuple[str, ...] = ()
    """Entries to drop."""

    block_files: tuple[str, ...] = ()
    """Files of entries to drop, one a line (such as the `domains` and `urls` files of UT1's blacklists); # begins a comment."""

    allow: tuple[str, ...] = ()
    """Where there are any, drop everything else. What is both allowed and blocked is dropped."""

    allow_files: tuple[str, ...] = ()
    """Files of entries to allow."""

    column: str = "url"
    """The column that holds the address."""

    missing: str = "keep"
    """`keep` or `drop` documents without an address."""

    def __post_init__(self) -> None:
        if not (self.block or self.block_files or self.allow or self.allow_files):
            raise DataError("block = []: no list is given, so the step has no effect; give one, or remove the step")
        if self.missing not in MISSING:
            raise DataError(f"missing = {self.missing!r}: it must be one of {', '.join(MISSING)}")

    @property
    def inputs(self) -> tuple[str, ...]:
        """Files whose contents decide the result."""
        return (*self.block_files, *self.allow_files)

    def make(self, seams: Seams) -> Step:
        return _Urls(self)


class _Urls:
    def __init__(self, config: UrlsConfig) -> None:
        self.config = config
        self.block = AddressList([*config.block, *read_entries(config.block_files, "step urls, block_files")])
        self.allow = AddressList([*config.allow, *read_entries(config.allow_files, "step urls, allow_files")])
        self.only_allowed = bool(config.allow or config.allow_files)

    def __call__(self, documents: Sequence[Document]) -> list[Outcome]:
        return [self._one(document) for document in documents]

    def _one(self, document: Document) -> Outcome:
        url = document.columns.get(self.config.column)
        if not isinstance(url, str) or not url:
            return document if self.config.missing == "keep" else Dropped(document, "no address")
        if entry := self.block.match(url):
            return Dropped(document, "blocked", entry)
        if self.only_allowed and not self.allow.match(url):
            return Dropped(document, "not allowed", host_and_path(url)[0])
        return document


class AddressList:
    """Entries found by suffixes of the host, in time that does not depend on their number."""

    def __init__(self, entries: Iterable[str]) -> None:
        self.domains: set[str] = set()
        self.paths: dict[str, list[str]] = {}
        for entry in entries:
            host, path = host_and_path(entry)
            if path.strip("/"):
                self.paths.setdefault(host, []).append(path)
            elif host:
                self.domains.add(host)

    def match(self, url: str) -> str:
        """The entry that covers the address, or nothing."""
        host, path = host_and_path(url)
        labels = host.split(".")
        for place in range(len(labels)):
            domain = ".".join(labels[place:])
            if domain in self.domains:
                return domain
            for begin in self.paths.get(domain, ()):
                if path.startswith(begin):
                    return domain + begin
        return ""


def host_and_path(url: str) -> tuple[str, str]:
    """Host in lower case without port, user and leading dots, and path with its query."""
    try:
        url = url.strip()
        parts = urlsplit(url if "://" in url or url.startswith("//") else "//" + url)
        host = parts.hostname or ""
    except ValueError:  # a broken IPv6 address
        return "", ""
    return host.strip("."), parts.path + (f"?{parts.query}" if parts.query else "")


def read_entries(files: Iterable[str], option: str) -> list[str]:
    """Entries of lists in files, one a line, without comments. option: what messages call the list."""
    found: list[str] = []
    for file in files:
        try:
            text = Path(file).expanduser().read_text("utf-8", "replace")
        except OSError as error:
            raise DataError(
                f"corpus.clean: {option} = {file!r}: cannot be read ({error.strerror}); correct the path"
            ) from None
        found += [entry for line in text.splitlines() if (entry := line.partition("#")[0].strip())]
    return found
