"""Dropout whose masks are a function of counters, not of a layout."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from models.layers import Layers
from models.random import drop, key_tensor, offsets, stream_key


class Dropout(nn.Module):
    """Dropout on [S, B, H] whose mask is a function of (seed, name, sample, position, feature): the same at any layout,
    in recomputation and after a resume."""

    def __init__(self, layers: Layers, probability: float, name: str) -> None:
        super().__init__()
        self.probability = probability
        self._layers = layers
        self._key = key_tensor(stream_key(layers.clock.seed, "dropout", name))

    def forward(self, x: Tensor, first_sample: int | Tensor, sequence_length: int) -> Tensor:
        """x: [S, B, H]; first_sample: global index of the first sequence; sequence_length: the uncut S."""
        if self.probability == 0 or not self.training:
            return x
        return drop(x, self._key, self.probability, offsets_of(self._layers, x, first_sample, sequence_length))


def offsets_of(layers: Layers, x: Tensor, first_sample: int, sequence_length: int) -> Tensor:
    """Where the elements of this rank's activations [S, B, H] stand in those of all samples, int64: what random numbers are a
    function of. sequence_length: the uncut S."""
    length, batch, hidden = x.shape
    shape = (batch + 1, sequence_length, hidden)
    index = torch.cat(
        [
            offsets(shape, (first_sample, start, 0), (batch, stop - start, hidden), x.device)
            for start, stop in layers.spans(length)
        ],
        dim=1,
    )
    return index.transpose(0, 1)
