"""What a model that only counts would reach: unigram and bigram cross-entropy of the validation split, nats/token.

Both are estimated on the training split alone. The unigram adds one to every count. The bigram interpolates relative
frequencies with the unigram, p(b|a) = w·c(a,b)/c(a) + (1-w)·p(b), with one weight w for contexts of about the same
count; the weights maximise the likelihood of every tenth training document under counts of the others (deleted
interpolation, Jelinek and Mercer 1980), then all documents are counted. A document's first token is predicted from the
end-of-document token before it, as the model sees it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from data.manifest import Baselines
from data.shards import Blocks

TRAIN_TOKENS = 1 << 27
"""Training tokens counted at most (evenly spread blocks); beyond, the two numbers move in the third digit."""

_DENSE_PAIRS = 1 << 24
_CHUNK_TOKENS = 1 << 22
_HELD_OUT = 10
_ITERATIONS = 30

_Predicate = Callable[[np.ndarray], np.ndarray]


def compute(train: Blocks, validation: Blocks, vocab_size: int, eod: int) -> Baselines:
    """Baselines of a corpus. Takes about a second for 10M tokens at a vocabulary of 1024."""
    step = max(1, -(-int(train.tokens_per_block.sum()) // TRAIN_TOKENS))
    chosen = range(0, len(train), step)
    held_out = _count(train, chosen, vocab_size, eod, lambda number: number % _HELD_OUT == 0)
    others = _count(train, chosen, vocab_size, eod, lambda number: number % _HELD_OUT != 0)
    weights = _fit_weights(others, held_out)
    both = others.plus(held_out)
    wanted = _count(validation, range(len(validation)), vocab_size, eod, lambda number: number >= 0)
    bigram, unigram = _probabilities(both, wanted)
    mixed = weights[_bucket(both, wanted)] * bigram + (1 - weights[_bucket(both, wanted)]) * unigram
    total = int(wanted.counts.sum())
    used = int(_bucket(both, both).max(initial=0)) + 1
    return Baselines(
        unigram=round(float(-(wanted.counts * np.log(unigram)).sum() / total), 6),
        bigram=round(float(-(wanted.counts * np.log(mixed)).sum() / total), 6),
        train_tokens=int(both.counts.sum()),
        bigram_weights=tuple(round(float(weight), 6) for weight in weights[:used]),
    )


@dataclass(frozen=True)
class _Pairs:
    """How often each pair (a, b) occurs: sorted codes a·V + b and counts, int64 [pairs]."""

    codes: np.ndarray
    counts: np.ndarray
    vocab_size: int

    def plus(self, other: _Pairs) -> _Pairs:
        return _Pairs(*_merge([self.codes, other.codes], [self.counts, other.counts]), self.vocab_size)

    def find(self, codes: np.ndarray) -> np.ndarray:
        """Counts of the given codes, 0 where a pair was never seen."""
        if not len(self.codes):
            return np.zeros(len(codes), np.int64)
        places = np.minimum(np.searchsorted(self.codes, codes), len(self.codes) - 1)
        return np.where(self.codes[places] == codes, self.counts[places], 0)

    def of_first(self) -> np.ndarray:
        """c(a), float64 [V]."""
        return np.bincount(self.codes // self.vocab_size, self.counts, self.vocab_size)

    def of_second(self) -> np.ndarray:
        """c(b), float64 [V]."""
        return np.bincount(self.codes % self.vocab_size, self.counts, self.vocab_size)


def _probabilities(model: _Pairs, wanted: _Pairs) -> tuple[np.ndarray, np.ndarray]:
    """Relative frequency of b after a, and smoothed frequency of b, for each wanted pair."""
    second = model.of_second() + 1
    context = model.of_first()[wanted.codes // model.vocab_size]
    return model.find(wanted.codes) / np.maximum(context, 1), second[wanted.codes % model.vocab_size] / second.sum()


def _bucket(model: _Pairs, wanted: _Pairs) -> np.ndarray:
    """floor(log2 c(a)) of each wanted pair's context; never seen counts as once (its relative frequencies are 0)."""
    context = model.of_first()[wanted.codes // model.vocab_size]
    return np.log2(np.maximum(context, 1)).astype(np.int64)


def _fit_weights(model: _Pairs, held_out: _Pairs) -> np.ndarray:
    """The weight of each bucket, float64 [64], by expectation maximisation on held-out pairs; 0.5 without evidence."""
    bigram, unigram = _probabilities(model, held_out)
    bucket = _bucket(model, held_out)
    mass = np.bincount(bucket, held_out.counts, 64)
    weights = np.full(64, 0.5)
    for _ in range(_ITERATIONS):
        part = weights[bucket] * bigram
        share = held_out.counts * part / (part + (1 - weights[bucket]) * unigram)
        weights = np.where(mass > 0, np.bincount(bucket, share, 64) / np.maximum(mass, 1), 0.5)
        weights = np.minimum(weights, 1 - 1e-6)  # a pair never seen must keep some probability
    return weights


def _count(blocks: Blocks, chosen: range, vocab_size: int, eod: int, wanted: _Predicate) -> _Pairs:
    """Pairs of the chosen blocks whose second token lies in a document that is wanted, by its number."""
    dense = np.zeros(vocab_size**2, np.int64) if vocab_size**2 <= _DENSE_PAIRS else None
    codes, counts = [], []
    for chunk in _chunks(blocks, chosen, vocab_size, eod, wanted):
        if dense is not None:
            dense += np.bincount(chunk, minlength=len(dense))
        else:
            found = np.unique(chunk, return_counts=True)
            codes.append(found[0])
            counts.append(found[1])
    if dense is not None:
        codes, counts = [np.flatnonzero(dense)], [dense[np.flatnonzero(dense)]]
    return _Pairs(*_merge(codes, counts), vocab_size)


def _chunks(blocks: Blocks, chosen: range, vocab_size: int, eod: int, wanted: _Predicate) -> Iterator[np.ndarray]:
    """Codes of the wanted pairs, int64, some millions at a time."""
    pending: list[np.ndarray] = []
    number = size = 0
    for block in chosen:
        tokens = blocks.tokens(block).astype(np.int64)
        lengths = np.diff(blocks.ends(block), prepend=0)
        mask = np.repeat(wanted(number + np.arange(len(lengths))), lengths)
        number += len(lengths)
        # Every block ends with eod, so the token before a block's first is eod wherever the block comes from.
        before = np.concatenate([np.full(1, eod), tokens[:-1]])
        pending.append((before * vocab_size + tokens)[mask])
        size += len(pending[-1])
        if size >= _CHUNK_TOKENS:
            yield np.concatenate(pending)
            pending, size = [], 0
    if pending:
        yield np.concatenate(pending)


def _merge(codes: list[np.ndarray], counts: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Sums the counts of equal codes."""
    if not codes:
        return np.zeros(0, np.int64), np.zeros(0, np.int64)
    unique, inverse = np.unique(np.concatenate(codes), return_inverse=True)
    return unique, np.bincount(inverse, np.concatenate(counts), len(unique)).astype(np.int64)
