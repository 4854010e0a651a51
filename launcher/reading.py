"""What a run reads: the stream of its current phase, and how far earlier phases got in each source.

All of it that is saved: tokens of each source used before the phase, a fingerprint, and what was skipped. The place in
the phase is the run's counter of tokens.
"""

from __future__ import annotations

from typing import Any

from data.corpus import Corpus
from data.open import names_of, open_stream, ordered_stream
from data.plan import Progress
from data.stream import Skips, Stream, TokenStream, past_skips_one
from launcher.compose import phases_of
from launcher.config import Recipe, RecipeError
from launcher.slots import Slots, lengths_of


class Reading:
    """begin: tokens of each source (by fingerprint) that earlier phases used. stream: of the current phase."""

    def __init__(self) -> None:
        self.begin: dict[str, int] = {}
        self.stream: TokenStream
        self.names: list[str] = []

    def open(self, phase: Recipe, tokens: int, longest: int, saved: dict[str, Any], place: int) -> None:
        """Opens the phase's stream where a checkpoint's state says; `place` tokens of the phase are behind.

        RecipeError where the recipe would not go on in what the phase was reading.
        """
        self.begin = {name: int(used) for name, used in saved.get("begin", {}).items()}
        self.stream = phase_stream(phase, tokens, longest, self.begin)
        self.names = names_of(phase.data, self.stream)
        if not place:
            return
        if saved.get("stream") != self.stream.fingerprint:
            raise RecipeError(
                f"data.path={phase.data.home}: is not the text (or its order) that this phase was reading; build it again with "
                "the same options, set `data` back as it was, or give the run another run.name"
            )
        before = tuple((int(a), int(b)) for a, b in saved.get("skips", ()))
        seen = past_skips_one(place, before)
        if _behind(before, seen) != _behind(self.stream.skips, seen):
            raise RecipeError(
                f"data.skip={[list(pair) for pair in self.stream.skips]}: the run is at {seen} of the line and has skipped "
                f"{[list(pair) for pair in _behind(before, seen)]}; ranges before that place cannot change, ranges after it may"
            )

    def state(self) -> dict[str, Any]:
        """What a checkpoint within the phase keeps."""
        return {
            "begin": self.begin,
            "stream": self.stream.fingerprint,
            "skips": [list(pair) for pair in self.stream.skips],
        }

    def end_phase(self, place: int) -> None:
        """Adds what the phase used, `place` tokens of it, to what came before."""
        used = self.stream.consumed(place)
        found = {source.fingerprint: tokens for source, tokens in zip(self.stream.sources, used, strict=True)}
        self.begin = {**self.begin, **found}


def longest_sequence(recipe: Recipe) -> int:
    """Tokens of the longest sequence that any phase reads: the unit in which text is cut."""
    return max(lengths_of(phase)[-1] for phase in phases_of(recipe))


def epoch_tokens(stream: TokenStream) -> int:
    """Places that every source once takes: its tokens, and what fills rows up."""
    return sum(source.units * source.size for source in stream.sources)


def phase_stream(
    phase: Recipe, tokens: int, longest: int, begin: dict[str, int], progress: Progress | None = None
) -> TokenStream:
    """The training stream of a phase of so many tokens, in a run whose longest sequence is `longest`."""
    return open_stream(
        phase.data,
        phase.seed,
        length=lengths_of(phase)[-1],
        longest=longest,
        tokens=tokens,
        batch_tokens=Slots(phase.train).sizes[0],
        begin=begin,
        progress=progress,
    )


def validation_streams(phase: Recipe) -> dict[str, Stream]:
    """The validation split of every corpus that a phase reads, by name, the run's own first."""
    paths = list(dict.fromkeys([phase.data.home, *(part.path for part in phase.data.parts)]))
    named = {path: Corpus(path, "validation", phase.data.cache).manifest.name for path in paths}
    names = [name if list(named.values()).count(name) == 1 else path for path, name in named.items()]
    return {
        name: ordered_stream(path, "validation", phase.train.sequence_length, phase.data.cache)
        for path, name in zip(paths, names, strict=True)
    }


def _behind(skips: Skips, place: int) -> Skips:
    return tuple(pair for pair in skips if pair[0] < place)
