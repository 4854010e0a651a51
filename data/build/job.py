"""What every process of a build knows, and how it reports."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from data.build.place import Place
from data.config import CorpusConfig

if TYPE_CHECKING:
    from data.clean.base import Seams
    from data.clean.pipeline import Pipeline

Progress = Callable[[int, int, str, int], None]
"""Called as progress(done, total, note, tokens): bytes of files or of text, what is being done, tokens made so far."""

Report = Callable[[int, int], None]
"""Called as report(bytes, tokens) for every bit of work that is done."""


@dataclass(frozen=True)
class Job:
    """One build: its options, where it is. seams: what cleaning needs from outside `data`."""

    corpus: CorpusConfig
    directory: str
    seams: Seams | None = None

    @property
    def place(self) -> Place:
        return Place(Path(self.directory))

    @cached_property
    def pipeline(self) -> Pipeline | None:
        """The cleaning steps; None where there are none."""
        if not self.corpus.clean:
            return None
        from data.clean.pipeline import Pipeline

        steps: Sequence[Mapping[str, Any]] = self.corpus.clean
        return Pipeline(steps, self.seams)

    @property
    def stages(self) -> int:
        """Passes over the text before it is encoded: one, and one more after each step that must see all of it."""
        return len(self.pipeline.stages) if self.pipeline else 1
