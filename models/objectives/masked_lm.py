"""Masked LM (BERT, arXiv 1810.04805): some tokens are hidden, and asked for where they stand.

Chosen are runs of tokens or of whole words, which never hold the end of a document, in a drawn order until the rate is reached:
the last run is taken with the probability that makes the expected number of tokens exact. A run of several is MacBERT's n-gram
(arXiv 2004.13922). Of the chosen tokens some are masked, some are another token, some stay, each drawn by itself.
"""

from __future__ import annotations

import numpy as np

from models.objectives import units
from models.objectives.base import Example, Samples, Vocabulary
from models.objectives.config import MaskedConfig
from models.objectives.draw import Draws, stream_keys


class MaskedLM:
    """Predict what is hidden; all of a row is its prefix, so that a model with a prefix mask sees both ways too."""

    marks_prefix = True

    def __init__(self, config: MaskedConfig, seed: int, place: str, vocabulary: Vocabulary, mask: int) -> None:
        self.config, self.vocabulary, self.mask = config, vocabulary, mask
        self._ordinary = vocabulary.ordinary()
        self._special = np.ones(vocabulary.size, bool)
        self._special[self._ordinary] = False
        self._shares = np.cumsum(config.ngram_shares)
        self._keys = stream_keys(seed, place, ("runs", "order", "last", "what", "token"))

    def rate(self, position: np.ndarray) -> np.ndarray:
        """Share of the tokens that are predicted, after so many tokens of the run."""
        config = self.config
        if not config.rate_tokens:
            return np.full(np.shape(position), config.rate)
        done = np.minimum(position / config.rate_tokens, 1.0)
        return config.rate + (config.final_rate - config.rate) * done

    def __call__(self, samples: Samples) -> Example:
        """Row for row: inputs and targets are the same S tokens, but for what is hidden."""
        targets = samples.tokens[:, :-1].copy()
        weights, inputs = samples.token_weights(), targets.copy()
        counted = np.zeros(targets.shape, np.float32)
        rates = self.rate(samples.positions())
        for row in range(len(targets)):
            draws = Draws(self._keys, int(samples.indices[row]))
            length = units.content_length(samples.tokens[row], weights[row], self.vocabulary.eod)
            chosen = self._choose(targets[row, :length], float(rates[row]), draws)
            inputs[row, chosen] = self._hide(targets[row], chosen, draws)
            counted[row, chosen] = weights[row, chosen]
        return Example(inputs, targets, counted, None, np.ones(inputs.shape, bool))

    def _choose(self, tokens: np.ndarray, rate: float, draws: Draws) -> np.ndarray:
        """Places of the tokens that are predicted, in ascending order."""
        places, run = self._runs(tokens, draws)
        if not len(places):
            return places
        sizes = np.bincount(run)
        order = np.argsort(draws.uniforms("order", len(sizes)), kind="stable")
        before = np.cumsum(sizes[order]) - sizes[order]
        # the share of a run that still fits: 1 or more, a part, or none
        left = (rate * len(places) - before) / sizes[order]
        taken = (left >= 1) | (left > draws.uniform("last"))
        chosen = np.zeros(len(sizes), bool)
        chosen[order[taken]] = True
        return places[chosen[run]]

    def _runs(self, tokens: np.ndarray, draws: Draws) -> tuple[np.ndarray, np.ndarray]:
        """Places of all tokens that may be predicted, and the number of the run that each belongs to."""
        places = np.flatnonzero(~self._special[tokens])
        if not len(places):
            return places, places
        apart = np.concatenate([[True], np.diff(places) > 1])  # behind what is never predicted
        begins = np.ones(len(places), bool)
        if self.config.whole_word:
            starts_inside, ends_inside = self._joins()
            begins[1:] = ~(starts_inside[tokens[places[1:]]] & ends_inside[tokens[places[:-1]]])
        word = np.cumsum(begins | apart) - 1
        if len(self._shares) == 1:
            return places, word
        return places, _join(word, apart, self._lengths(int(word[-1]) + 1, draws))

    def _joins(self) -> np.ndarray:
        assert self.vocabulary.joins is not None
        return self.vocabulary.joins

    def _lengths(self, count: int, draws: Draws) -> np.ndarray:
        """int64 [count]: how many words the runs of a row have, as far as there are any."""
        drawn = draws.uniforms("runs", count)
        return np.minimum(np.searchsorted(self._shares, drawn, side="right"), len(self._shares) - 1) + 1

    def _hide(self, tokens: np.ndarray, chosen: np.ndarray, draws: Draws) -> np.ndarray:
        """What stands in place of the tokens at the chosen places."""
        config, what = self.config, draws.at("what", chosen)
        drawn = (draws.at("token", chosen) * len(self._ordinary)).astype(np.int64)
        other = self._ordinary[np.minimum(drawn, len(self._ordinary) - 1)]
        instead = np.where(what < config.mask_share + config.random_share, other, tokens[chosen])
        return np.where(what < config.mask_share, self.mask, instead)


def _join(word: np.ndarray, apart: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """Number of the run that each token belongs to: runs of `lengths` words, cut where tokens are apart. word: number of each
    token's word, ascending from 0."""
    first = np.flatnonzero(np.diff(word, prepend=-1))  # token at which each word begins
    breaks = set(word[first[apart[first]]].tolist())
    begins = np.zeros(len(first), bool)
    place = number = 0
    while place < len(first):
        begins[place] = True
        stop = place + int(lengths[number])
        place, number = next((at for at in range(place + 1, stop) if at in breaks), stop), number + 1
    return (np.cumsum(begins) - 1)[word]
