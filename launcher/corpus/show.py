"""`triaxis data show`: the samples of a recipe's stream as they are trained on, as a page to read."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path

import numpy as np
from rich.console import Console

from data.columns import stretches
from data.config import DataError
from data.corpus import Corpus
from data.manifest import MANIFEST
from data.source import Piece
from data.spelling import bytes_of
from data.stream import TokenStream
from data.tokenizers import Tokenizer, load_corpus_tokenizer
from launcher.batches import Sampler
from launcher.budget import Budget
from launcher.callbacks.units import count
from launcher.check import with_epochs
from launcher.compose import build_recipe, compose_tree
from launcher.config import Recipe, RecipeError
from launcher.corpus.page import Origin, Shown, Words, render
from launcher.corpus.stats import write_files
from launcher.options import kinds_of, options_help, parse
from launcher.reading import Reading, longest_sequence
from launcher.slots import Slot, Slots

USAGE = "triaxis data show [CORPUS] [group=recipe …] [option=value …] [--samples 0:4] [--out page.html]"
MOST_TOKENS = 1 << 16  # of a page: about 10 MB
MOST_SAMPLES = 1 << 12


@dataclass(frozen=True)
class ShowConfig:
    """What to show of a stream."""

    samples: str = "0:4"
    """Samples from the first to before the last, as `a:b`; counted from 0 from the beginning of the phase."""

    phase: int = 0
    """Of a recipe with phases, which one, from 0; it reads on where those before it end."""

    out: str = "samples.html"
    """The page."""

    config_dir: str = ""
    """Recipes of your own, found before Triaxis's."""


def show_command(arguments: list[str]) -> int:
    """Compose, read, write."""
    console = Console(highlight=False, soft_wrap=True)
    if "--help" in arguments:
        console.print(f"{USAGE}\n\n{options_help(ShowConfig)}", markup=False)
        return 0
    overrides, values = parse(arguments, kinds_of(ShowConfig), USAGE)
    config = ShowConfig(**values)
    first, last = _range(config.samples)
    page = _page(_recipe(overrides, config), config, first, last)
    path = Path(config.out)
    written = write_files(path.parent, {path.name: page.encode()})
    console.print(str(written[0]), markup=False)
    return 0


def _range(text: str) -> tuple[int, int]:
    first, _, last = text.partition(":")
    if not (first.isdigit() and last.isdigit() and int(first) < int(last)):
        raise RecipeError(f"--samples={text}: must be a:b with a below b, such as 0:4")
    if int(last) - int(first) > MOST_SAMPLES:
        raise RecipeError(f"--samples={text}: at most {MOST_SAMPLES:,} samples fit a page; show fewer")
    return int(first), int(last)


def _recipe(overrides: list[str], config: ShowConfig) -> Recipe:
    """The recipe of the overrides, for a corpus where the first of them is one."""
    if overrides and "=" not in overrides[0]:
        corpus = Path(overrides[0])
        if not (corpus / MANIFEST).exists():
            raise DataError(f"{corpus}: no corpus there ({MANIFEST} is missing); `triaxis data build` makes one")
        overrides = [f"data.path={corpus}", *overrides[1:]]
    recipe = build_recipe(compose_tree(overrides, config.config_dir or None))
    if config.phase >= max(1, len(recipe.phases)):
        raise RecipeError(f"--phase={config.phase}: the recipe has {len(recipe.phases)} phases, counted from 0")
    return recipe


def _page(recipe: Recipe, config: ShowConfig, first: int, last: int) -> str:
    phase, reading, before = opened(recipe, config.phase)
    tokenizer = load_corpus_tokenizer(phase.data.home)
    rows = shown(phase, reading, tokenizer, first, last, before)
    tokens = sum(len(row.inputs) for row in rows)
    if tokens > MOST_TOKENS:
        raise RecipeError(
            f"--samples={config.samples}: {tokens:,} tokens are too much for a page, which holds {MOST_TOKENS:,}; show fewer"
        )
    held = np.concatenate([~row.padding for row in rows])
    weights = np.concatenate([row.weights for row in rows])
    facts = [
        ("corpus", ", ".join(reading.names)),
        ("packing", "buckets" if phase.data.buckets.lengths else phase.data.packing),
        ("objective", phase.objective.name),
        ("tokens a sample", " to ".join(f"{size:,}" for size in sorted({len(row.inputs) for row in rows}))),
        ("documents a sample", f"{np.mean([len(np.unique(row.documents[~row.padding])) for row in rows]):.1f}"),
        ("padding", f"{100 * (1 - held.mean()):.1f} %"),
        ("tokens that count", f"{count(int((weights > 0).sum()))}, {100 * (weights > 0).mean():.1f} %"),
    ]
    named = f", phase {Budget(recipe).name_of(config.phase)}" if recipe.phases else ""
    title = f"{recipe.run.name or 'samples'}{named}: samples {first:,} to {last - 1:,}"
    return render(title, facts, rows, words_of(tokenizer))


def opened(recipe: Recipe, index: int) -> tuple[Recipe, Reading, int]:
    """(a phase, what it reads after the phases before it, how many samples they took)."""
    recipe = with_epochs(recipe)
    budget, longest, reading, before = Budget(recipe), longest_sequence(recipe), Reading(), 0
    for number, phase in enumerate(budget.phases[: index + 1]):
        reading.open(phase, budget.of_phase(number), longest, {"begin": reading.begin}, 0)
        if number == index:
            return phase, reading, before
        steps = budget.steps_of(number)
        before += sum(slot.rows for slot, _ in islice(batches(phase, reading.stream), steps))
        reading.end_phase(Slots(phase.train).place_after(0, steps))
    raise AssertionError("phases are counted before")


def batches(phase: Recipe, stream: TokenStream) -> Iterator[tuple[Slot, int]]:
    """(each batch of a phase, samples of the phase before it), as training takes them."""
    slots, place, sample = Slots(phase.train), 0, 0
    while True:
        length = stream.length_at(place, phase.train.sequence_length)
        slot = Slot(place, slots.tokens_at(place) // length, length)
        yield slot, sample
        place, sample = place + slot.tokens, sample + slot.rows


def words_of(tokenizer: Tokenizer) -> Words:
    """How a tokenizer's ids are written."""
    special: dict[str, int] = dict(getattr(tokenizer, "special_tokens", {}))
    names = {id_: name for name, id_ in special.items()} | {tokenizer.eod: tokenizer.eod_text}
    return Words(bytes_of(tokenizer), names)


def shown(phase: Recipe, reading: Reading, tokenizer: Tokenizer, first: int, last: int, before: int) -> list[Shown]:
    """Samples [first, last) of a phase as its objective makes them; `before`: of the run's earlier phases."""
    stream = reading.stream
    origins = [_Places(source.corpus, name) for source, name in zip(stream.sources, reading.names, strict=True)]
    found: list[Shown] = []
    for slot, sample in batches(phase, stream):
        if sample >= last:
            return found
        rows = np.arange(max(0, first - sample), min(slot.rows, last - sample))
        if len(rows):
            found += _batch(phase, reading, tokenizer, origins, slot, rows, sample, before)
    raise AssertionError("batches never end")


def _batch(
    phase: Recipe,
    reading: Reading,
    tokenizer: Tokenizer,
    origins: list[_Places],
    slot: Slot,
    rows: np.ndarray,
    sample: int,
    before: int,
) -> list[Shown]:
    """Some rows of a batch, the first of which is sample number `sample` of the phase."""
    stream, places = reading.stream, slot.place + rows * slot.length
    packed = stream.rows(places, slot.length)
    example = Sampler(phase, stream)(packed, places, before + sample + int(rows[0]))
    inputs, targets, weights, documents, prefix = (
        getattr(example, part) for part in ("inputs", "targets", "weights", "documents", "prefix")
    )
    found = []
    for row, place in enumerate(places.tolist()):
        source, pieces = stream.pieces(place, slot.length)
        moved = not np.array_equal(inputs[row], packed.tokens[row, :-1])
        # the last target that counts is the last input that is read, though nothing is predicted from it
        held = [*(1 + np.flatnonzero((packed.weights[row] > 0) | (weights[row] > 0)))[-1:], 0]
        held += [*np.flatnonzero(inputs[row] != tokenizer.eod)[-1:]]
        found.append(
            Shown(
                index=int(sample + rows[row]),
                inputs=inputs[row],
                targets=targets[row],
                weights=weights[row],
                documents=_numbers(inputs[row], tokenizer.eod) if documents is None else documents[row],
                prefix=np.zeros(inputs.shape[1], bool) if prefix is None else prefix[row],
                padding=np.arange(inputs.shape[1]) > max(held),
                origins=() if moved else origins[source].origins(pieces),
                about=reading.names[source] if len(reading.names) > 1 else "",
            )
        )
    return found


def _numbers(tokens: np.ndarray, eod: int) -> np.ndarray:
    """Documents of a row by what stands between ends, int64 [S]; an end belongs to what it ends."""
    ends = tokens == eod
    return np.cumsum(ends) - ends


class _Places:
    """Where tokens of a corpus are from: document, offset in it, and its path."""

    def __init__(self, corpus: Corpus, name: str) -> None:
        self._corpus, self._name = corpus, name
        self._tables: dict[int, dict[str, np.ndarray]] = {}

    def origins(self, pieces: list[Piece]) -> tuple[Origin, ...]:
        """What the inputs of a row are from: target j of a piece is input j + 1."""
        found = [
            Origin(part.place + 1, part.size, part.document, part.offset, self._name, self._path(part.document))
            for part in stretches(self._corpus, pieces)
        ]
        if found and found[0].offset:  # the token before the first target
            one = found[0]
            found[0] = replace(one, first=one.first - 1, size=one.size + 1, offset=one.offset - 1)
        return tuple(found)

    def _path(self, document: int) -> str:
        shard = int(np.searchsorted(self._corpus.document_starts, document, side="right")) - 1
        if shard not in self._tables:
            self._tables[shard] = self._corpus.columns(shard, ["path", "row"])
        within = document - int(self._corpus.document_starts[shard])
        path, row = (self._tables[shard][name][within] for name in ("path", "row"))
        return f"{path}" + (f", row {row}" if row else "")
