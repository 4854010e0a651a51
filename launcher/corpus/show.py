"""`triaxis data show`: the samples of a recipe's stream as they are trained on, as a page to read."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from rich.console import Console

from data.config import DataError
from data.corpus import Corpus
from data.manifest import MANIFEST
from data.open import names_of, open_stream
from data.source import Piece
from data.spelling import bytes_of
from data.stream import TokenStream
from data.tokenizers import Tokenizer, load_corpus_tokenizer
from launcher.callbacks.units import count
from launcher.compose import build_recipe, compose_tree, phase_recipe
from launcher.config import Recipe, RecipeError
from launcher.corpus.page import Origin, Shown, Words, render
from launcher.corpus.stats import write_files
from launcher.options import kinds_of, options_help, parse

USAGE = "triaxis data show [CORPUS] [group=recipe …] [option=value …] [--samples 0:4] [--out page.html]"
MOST_TOKENS = 1 << 16  # of a page: about 10 MB


@dataclass(frozen=True)
class ShowConfig:
    """What to show of a stream."""

    samples: str = "0:4"
    """Samples from the first to before the last, as `a:b`; counted as the stream gives them, from 0."""

    phase: int = 0
    """Of a recipe with phases, which one, from 0; its stream begins where it would without the phases before it."""

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
    recipe = _recipe(overrides, config)
    length = recipe.train.sequence_length
    if (last - first) * length > MOST_TOKENS:
        raise RecipeError(
            f"--samples={config.samples}: {last - first:,} samples of {length:,} tokens are too much for a page; show at most "
            f"{max(1, MOST_TOKENS // length):,}"
        )
    page = _page(recipe, first, last)
    path = Path(config.out)
    written = write_files(path.parent, {path.name: page.encode()})
    console.print(str(written[0]), markup=False)
    return 0


def _range(text: str) -> tuple[int, int]:
    first, _, last = text.partition(":")
    if not (first.isdigit() and last.isdigit() and int(first) < int(last)):
        raise RecipeError(f"--samples={text}: must be a:b with a below b, such as 0:4")
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
    return phase_recipe(recipe, config.phase) if recipe.phases else recipe


def _page(recipe: Recipe, first: int, last: int) -> str:
    train = recipe.train
    stream = open_stream(
        recipe.data,
        recipe.seed,
        length=train.sequence_length,
        tokens=max(train.tokens, last * train.sequence_length),
        batch_tokens=train.batch_tokens,
    )
    tokenizer = load_corpus_tokenizer(recipe.data.home)
    rows = shown(recipe, stream, tokenizer, first, last)
    held = np.concatenate([~row.padding for row in rows])
    weights = np.concatenate([row.weights for row in rows])
    facts = [
        ("corpus", ", ".join(names_of(recipe.data, stream))),
        ("packing", recipe.data.packing),
        ("objective", recipe.objective.name),
        ("tokens a sample", f"{train.sequence_length:,}"),
        ("samples", f"{first:,} to {last - 1:,}"),
        ("documents a sample", f"{np.mean([len(np.unique(row.documents[~row.padding])) for row in rows]):.1f}"),
        ("padding", f"{100 * (1 - held.mean()):.1f} %"),
        ("tokens that count", f"{count(int((weights > 0).sum()))}, {100 * (weights > 0).mean():.1f} %"),
    ]
    return render(f"{recipe.run.name or 'samples'}: as trained on", facts, rows, words_of(tokenizer))


def words_of(tokenizer: Tokenizer) -> Words:
    """How a tokenizer's ids are written."""
    return Words(bytes_of(tokenizer), {tokenizer.eod: tokenizer.eod_text})


def shown(recipe: Recipe, stream: TokenStream, tokenizer: Tokenizer, first: int, last: int) -> list[Shown]:
    """Samples [first, last) of a stream as the recipe's objective makes them."""
    length = recipe.train.sequence_length
    places = np.arange(first, last) * length
    packed = stream.rows(places, length)
    inputs, targets, weights, documents, prefix = _example(recipe, packed.tokens, packed.weights)
    names = names_of(recipe.data, stream)
    from_ = [_Places(source.corpus, name) for source, name in zip(stream.sources, names, strict=True)]
    found = []
    for row, place in enumerate(places.tolist()):
        source, pieces = stream.pieces(place, length)
        moved = not np.array_equal(inputs[row], packed.tokens[row, :-1])
        # the last target that counts is the last input that is read, though nothing is predicted from it
        held = [*(1 + np.flatnonzero((packed.weights[row] > 0) | (weights[row] > 0)))[-1:], 0]
        held += [*np.flatnonzero(inputs[row] != tokenizer.eod)[-1:]]
        padding = np.arange(length) > max(held)
        found.append(
            Shown(
                index=first + row,
                inputs=inputs[row],
                targets=targets[row],
                weights=weights[row],
                documents=_numbers(inputs[row], tokenizer.eod) if documents is None else documents[row],
                prefix=np.zeros(length, bool) if prefix is None else prefix[row],
                padding=padding,
                origins=() if moved else from_[source].origins(pieces),
                about=names[source] if len(names) > 1 else "",
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
        found: list[Origin] = []
        for piece in pieces:
            at = 0
            while at < piece.size:
                document, offset = self._corpus.document_at(piece.start + at)
                start, tokens = self._corpus.place(document)
                size = min(piece.size - at, start + tokens - piece.start - at)
                found.append(Origin(piece.place + at + 1, size, document, offset, self._name, self._path(document)))
                at += size
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


def _example(
    recipe: Recipe, tokens: np.ndarray, weights: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray | None, np.ndarray | None]:
    """(inputs, targets, weights, documents, prefix) of packed rows."""
    import torch

    from models.objectives import OBJECTIVES

    inputs, targets, counts = OBJECTIVES[recipe.objective.name](torch.from_numpy(tokens))
    return inputs.numpy(), targets.numpy(), counts.numpy() * weights, None, None
