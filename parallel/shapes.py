"""Batches whose shape changes from step to step: ramps of the batch, buckets by length (Dataset Decomposition,
arXiv 2405.13226). What a micro-batch of a shape is, and which shapes a layout can take. No torch here.

A micro-batch keeps its tokens: of sequences half as long it has twice as many, so memory does not grow with the length.
"""

from __future__ import annotations

from collections.abc import Iterable

from models.config import ModelConfig
from parallel.check import check_micro_batches, check_model
from parallel.config import ParallelConfig, ParallelError

MOST_COMPILED = 16
"""Sequence lengths for which a run may compile its layers: each takes a compiler seconds to minutes."""


def micro_batch_rows(micro_batch: int, sequence_length: int, length: int) -> int:
    """Sequences of `length` tokens in a micro-batch, where one of `sequence_length` has `micro_batch`: as many tokens, rounded
    down to whole sequences, and at least one sequence."""
    return max(1, micro_batch * sequence_length // length)


def check_shapes(
    config: ParallelConfig,
    model: ModelConfig,
    shapes: Iterable[tuple[int, int]],
    *,
    micro_batch: int,
    sequence_length: int,
) -> None:
    """Refuse batches that a layout cannot take, before any process starts.

    config: resolved, no `data=0`. shapes: (rows of the global batch, tokens of each) of every batch that the recipe can make.
    micro_batch, sequence_length: train's, which `EngineSpec` is given.
    """
    known = sorted(set(shapes))
    lengths = sorted({length for _, length in known})
    for length in lengths:
        _check_length(config, model, length)
    if config.compile != "none" and len(lengths) > MOST_COMPILED:
        raise ParallelError(
            f"parallel.compile={config.compile}: layers are compiled for each sequence length, and there are {len(lengths)} "
            f"({lengths[0]} to {lengths[-1]}), more than {MOST_COMPILED}; use fewer lengths or set parallel.compile=none"
        )
    for rows, length in known:
        share = config.data * micro_batch_rows(micro_batch, sequence_length, length)
        if rows < 1 or rows % share:
            near = max(share, round(rows / share) * share)
            raise ParallelError(
                f"train.micro_batch={micro_batch}: a batch of {rows} sequences of {length} tokens does not divide into "
                f"micro-batches of {share // config.data} on parallel.data={config.data} ranks (a micro-batch keeps the tokens "
                f"of train.micro_batch sequences of train.sequence_length={sequence_length}); the nearest batch is {near} "
                f"sequences, {near * length} tokens, or choose another train.micro_batch"
            )
        try:
            check_micro_batches(config, rows // share)
        except ParallelError as error:
            raise ParallelError(f"{error} (a batch of {rows} sequences of {length} tokens)") from None


def _check_length(config: ParallelConfig, model: ModelConfig, length: int) -> None:
    if length < 1:
        raise ParallelError(f"train.sequence_length={length}: must be at least 1")
    if model.positions != "none" and length > model.max_sequence:
        raise ParallelError(
            f"train.sequence_length={length}: longer than model.max_sequence={model.max_sequence}; shorten it or raise "
            "model.max_sequence"
        )
    check_model(config, model, length)
