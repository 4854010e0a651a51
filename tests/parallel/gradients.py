"""Gradients of a whole model at any layout, out of what every engine tells: SGD at rate 1 subtracts them from the weights."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from launcher.config import OptimizerConfig
from tests.helpers.pool import Pools
from tests.parallel import state_jobs
from tests.parallel.cases import Case

SUBTRACT = OptimizerConfig(name="sgd", learning_rate=1.0, beta1=0.0, weight_decay=0.0, clip_norm=0.0)


@dataclass(frozen=True)
class Gradient:
    """A parameter's gradient, float32, and how far the weights' own rounding may have moved an element of it."""

    value: Tensor
    rounding: float


def gradients(pools: Pools, case: Case) -> dict[str, Gradient]:
    """Gradient of every parameter in the first step."""
    before, after = (
        state_jobs.assemble(
            pools.run(case.world_size, state_jobs.saved_pieces, case=replace(case, optimizer=SUBTRACT), steps=steps)
        )
        for steps in (0, 1)
    )
    # an updated weight is rounded to half a unit in its last place, 2^-24 of the next power of two
    return {
        name: Gradient(
            before[name] - after[name], 2.0**-23 * float(torch.maximum(before[name].abs(), after[name].abs()).max())
        )
        for name in before
    }


def assert_same_gradients(ours: dict[str, Gradient], theirs: dict[str, Gradient], tolerance: float) -> None:
    """Each parameter's gradient lies within `tolerance` of the other's largest element, and the rounding of the weights that
    both were read from; none may be zero."""
    assert ours.keys() == theirs.keys()
    for name, expected in theirs.items():
        size = float(expected.value.abs().max())
        assert size > 0, f"{name}: a gradient of zero proves nothing"
        error = float((ours[name].value - expected.value).abs().max())
        allowed = tolerance * size + ours[name].rounding + expected.rounding
        assert error <= allowed, f"{name}: off by {error / size:.1e} of its largest gradient"
