"""Steps in a row. A stage is a run of steps that look at single documents, closed by one that must see all of them."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from data.clean.base import (
    Decision,
    Dropped,
    GlobalStep,
    Outcome,
    Seams,
    Signatures,
    Step,
    StepConfig,
    Tally,
    kept,
    tally,
    with_columns,
)
from data.clean.steps import parse
from data.config import DataError
from data.document import Document, Scalar

_BATCH_CHARACTERS = 1 << 17  # steps work on arrays over the characters of a batch: larger ones leave the caches


@dataclass(frozen=True)
class Ran:
    """Documents that a stage's own steps let through, their signatures if a global step follows, a tally a step."""

    documents: list[Document]
    signatures: np.ndarray | None
    tallies: list[Tally]


class Stage:
    """Some steps, and the global one that ends them (None in the last stage)."""

    def __init__(self, steps: Sequence[tuple[str, Step]], last: tuple[str, GlobalStep] | None) -> None:
        self.steps, self.last = steps, last

    def run(self, documents: Sequence[Document]) -> Ran:
        """Any part of a corpus, in any process."""
        tallies = [Tally(name) for name, _ in self.steps]
        through: list[Document] = []
        signatures: list[np.ndarray] = []
        for batch in _batches(documents):
            for place, (name, step) in enumerate(self.steps):
                outcomes = step(batch)
                tallies[place] += tally(name, batch, outcomes)
                batch = [kept(outcome) for outcome in outcomes if not isinstance(outcome, Dropped)]
            through.extend(batch)
            if self.last and batch:
                signatures.append(self.last[1].signature(batch))
        if not self.last:
            return Ran(through, None, tallies)
        return Ran(through, np.concatenate(signatures) if signatures else self.last[1].signature([]), tallies)

    def decide(self, signatures: Sequence[np.ndarray]) -> Decision:
        """Signatures of all parts, one at least, in the order of the parts."""
        assert self.last
        return self.last[1].decide(Signatures(signatures))

    def apply(self, documents: Sequence[Document], decision: Decision) -> tuple[list[Document], Tally]:
        """The part of a decision that is about these documents (see `Decision.part`), carried out."""
        assert self.last and len(documents) == len(decision.keep)
        columns = {name: values.tolist() for name, values in decision.columns.items()}
        outcomes: list[Outcome] = []
        for place, (document, keep) in enumerate(zip(documents, decision.keep.tolist(), strict=True)):
            found: dict[str, Scalar] = {name: values[place] for name, values in columns.items()}
            outcomes.append(with_columns(document, found) if keep else Dropped(document, self.last[1].reason))
        through = [kept(outcome) for outcome in outcomes if not isinstance(outcome, Dropped)]
        return through, replace(tally(self.last[0], documents, outcomes), note=decision.note)


class Pipeline:
    """The steps of `corpus.clean`. Pickles as its options: each process makes the steps anew, when it first needs them."""

    def __init__(self, options: Sequence[Mapping[str, Any]], seams: Seams | None = None) -> None:
        self.options, self.seams = [dict(option) for option in options], seams or Seams()
        self.configs: tuple[StepConfig, ...] = tuple(
            parse(option, f"corpus.clean[{place}]") for place, option in enumerate(self.options)
        )
        self._check()

    def __reduce__(self) -> tuple[Any, ...]:
        return Pipeline, (self.options, self.seams)

    @property
    def columns(self) -> tuple[str, ...]:
        """Names of the columns that the steps write, in order."""
        return tuple(dict.fromkeys(name for config in self.configs for name in config.writes))

    def spec(self) -> list[dict[str, Any]]:
        """Every step with every option, defaults too, as JSON data."""
        return [
            {"step": config.name, **{item.name: _plain(getattr(config, item.name)) for item in fields(config)}}  # type: ignore[arg-type]
            for config in self.configs
        ]

    def contents(self) -> dict[str, str]:
        """Hashes of the files that steps read (lists, test sets), by path: they decide the result as options do."""
        return {path: _hash(path) for config in self.configs for path in getattr(config, "inputs", ())}

    @cached_property
    def stages(self) -> list[Stage]:
        """At least one; a global step is the last of its stage."""
        found: list[Stage] = []
        steps: list[tuple[str, Step]] = []
        for config in self.configs:
            made = config.make(self.seams)
            if hasattr(made, "decide"):
                found.append(Stage(steps, (config.name, made)))  # type: ignore[arg-type]
                steps = []
            else:
                steps.append((config.name, made))  # type: ignore[arg-type]
        return [*found, Stage(steps, None)]

    def clean(self, documents: Sequence[Document]) -> tuple[list[Document], list[Tally]]:
        """All documents in one go, in memory: what stays, and a tally a step in the order of the steps."""
        through, tallies = list(documents), []
        for stage in self.stages:
            ran = stage.run(through)
            through = ran.documents
            tallies += ran.tallies
            if ran.signatures is not None:
                through, of_last = stage.apply(through, stage.decide([ran.signatures]))
                tallies.append(of_last)
        return through, tallies

    def _check(self) -> None:
        """A step that reads what only another step writes comes after it."""
        written: set[str] = set()
        for place, config in enumerate(self.configs):
            if missing := [name for name in config.reads if name not in written]:
                raise DataError(
                    f"corpus.clean[{place}].step = {config.name!r}: it reads column {missing[0]!r}, which no step before "
                    "it writes; put {step: signals} before it"
                )
            written.update(config.writes)


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def _hash(path: str) -> str:
    try:
        with Path(path).expanduser().open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise DataError(f"corpus.clean: {path!r} cannot be read ({error.strerror}); correct the path") from None


def _batches(documents: Sequence[Document]) -> list[list[Document]]:
    """Lists of documents of about _BATCH_CHARACTERS each, in order."""
    found: list[list[Document]] = []
    size = _BATCH_CHARACTERS
    for document in documents:
        if size >= _BATCH_CHARACTERS:
            found.append([])
            size = 0
        found[-1].append(document)
        size += len(document.text)
    return found
