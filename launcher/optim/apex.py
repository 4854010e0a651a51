"""apex's FusedAdam, where apex is installed, with its count of steps where torch's AdamW has it."""

from __future__ import annotations

from typing import Any

import torch


def fused_adam(groups: list[dict[str, Any]], **options: Any) -> torch.optim.Optimizer:
    """`apex.optimizers.FusedAdam` with decoupled weight decay. options: lr, betas, eps.

    It counts steps once a group, where no engine looks: before each step the group's count is set from the parameters' state,
    into which the new one is then written, so that checkpoints resume.
    """
    from apex.optimizers import FusedAdam

    class Counted(FusedAdam):
        def step(self, *arguments: Any, **keywords: Any) -> Any:
            for group in self.param_groups:
                group["step"] = max((int(self.state[p].get("step", 0)) for p in group["params"]), default=0)
            found = super().step(*arguments, **keywords)
            for group in self.param_groups:
                for parameter in group["params"]:
                    if self.state[parameter]:
                        self.state[parameter]["step"] = torch.tensor(float(group["step"]))
            return found

    return Counted(groups, adam_w_mode=True, **options)
