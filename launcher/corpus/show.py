"""`triaxis data show`: the samples of a recipe's stream as they are trained on, as a page to read."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path

import numpy as np

from data.columns import stretches
from data.corpus import Corpus
from data.manifest import Manifest
from data.remote import home_of
from data.source import Piece
from data.spelling import bytes_of, special_names
from data.stream import TokenStream
from data.tokenizers import Tokenizer, load_corpus_tokenizer
from data.urls import scheme
from launcher.batches import Sampler
from launcher.budget import Budget
from launcher.callbacks.units import count
from launcher.check import with_budget
from launcher.compose import build_recipe, compose_tree
from launcher.config import Recipe, RecipeError
from launcher.corpus.page import Origin, Shown, Words, render
from launcher.corpus.stats import write_files
from launcher.options import kinds_of, options_help, parse
from launcher.reading import Reading, longest_sequence
from launcher.slots import Slot, Slots
from launcher.terminal import open_console
from models.objectives.base import document_numbers

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
    console = open_console(soft_wrap=True)
    if "--help" in arguments:
        console.print(f"{USAGE}\n\n{options_help(ShowConfig)}")
        return 0
    overrides, values = parse(arguments, kinds_of(ShowConfig), USAGE)
    config = ShowConfig(**values)
    first, last = _range(config.samples)
    page = _page(_recipe(overrides, config), config, first, last)
    path = Path(config.out)
    written = write_files(path.parent, {path.name: page.encode()})
    console.print(str(written[0]))
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
    if overrides and ("=" not in overrides[0] or scheme(overrides[0])):
        Manifest.load(home_of(overrides[0]))  # says that there is none
        overrides = [f"data.path='{overrides[0]}'", *overrides[1:]]
    recipe = build_recipe(compose_tree(overrides, config.config_dir or None))
    if config.phase >= max(1, len(recipe.phases)):
        raise RecipeError(f"--phase={config.phase}: the recipe has {len(recipe.phases)} phases, counted from 0")
    return recipe


def _page(recipe: Recipe, config: ShowConfig, first: int, last: int) -> str:
    now = opened(recipe, config.phase)
    phase, reading = now.phase, now.reading
    tokenizer = load_corpus_tokenizer(phase.data.home, phase.data.cache)
    rows = shown(now, tokenizer.eod, first, last)
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
        ("attention", "within documents" if phase.model.document_mask else "across documents"),
        ("tokens a sample", " to ".join(f"{size:,}" for size in sorted({len(row.inputs) for row in rows}))),
        ("documents a sample", f"{np.mean([len(np.unique(row.documents[~row.padding])) for row in rows]):.1f}"),
        ("padding", f"{100 * (1 - held.mean()):.1f} %"),
        ("tokens that count", f"{count(int((weights > 0).sum()))}, {100 * (weights > 0).mean():.1f} %"),
    ]
    named = f", phase {Budget(recipe).name_of(config.phase)}" if recipe.phases else ""
    title = f"{recipe.run.name or 'samples'}{named}: samples {first:,} to {last - 1:,}"
    return render(title, facts, rows, words_of(tokenizer))


@dataclass(frozen=True)
class Opened:
    """A phase of a run, open where the phases before it end. samples, tokens: what those took."""

    phase: Recipe
    reading: Reading
    samples: int
    tokens: int


def opened(recipe: Recipe, index: int) -> Opened:
    """A phase of a recipe, by its number."""
    recipe = with_budget(recipe)
    budget, longest, reading, samples, tokens = Budget(recipe), longest_sequence(recipe), Reading(), 0, 0
    for number, phase in enumerate(budget.phases[:index]):
        reading.open(phase, budget.of_phase(number), longest, {"begin": reading.begin}, 0)
        steps = budget.steps_of(number)
        place = Slots(phase.train).place_after(0, steps)
        samples += sum(slot.rows for slot, _ in islice(batches(phase, reading.stream), steps))
        tokens += place
        reading.end_phase(place)
    phase = budget.phases[index]
    reading.open(phase, budget.of_phase(index), longest, {"begin": reading.begin}, 0)
    return Opened(phase, reading, samples, tokens)


def batches(phase: Recipe, stream: TokenStream) -> Iterator[tuple[Slot, int]]:
    """(each batch of a phase, samples of the phase before it), as training takes them."""
    slots, place, sample = Slots(phase.train), 0, 0
    while True:
        length = stream.length_at(place, phase.train.sequence_length)
        slot = slots.slot(place, length)
        yield slot, sample
        place, sample = place + slot.tokens, sample + slot.rows


def words_of(tokenizer: Tokenizer) -> Words:
    """How a tokenizer's ids are written."""
    return Words(bytes_of(tokenizer), special_names(tokenizer))


def shown(now: Opened, eod: int, first: int, last: int) -> list[Shown]:
    """Samples [first, last) of a phase as its objective makes them; eod: what ends documents."""
    stream, names = now.reading.stream, now.reading.names
    sampler = Sampler(now.phase, stream, now.tokens)
    origins = [_Places(source.corpus, name) for source, name in zip(stream.sources, names, strict=True)]
    found: list[Shown] = []
    for slot, sample in batches(now.phase, stream):
        if sample >= last:
            return found
        rows = np.arange(max(0, first - sample), min(slot.rows, last - sample))
        if len(rows):
            found += _batch(now, sampler, origins, eod, slot, rows, sample)
    raise AssertionError("batches never end")


def _batch(
    now: Opened, sampler: Sampler, origins: list[_Places], eod: int, slot: Slot, rows: np.ndarray, sample: int
) -> list[Shown]:
    """Some rows of a batch, the first of which is sample number `sample` of the phase."""
    stream, names = now.reading.stream, now.reading.names
    places = slot.place + rows * slot.length
    packed = stream.rows(places, slot.length)
    example = sampler(packed, places, now.samples + sample + int(rows[0]))
    documents = document_numbers(example.inputs, eod) if example.documents is None else example.documents
    found = []
    for row, place in enumerate(places.tolist()):
        source, pieces = stream.pieces(place, slot.length)
        inputs, weights = example.inputs[row], example.weights[row]
        found.append(
            Shown(
                index=int(sample + rows[row]),
                inputs=inputs,
                targets=example.targets[row],
                weights=weights,
                documents=documents[row],
                prefix=np.zeros(len(inputs), bool) if example.prefix is None else example.prefix[row],
                padding=_padding(inputs, np.maximum(packed.weights[row], weights), eod),
                origins=origins[source].origins(pieces),
                moved=not np.array_equal(inputs, packed.tokens[row, :-1]),
                about=names[source] if len(names) > 1 else "",
            )
        )
    return found


def _padding(inputs: np.ndarray, weights: np.ndarray, eod: int) -> np.ndarray:
    """bool [S]: what fills the row up. The last target that counts is the last input that is read, though nothing that
    counts is predicted from it."""
    held = np.flatnonzero(inputs != eod)[-1:].tolist() + (1 + np.flatnonzero(weights > 0))[-1:].tolist()
    return np.arange(len(inputs)) > max(held, default=0)


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
        shard, within = self._corpus.shard_of(document)
        if shard not in self._tables:
            self._tables[shard] = self._corpus.columns(shard, ["path", "row"])
        path, row = (self._tables[shard][name][within] for name in ("path", "row"))
        return f"{path}" + (f", row {row}" if row else "")
