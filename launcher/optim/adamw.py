"""AdamW that clips, steps and writes the model's copy in one pass over memory (`models.kernels.adamw`).

State is named as in `torch.optim.AdamW`, `exp_avg`, `exp_avg_sq` and `step`, so engines and checkpoints do not tell them apart.
Parameters may be bfloat16 without a float32 master: rounding is then stochastic. Its random bits follow from the run's seed,
the parameter's name, the number of the step and the element's place, so a resumed run draws what the whole one would have.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from models.errors import ModelError
from models.formats.quantize import Draw
from models.kernels.adamw import KERNEL, Scalars, Tables, launch
from models.kernels.adamw.reference import adamw_ as reference
from models.keys import bits


@dataclass(frozen=True)
class _Batch:
    """Parameters that one launch steps."""

    parameters: list[Tensor]
    gradients: list[Tensor]
    exp_avgs: list[Tensor]
    exp_avg_sqs: list[Tensor]
    shadows: list[Tensor]
    keys: list[int]
    scalars: Scalars

    @property
    def tensors(self) -> tuple[list[Tensor], ...]:
        return self.parameters, self.gradients, self.exp_avgs, self.exp_avg_sqs, self.shadows


class OnePassAdamW(torch.optim.Optimizer):
    """Decoupled weight decay (arXiv 1711.05101) over float32 parameters, or bfloat16 ones without a master.

    parameters: groups as torch takes them. kernels: `reference`, `triton`, `cuda` or `auto`. keys: 64 bits for each bfloat16
    parameter, the same in every run of a seed. All of a group's parameters on one device are stepped in one launch, but that
    those with another count of steps or dtype take one more.
    """

    def __init__(
        self,
        parameters: Any,
        *,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 1e-2,
        kernels: str = "auto",
        keys: Mapping[Tensor, int] | None = None,
    ) -> None:
        super().__init__(parameters, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay})
        self._kernels, self._keys = kernels, dict(keys or {})
        self._shadows: dict[Tensor, Tensor] = {}
        self._tables: dict[tuple, Tables] = {}
        self._factor = 1.0

    def keep_copy(self, master: Tensor, copy: Tensor) -> bool:
        """Write a bfloat16 copy of a float32 parameter at every step from now on. False if this is none: the caller copies."""
        if master.dtype != torch.float32 or copy.dtype != torch.bfloat16 or not copy.is_contiguous():
            return False
        self._shadows[master] = copy.detach()
        return True

    def step_clipped(self, factor: float) -> None:
        """A step with all gradients multiplied by a factor, which are left as they are."""
        self._factor = factor
        try:
            self.step()
        finally:
            self._factor = 1.0

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Step every parameter that has a gradient."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for batch in self._batches(group):
                self._run(batch)
        return loss

    def _batches(self, group: dict[str, Any]) -> Iterator[_Batch]:
        alike: dict[tuple, list[Tensor]] = {}
        for parameter in group["params"]:
            if parameter.grad is None:
                continue
            step = float(self._state_of(parameter)["step"])
            kind = (step, parameter.device, parameter.dtype, parameter.grad.dtype, parameter in self._shadows)
            alike.setdefault(kind, []).append(parameter)
        for (before, *_, shadowed), parameters in alike.items():
            states = [self.state[parameter] for parameter in parameters]
            torch._foreach_add_([state["step"] for state in states], 1)
            scalars = Scalars.at(before + 1, group["lr"], group["betas"], group["eps"], group["weight_decay"])
            yield _Batch(
                parameters,
                [parameter.grad.contiguous() for parameter in parameters],  # type: ignore[union-attr]
                [state["exp_avg"] for state in states],
                [state["exp_avg_sq"] for state in states],
                [self._shadows[parameter] for parameter in parameters] if shadowed else [],
                self._drawn(parameters, int(before) + 1),
                scalars,
            )

    def _state_of(self, parameter: Tensor) -> dict[str, Tensor]:
        state = self.state[parameter]
        if not state:
            wide = torch.promote_types(parameter.dtype, torch.float32)
            state["step"] = torch.zeros((), dtype=torch.float32)
            for moment in ("exp_avg", "exp_avg_sq"):
                state[moment] = torch.zeros_like(parameter, dtype=wide, memory_format=torch.contiguous_format)
        return state

    def _drawn(self, parameters: list[Tensor], step: int) -> list[int]:
        """Keys of this step, int64, for parameters that are rounded stochastically."""
        if parameters[0].dtype != torch.bfloat16:
            return []
        if missing := [parameter for parameter in parameters if parameter not in self._keys]:
            raise ModelError(
                f"adamw: a bfloat16 parameter of shape {tuple(missing[0].shape)} has no key to draw from; give keys, or keep a "
                "float32 master"
            )
        found = bits(np.array([self._keys[parameter] for parameter in parameters], np.int64), np.array([step]))
        return found.astype(np.int64).tolist()

    def _run(self, batch: _Batch) -> None:
        first = batch.parameters[0]
        chosen = KERNEL.choose(self._kernels, first)
        factor = torch.full((1,), self._factor, dtype=torch.float32, device=first.device)
        if chosen == "reference":
            draws = [Draw(key) for key in batch.keys]
            parameters, gradients, exp_avgs, exp_avg_sqs, shadows = batch.tensors
            reference(parameters, gradients, exp_avgs, exp_avg_sqs, batch.scalars, factor, shadows, draws)
            return
        tables = self._tables_of(batch)
        tables.point(*batch.tensors, keys=batch.keys)
        launch(chosen, tables, batch.gradients[0].dtype, batch.scalars, factor)

    def _tables_of(self, batch: _Batch) -> Tables:
        sizes, device = tuple(parameter.numel() for parameter in batch.parameters), batch.parameters[0].device
        name = (sizes, device, bool(batch.shadows), bool(batch.keys))
        if name not in self._tables:
            places = [(0, max(size, 1), max(size, 1)) for size in sizes] if batch.keys else []
            self._tables[name] = Tables(sizes, device, places, shadowed=bool(batch.shadows))
        return self._tables[name]
