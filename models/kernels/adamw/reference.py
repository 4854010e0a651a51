"""AdamW in plain torch: the order of operations, and of roundings, that the kernels equal bit for bit."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from models.formats.quantize import Draw
from models.formats.random import bits
from models.kernels.adamw.scalars import Scalars


def adamw_(
    parameters: Sequence[Tensor],
    gradients: Sequence[Tensor],
    exp_avgs: Sequence[Tensor],
    exp_avg_sqs: Sequence[Tensor],
    scalars: Scalars,
    factor: Tensor,
    shadows: Sequence[Tensor] = (),
    draws: Sequence[Draw] = (),
    *,
    statistics: bool = False,
) -> Tensor | None:
    """See `models.kernels.adamw.adamw_`; parameters and moments may be float64, and then all arithmetic is."""
    found = []
    for place, (parameter, gradient) in enumerate(zip(parameters, gradients, strict=True)):
        wide = torch.promote_types(parameter.dtype, torch.float32)
        before = parameter.to(wide)
        after = _step(before, gradient.to(wide), exp_avgs[place], exp_avg_sqs[place], scalars, factor.to(wide))
        if statistics:
            found.append(torch.stack([(after - before).square().sum(), after.square().sum()]).float())
        if draws:
            parameter.copy_(stochastic_bf16(after, draws[place]))
        else:
            parameter.copy_(after)
        if shadows:
            shadows[place].copy_(after)
    return torch.stack(found) if statistics else None


def _step(p: Tensor, g: Tensor, exp_avg: Tensor, exp_avg_sq: Tensor, scalars: Scalars, factor: Tensor) -> Tensor:
    """The new parameter; the moments are written."""
    g = g * factor
    m = exp_avg + (g - exp_avg) * scalars.rest1
    v = exp_avg_sq * scalars.beta2 + g * scalars.rest2 * g
    exp_avg.copy_(m)
    exp_avg_sq.copy_(v)
    return p * scalars.keep - m * scalars.rate / (_root(v) * scalars.inverse_root + scalars.epsilon)


def _root(x: Tensor) -> Tensor:
    """Rounded correctly: torch's float32 root on CPU is not (off by a last place for 0.7 % of numbers), but a float64 one
    rounded to float32 is, since 53 bits are at least 2 * 24 + 2 (Figueroa 1995)."""
    return x.sqrt() if x.is_cuda else x.double().sqrt().to(x.dtype)


def stochastic_bf16(x: Tensor, draw: Draw) -> Tensor:
    """float32 x, rounded up in magnitude with the probability that makes the mean x: 16 random bits are added below the last
    place of a bfloat16, then cut off. Infinity stays; a NaN is quiet and keeps its sign."""
    found = x.contiguous().view(torch.int32).to(torch.int64) & 0xFFFFFFFF
    random = bits(draw.key, draw.index(x.shape, x.device)) & 0xFFFF
    rounded = torch.where(x.isnan(), found | 0x400000, found + random) >> 16
    return rounded.to(torch.uint16).view(torch.bfloat16)
