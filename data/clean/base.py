"""The protocol of cleaning: small steps over documents, and a tally of what each of them did.

A step is a pure function of the documents it is given. Most decide on each document alone (`Step`), so any process may
run any part of a corpus. The few that must see all of it (`GlobalStep`: copies, quantiles) take a signature of every
document, in any process, and decide once over all signatures. Tallies of parts are added in any grouping.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, ClassVar, Protocol

import numpy as np

from data.document import Document, Scalar
from data.order import key

SAMPLES_PER_REASON = 4
"""Dropped documents (or lines) of each reason that a tally shows."""

SAMPLE_CHARACTERS = 400
"""Of a shown document's text, its beginning."""


@dataclass(frozen=True)
class Dropped:
    """A document that a step takes out. reason: one of a few fixed texts, counted; detail: what it was in this document."""

    document: Document
    reason: str
    detail: str = ""


@dataclass(frozen=True)
class Trimmed:
    """A document that stays with less text. lines: what was taken out of it, each with its reason."""

    document: Document
    lines: tuple[tuple[str, str], ...]


Outcome = Document | Dropped | Trimmed


class Step(Protocol):
    """A step that looks at one document at a time."""

    def __call__(self, documents: Sequence[Document]) -> list[Outcome]:
        """One outcome a document, in order; the same whatever other documents are in the list."""


@dataclass(frozen=True)
class Decision:
    """What a global step found over n documents. keep: bool [n]; columns: name -> [n], added to kept documents.

    note: what a reader of the step's tally should know, or nothing.
    """

    keep: np.ndarray
    columns: Mapping[str, np.ndarray] = field(default_factory=dict)
    note: str = ""

    def part(self, start: int, stop: int) -> Decision:
        """The decision on documents start … stop - 1."""
        columns = {name: values[start:stop] for name, values in self.columns.items()}
        return Decision(self.keep[start:stop], columns, self.note)


class Signatures:
    """Signatures of all documents, in parts that stay where they are: a decision takes up a column or some rows at a time.

    Parts may be memory-mapped (`numpy.load(…, mmap_mode="r")`).
    """

    def __init__(self, parts: Sequence[np.ndarray]) -> None:
        self.parts = [part for part in parts if len(part)] or list(parts[:1])
        self.begins = np.cumsum([0, *map(len, self.parts)])

    def __len__(self) -> int:
        return int(self.begins[-1])

    def column(self, start: int, stop: int | None = None) -> np.ndarray:
        """Column `start` of all documents [n], or columns start … stop - 1 [n, stop - start]."""
        place = start if stop is None else slice(start, stop)
        return np.concatenate([part[:, place] for part in self.parts])

    def rows(self, documents: np.ndarray) -> np.ndarray:
        """Whole signatures of some documents: int64 [m] -> [m, width]."""
        found = np.empty((len(documents), self.parts[0].shape[1]), dtype=self.parts[0].dtype)
        which = np.searchsorted(self.begins, documents, side="right") - 1
        for part in np.unique(which).tolist():
            own = which == part
            found[own] = self.parts[part][documents[own] - self.begins[part]]
        return found


class GlobalStep(Protocol):
    """A step that must see the whole corpus. reason: why it drops."""

    reason: str

    def signature(self, documents: Sequence[Document]) -> np.ndarray:
        """[documents, width] of one dtype, a row a function of its document alone; only `decide` knows its meaning."""

    def decide(self, signatures: Signatures) -> Decision:
        """All signatures in document order -> what stays; the same however they were cut into parts."""


@dataclass(frozen=True)
class Scores:
    """What a language model finds of n texts, of each as far as it reads: nats float64 [n], tokens int64 [n], bytes int64 [n].

    tokens counts what is predicted; bytes is the UTF-8 that these tokens stand for.
    """

    nats: np.ndarray
    tokens: np.ndarray
    bytes: np.ndarray


Scorer = Callable[[Sequence[str]], Scores]


@dataclass(frozen=True)
class Seams:
    """What steps need that lies outside `data`. scorer: (directory of a run, tokens read of a text at most) -> Scorer.

    Pickled with a pipeline, so a function at the top of a module.
    """

    scorer: Callable[[str, int], Scorer] | None = None


class StepConfig(Protocol):
    """A frozen dataclass of one step's options. `reads` and `writes` name columns."""

    name: ClassVar[str]
    reads: ClassVar[tuple[str, ...]]
    writes: ClassVar[tuple[str, ...]]

    def make(self, seams: Seams) -> Step | GlobalStep:
        """The step; DataError where something it needs is missing."""


@dataclass(frozen=True, order=True)
class Sample:
    """A dropped document or line. draw: the keyed hash by which it was chosen."""

    draw: int
    reason: str
    detail: str
    source: str
    path: str
    row: int
    text: str


@dataclass(frozen=True)
class Tally:
    """What one step did to some documents; `+` joins tallies of parts, in any grouping and order.

    changed: documents kept with other text. reasons: documents dropped, by reason; lines: lines dropped out of kept
    documents, by reason. samples: for each reason the few with the smallest keyed hashes of (step, place, text): a fair
    draw that does not depend on how the corpus was cut into parts.
    """

    step: str
    before: int = 0
    after: int = 0
    characters_before: int = 0
    characters_after: int = 0
    changed: int = 0
    reasons: dict[str, int] = field(default_factory=dict)
    lines: dict[str, int] = field(default_factory=dict)
    samples: tuple[Sample, ...] = ()
    note: str = ""

    def __add__(self, other: Tally) -> Tally:
        assert self.step == other.step
        return Tally(
            self.step,
            self.before + other.before,
            self.after + other.after,
            self.characters_before + other.characters_before,
            self.characters_after + other.characters_after,
            self.changed + other.changed,
            _add(self.reasons, other.reasons),
            _add(self.lines, other.lines),
            _fewest({*self.samples, *other.samples}),
            self.note or other.note,
        )

    def plain(self) -> dict[str, Any]:
        """As JSON data, for a manifest."""
        return asdict(self)

    @classmethod
    def of_plain(cls, data: Mapping[str, Any]) -> Tally:
        """The inverse of `plain`."""
        return cls(**{**data, "samples": tuple(Sample(**sample) for sample in data["samples"])})


def tally(step: str, documents: Sequence[Document], outcomes: Sequence[Outcome]) -> Tally:
    """What a step that gave `outcomes` for `documents` did."""
    reasons: dict[str, int] = {}
    lines: dict[str, int] = {}
    samples: list[Sample] = []
    after = characters = changed = 0
    for document, outcome in zip(documents, outcomes, strict=True):
        if isinstance(outcome, Dropped):
            reasons[outcome.reason] = reasons.get(outcome.reason, 0) + 1
            samples.append(_sample(step, document, outcome.reason, outcome.detail, document.text))
            continue
        if isinstance(outcome, Trimmed):
            for reason, line in outcome.lines:
                lines[reason] = lines.get(reason, 0) + 1
                samples.append(_sample(step, document, reason, "line", line))
        text = kept(outcome).text
        after, characters, changed = after + 1, characters + len(text), changed + (text != document.text)
    size = sum(len(document.text) for document in documents)
    reasons, lines = _add(reasons, {}), _add(lines, {})
    return Tally(step, len(documents), after, size, characters, changed, reasons, lines, _fewest(samples))


def kept(outcome: Document | Trimmed) -> Document:
    """The document of an outcome that is not dropped."""
    return outcome.document if isinstance(outcome, Trimmed) else outcome


def with_columns(document: Document, columns: Mapping[str, Scalar]) -> Document:
    """The document with more columns (`dataclasses.replace` takes three times as long)."""
    return Document(document.text, document.source, document.path, document.row, {**document.columns, **columns})


def _add(one: dict[str, int], other: dict[str, int]) -> dict[str, int]:
    return {reason: one.get(reason, 0) + other.get(reason, 0) for reason in sorted({*one, *other})}


def _sample(step: str, document: Document, reason: str, detail: str, text: str) -> Sample:
    text = text[:SAMPLE_CHARACTERS]
    draw = key("clean sample", step, document.source, document.path, document.row, text)
    return Sample(draw, reason, detail, document.source, document.path, document.row, text)


def _fewest(samples: Iterable[Sample]) -> tuple[Sample, ...]:
    """The samples with the smallest hashes of each reason, in order of reason and hash."""
    found: dict[str, list[Sample]] = {}
    for sample in sorted(set(samples)):
        of_reason = found.setdefault(sample.reason, [])
        if len(of_reason) < SAMPLES_PER_REASON:
            of_reason.append(sample)
    return tuple(sample for reason in sorted(found) for sample in found[reason])
