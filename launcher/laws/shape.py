"""A model of so many parameters: Llama's blocks, as wide for their depth as published models are.

Loss hardly depends on the ratio of width to depth over an order of magnitude (Kaplan et al. 2020, arXiv 2001.08361, figure 5).
Published models have 64 (GPT-3 125M) to 128 (Llama 7B) units of width a layer (arXiv 2005.14165, table 2.1; arXiv 2302.13971,
table 2), and the ratio is kept within that. Feed-forward: two thirds of 4 x hidden, for three matrices (section 2.2).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from models.config import ModelConfig, count_parameters

NARROWEST, WIDEST = 64, 128  # units of width a layer
WIDTHS = (
    *(*range(64, 512, 32), *range(512, 1024, 64), *range(1024, 2048, 128), *range(2048, 4096, 256)),
    *(*range(4096, 16384, 512), *range(16384, 32769, 1024)),
)
HEADS = ((1024, 128), (512, 64), (0, 32))  # width from which heads have so many units
ROUND = 1024  # width from which feed-forwards are multiples of 256 instead of 64
SMALL = 1e8  # parameters below which a vocabulary of 1,024 is taken, by recipes/tokenizer/bpe.yaml
TIED = 1e9  # parameters below which embedding and head are one, as in Llama 3.2 1B, Qwen2 0.5B and GPT-2


@dataclass(frozen=True)
class Shape:
    """A model and its exact count."""

    model: ModelConfig
    parameters: int

    @property
    def without_embedding(self) -> int:
        """Parameters besides embedding and head: the Step Law's N."""
        return (
            self.parameters
            - (1 if self.model.tied_embeddings else 2) * self.model.padded_vocab * self.model.hidden_size
        )

    def fields(self) -> dict[str, Any]:
        """What a recipe says of it."""
        names = ("name", "vocab_size", "hidden_size", "layers", "heads", "ffn_size", "max_sequence", "positions", "norm",
                 "activation", "bias", "tied_embeddings")  # fmt: skip
        return {name: getattr(self.model, name) for name in names}


def shape_of(parameters: float, vocab: int = 0, sequence_length: int = 2048) -> Shape:
    """The model nearest to a count. vocab: 0 for one that suits it."""
    vocab = vocab or (1024 if parameters < SMALL else 32768)
    found = [_nearest(hidden, vocab, parameters, sequence_length) for hidden in WIDTHS]
    return min(found, key=lambda one: _away(one, parameters))


def _nearest(hidden: int, vocab: int, parameters: float, sequence_length: int) -> Shape:
    """The depth of a width whose count is nearest, within the ratios: every layer adds as many parameters."""
    least, most = max(2, math.ceil(hidden / WIDEST)), max(2, hidden // NARROWEST)
    tied = parameters < TIED
    one, two = (_shape(hidden, layers, vocab, tied, sequence_length).parameters for layers in (1, 2))
    layers = round(1 + (parameters - one) / (two - one))
    return _shape(hidden, min(max(layers, least), most), vocab, tied, sequence_length)


def _away(one: Shape, parameters: float) -> float:
    """Distance in logarithms; of models as near, the one with a ratio in the middle."""
    ratio = one.model.hidden_size / one.model.layers
    middle = math.sqrt(NARROWEST * WIDEST)
    return abs(math.log(one.parameters / parameters)) + 0.02 * abs(math.log(ratio / middle))


def _shape(hidden: int, layers: int, vocab: int, tied: bool, sequence_length: int) -> Shape:
    head = next(units for least, units in HEADS if hidden >= least)
    multiple = 256 if hidden >= ROUND else 64
    model = ModelConfig(
        name="planned", vocab_size=vocab, hidden_size=hidden, layers=layers, heads=hidden // head,
        ffn_size=math.ceil(8 * hidden / 3 / multiple) * multiple, max_sequence=sequence_length, positions="rotary",
        norm="rmsnorm", activation="swiglu", bias=False, tied_embeddings=tied,
    )  # fmt: skip
    return Shape(model, count_parameters(model))
