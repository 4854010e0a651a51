"""Gradients of a whole model at any layout, out of what every engine tells: SGD at rate 1 subtracts them from the weights."""

from __future__ import annotations

from dataclasses import replace

from torch import Tensor

from launcher.config import OptimizerConfig
from tests.helpers.pool import Pools
from tests.parallel import state_jobs
from tests.parallel.cases import Case

SUBTRACT = OptimizerConfig(name="sgd", learning_rate=1.0, beta1=0.0, weight_decay=0.0, clip_norm=0.0)


def gradients(pools: Pools, case: Case) -> dict[str, Tensor]:
    """Gradient of every parameter in the first step, float32, exact to the rounding of weights (some 2^-24 of a weight)."""
    before, after = (
        state_jobs.assemble(
            pools.run(case.world_size, state_jobs.saved_pieces, case=replace(case, optimizer=SUBTRACT), steps=steps)
        )
        for steps in (0, 1)
    )
    return {name: before[name] - after[name] for name in before}


def assert_same_gradients(ours: dict[str, Tensor], theirs: dict[str, Tensor], tolerance: float) -> None:
    """Each parameter's gradient lies within `tolerance` of the other's largest element; none may be zero."""
    assert ours.keys() == theirs.keys()
    for name, expected in theirs.items():
        size = float(expected.abs().max())
        assert size > 0, f"{name}: a gradient of zero proves nothing"
        error = float((ours[name] - expected).abs().max()) / size
        assert error <= tolerance, f"{name}: off by {error:.1e} of its largest gradient"
