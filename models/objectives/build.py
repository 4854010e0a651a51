"""From options to an objective."""

from __future__ import annotations

import numpy as np

from models.objectives.base import Objective, Vocabulary
from models.objectives.causal import Causal
from models.objectives.config import ObjectiveConfig, TokenNames
from models.objectives.masked_lm import MaskedLM
from models.objectives.middle import FillInTheMiddle, Markers
from models.objectives.mixture import Mixture
from models.objectives.pairs import Pairs, Splitter
from models.objectives.prefix_lm import PrefixSplit
from models.objectives.span_corruption import SpanSplit
from models.objectives.weighting import Weighted


def build_objective(config: ObjectiveConfig, vocabulary: Vocabulary, seed: int, encoder_length: int = 0) -> Objective:
    """The objective of a run or phase. vocabulary: must have config.special_tokens(); encoder_length: tokens of a row that an
    encoder reads, which for a decoder alone are none."""
    parts = [
        _build(config, part, vocabulary, seed, str(number), encoder_length) for number, part in enumerate(config.parts)
    ]
    whole: Objective = parts[0]
    if config.mixture:
        whole = Mixture(parts, [part.weight for part in config.mixture], seed, vocabulary.eod)
    return Weighted(config.weights, whole) if config.weights.column else whole


def _build(
    whole: ObjectiveConfig, part: ObjectiveConfig, vocabulary: Vocabulary, seed: int, place: str, encoder: int
) -> Objective:
    """One part of a mixture, or all. place: its number, which keeps parts' draws apart."""
    names, ids = whole.tokens, vocabulary.special
    if part.name == "causal":
        return Causal()
    if part.name == "masked_lm":
        return MaskedLM(part.masked_lm, seed, place, vocabulary, ids.get(names.mask, -1))
    if part.name == "fill_in_the_middle":
        markers = Markers(ids[names.fim_prefix], ids[names.fim_middle], ids[names.fim_suffix])
        return FillInTheMiddle(part.fill_in_the_middle, seed, place, vocabulary, markers)
    return Pairs(
        _splitter(part, names, vocabulary),
        seed,
        place,
        vocabulary.eod,
        by_document=part.unit == "document",
        mode=ids[part.mode] if part.mode else -1,
        encoder=encoder,
    )


def _splitter(part: ObjectiveConfig, names: TokenNames, vocabulary: Vocabulary) -> Splitter:
    ids, spans = vocabulary.special, part.span_corruption
    if part.name == "prefix_lm":
        return PrefixSplit(part.prefix_lm, ids.get(names.separator, -1))
    sentinels = np.array(
        [ids[names.sentinel.replace("{}", str(number))] for number in range(spans.sentinels)], np.int64
    )
    separator = ids[names.separator] if spans.separator else -1
    return SpanSplit(spans, sentinels, separator, ids[names.end_of_span] if spans.end_of_span else -1)
