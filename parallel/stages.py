"""Where a pipeline is cut: consecutive blocks whose slowest stage is as fast as can be."""

from __future__ import annotations

import itertools

from models.blocks import block_costs
from models.config import ModelConfig


def stage_bounds(model: ModelConfig, stages: int, sequence_length: int) -> list[int]:
    """Boundaries of the stages in blocks of the decoder.

    Each stage holds a norm: DeepSpeed sums the gradient norm over the stages once for every group of the optimizer, so a
    stage without a parameter that does not decay (an embedding or a head alone) would leave the others waiting for ever.
    """
    costs = block_costs(model, sequence_length)
    last = len(costs) - 2  # the final norm, or the last layer of a post-norm model, which ends in norms
    edges = [0, *range(3, last), last, len(costs)] if last > 2 else [0, len(costs)]
    units = [sum(costs[start:stop]) for start, stop in itertools.pairwise(edges)]
    return [edges[unit] for unit in cut_stages(units, stages)]


def stage_costs(model: ModelConfig, stages: int, sequence_length: int) -> list[float]:
    """Forward time of each stage, in units of the mean stage's."""
    blocks, bounds = block_costs(model, sequence_length), stage_bounds(model, stages, sequence_length)
    return [sum(blocks[bounds[i] : bounds[i + 1]]) * stages / sum(blocks) for i in range(stages)]


def cut_stages(costs: list[float], stages: int) -> list[int]:
    """Boundaries [0, …, len(costs)] of `stages` non-empty runs of blocks with the smallest possible largest cost.

    Exact, by dynamic programming over (stages so far, blocks so far); among equally good cuts the first stages are the
    fuller ones' equals, so the result is deterministic. Embedding and head are blocks like any other: a heavy head
    leaves its stage fewer layers.
    """
    count = len(costs)
    assert 1 <= stages <= count, (stages, count)
    prefix = [0.0]
    for cost in costs:
        prefix.append(prefix[-1] + cost)
    most = prefix[-1] / stages + max(
        costs
    )  # filling stages one after the other is never worse, so nothing above it matters
    best = [[float("inf")] * (count + 1) for _ in range(stages + 1)]
    before = [[0] * (count + 1) for _ in range(stages + 1)]
    best[0][0] = 0.0
    for stage in range(1, stages + 1):
        first = stage - 1
        for stop in range(stage, count + 1):
            while prefix[stop] - prefix[first] > most:
                first += 1
            for start in range(first, stop):
                if best[stage - 1][start] > most:
                    break
                worst = max(best[stage - 1][start], prefix[stop] - prefix[start])
                if worst < best[stage][stop] - 1e-9 * prefix[-1]:
                    best[stage][stop], before[stage][stop] = worst, start
    bounds = [count]
    for stage in range(stages, 0, -1):
        bounds.append(before[stage][bounds[-1]])
    return bounds[::-1]
