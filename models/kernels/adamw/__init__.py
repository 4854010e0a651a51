"""AdamW: clip, moments, decoupled decay, the step, and the copy that a model computes in, in one pass over all tensors.

A step moves 28 bytes an element (float32 master, moments, gradient) or 22 (bfloat16 parameters without master), 2 more for a
bfloat16 copy; done apart, clipping would add 8 and the copy 4.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from models.errors import ModelError
from models.formats.quantize import Draw
from models.kernels.adamw import reference
from models.kernels.adamw.scalars import Scalars
from models.kernels.adamw.tables import Tables, place_of
from models.kernels.registry import Kernel

__all__ = ["KERNEL", "Draw", "Scalars", "Tables", "adamw_", "launch"]


def _serves(device: torch.device, dtype: torch.dtype, shape: tuple[int, ...]) -> str | None:
    return None if dtype in (torch.float32, torch.bfloat16) else f"parameters are {dtype}"


KERNEL = Kernel("adamw", serves={"triton": _serves, "cuda": _serves}, elsewhere=("apex",))


def adamw_(
    parameters: Sequence[Tensor],
    gradients: Sequence[Tensor],
    exp_avgs: Sequence[Tensor],
    exp_avg_sqs: Sequence[Tensor],
    scalars: Scalars,
    factor: Tensor | None = None,
    shadows: Sequence[Tensor] = (),
    draws: Sequence[Draw] = (),
    *,
    statistics: bool = False,
    kernels: str = "auto",
) -> Tensor | None:
    """Step parameters and moments in place.

    parameters: float32, or bfloat16 with `draws`, which say where each takes its random bits from: rounding is then
    stochastic, so that in the mean no update is lost. gradients: float32 or bfloat16, all alike; multiplied by `factor`, a
    float32 scalar on the device, which is None for 1. exp_avgs, exp_avg_sqs: float32. shadows: bfloat16 copies of float32
    parameters, rounded to nearest even.
    Returns with `statistics` float32 [tensors, 2], sums of squares of the change and of the new parameter, before rounding.
    ModelError for dtypes and tensors that cannot be.
    """
    check(parameters, gradients, (exp_avgs, exp_avg_sqs, shadows), draws)
    if not parameters:
        return torch.empty(0, 2) if statistics else None
    factor = torch.ones(1, device=parameters[0].device) if factor is None else factor.reshape(1)
    chosen = KERNEL.choose(kernels, parameters[0])
    if chosen in ("reference", "apex"):  # apex has an optimizer, no operator: launcher.optim takes that
        return reference.adamw_(
            parameters, gradients, exp_avgs, exp_avg_sqs, scalars, factor, shadows, draws, statistics=statistics
        )
    places = [number for p, draw in zip(parameters, draws, strict=False) for number in place_of(draw, p.shape)]
    found = _operator(
        list(parameters), list(gradients), list(exp_avgs), list(exp_avg_sqs), list(shadows), factor,
        list(scalars.tuple()), [_signed(draw.key) for draw in draws], places, statistics, chosen,
    )  # fmt: skip
    return found if statistics else None


def launch(
    chosen: str, tables: Tables, gradient: torch.dtype, scalars: Scalars, factor: Tensor, *, statistics: bool = False
) -> Tensor | None:
    """One launch of an implementation, `triton` or `cuda`. gradient: dtype of those that the tables point to.
    factor: float32 [1] on the device."""
    partials = torch.empty(len(tables.chunks), 2, device=tables.device) if statistics else None
    if chosen == "cuda":
        from models.kernels.adamw.cuda import step
    else:
        from models.kernels.adamw.triton import step
    if len(tables.chunks):
        step(tables, gradient, scalars, factor, partials)
    return None if partials is None else tables.sums(partials)


def check(
    parameters: Sequence[Tensor], gradients: Sequence[Tensor], others: Sequence[Sequence[Tensor]], draws: Sequence[Draw]
) -> None:
    """ModelError unless one launch can step these. others: first and second moments, shadows (none, or of each)."""
    if not parameters:
        return
    kinds, moments = {p.dtype for p in parameters}, {m.dtype for m in (*others[0], *others[1])}
    narrow = kinds == {torch.bfloat16}
    if narrow != bool(draws) or (narrow and others[2]):
        raise ModelError(
            f"adamw: parameters are {parameters[0].dtype} {'with' if draws else 'without'} draws; bfloat16 ones are rounded "
            "stochastically, need a draw each and no shadow, float32 ones need none; keep float32 masters or give draws"
        )
    if len(kinds) > 1 or moments != ({torch.float64} if kinds == {torch.float64} else {torch.float32}):
        raise ModelError(
            f"adamw: parameters are {kinds}, moments {moments}; moments are float32, and parameters all alike, float32 or "
            "bfloat16"
        )
    if len({g.dtype for g in gradients}) > 1:
        raise ModelError("adamw: gradients are of several dtypes; step those of each by themselves")
    if any(shadow.dtype != torch.bfloat16 for shadow in others[2]):
        raise ModelError("adamw: a shadow is bfloat16; copy to other dtypes after the step")
    for name, tensors in (("gradients", gradients), *zip(("exp_avgs", "exp_avg_sqs", "shadows"), others, strict=True)):
        if (tensors or name != "shadows") and [t.shape for t in tensors] != [p.shape for p in parameters]:
            raise ModelError(f"adamw: {name} have not the shapes of the parameters; give one of each, in order")
    for tensor in (*parameters, *others[0], *others[1], *others[2]):
        if not tensor.is_contiguous():
            raise ModelError(f"adamw: a tensor has strides {tensor.stride()}; give contiguous ones")


def _signed(key: int) -> int:
    """The int64 of a key's 64 bits: operators take no others."""
    return (key + (1 << 63)) % (1 << 64) - (1 << 63)


@torch.library.custom_op("triaxis::adamw", mutates_args=("parameters", "exp_avgs", "exp_avg_sqs", "shadows"))
def _operator(
    parameters: list[Tensor],
    gradients: list[Tensor],
    exp_avgs: list[Tensor],
    exp_avg_sqs: list[Tensor],
    shadows: list[Tensor],
    factor: Tensor,
    scalars: list[float],
    keys: list[int],
    places: list[int],
    statistics: bool,
    chosen: str,
) -> Tensor:
    triples = [(places[at], places[at + 1], places[at + 2]) for at in range(0, len(places), 3)]
    tables = Tables([p.numel() for p in parameters], parameters[0].device, triples, shadowed=bool(shadows))
    gradients = [gradient.contiguous() for gradient in gradients]
    tables.point(parameters, gradients, exp_avgs, exp_avg_sqs, shadows, keys=keys)
    found = launch(chosen, tables, gradients[0].dtype, Scalars(*scalars), factor, statistics=statistics)
    return factor.new_empty(0, 2) if found is None else found


@_operator.register_fake
def _(parameters, gradients, exp_avgs, exp_avg_sqs, shadows, factor, scalars, keys, places, statistics, chosen):
    return factor.new_empty(len(parameters) if statistics else 0, 2)
