"""AdamW, of many tensors: as many parameters as the sizes say, in matrices and gains."""

from __future__ import annotations

import torch
from torch import nn

from launcher.bench.kernels.record import COMPILED, EAGER, Call, Pass, Place, Sizes, eager_ways
from launcher.optim.adamw import OnePassAdamW
from models.kernels.adamw import Scalars, reference
from parallel.engines.base import clipped_step

BYTES = 4 * 7 + 2  # gradient read; master and two moments read and written; bf16 copy written
WITHOUT_MASTER = 4 + 2 * 2 + 4 * 4
CLIP = 0.5


def adamw(sizes: Sizes, place: Place) -> list[Pass]:
    """Clip, step and write a bf16 copy, float32 masters; and bf16 without masters, rounded stochastically."""
    own = {way: choice for way, choice in eager_ways("adamw", place).items() if way != EAGER}
    whole = _parameters(sizes, place)
    copies = [torch.empty_like(parameter, dtype=torch.bfloat16) for parameter in whole]
    count = sum(parameter.numel() for parameter in whole)
    calls = {EAGER: _torch(whole, copies), COMPILED: torch.compile(_plain(whole, copies), dynamic=False)}
    calls |= {way: _own(whole, copies, choice) for way, choice in own.items()}
    found = [Pass("step", calls, BYTES * count, goal=0.9)]
    if own:
        narrow = [nn.Parameter(parameter.detach().bfloat16()) for parameter in whole]
        for parameter in narrow:
            parameter.grad_dtype = torch.float32
            parameter.grad = place.noise(*parameter.shape, dtype=torch.float32)
        calls = {way: _own(narrow, [], choice) for way, choice in own.items()}
        found.append(Pass("step, bf16 only", calls, WITHOUT_MASTER * count, goal=0.9))
    return found


def _parameters(sizes: Sizes, place: Place) -> list[nn.Parameter]:
    shape = (sizes.features, sizes.hidden)
    matrices = max(1, sizes.parameters // (shape[0] * shape[1]))
    shapes = [shape, (sizes.hidden,)] * matrices
    found = [nn.Parameter(place.noise(*shape, dtype=torch.float32)) for shape in shapes]
    for parameter in found:
        parameter.grad = place.noise(*parameter.shape, dtype=torch.float32)
    return found


def _torch(parameters: list[nn.Parameter], copies: list[torch.Tensor]) -> Call:
    """What an engine does without the one-pass optimizer: three passes. Gradients are multiplied by 1, so that they last."""
    optimizer = torch.optim.AdamW(parameters, lr=1e-4, fused=True)
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]

    @torch.no_grad()
    def step() -> None:
        torch._foreach_mul_(gradients, 1.0)
        optimizer.step()
        torch._foreach_copy_(copies, parameters)

    return step


def _plain(parameters: list[nn.Parameter], copies: list[torch.Tensor]) -> Call:
    """The reference, a chain of single operations for a compiler to fuse."""
    scalars = Scalars.at(100, 1e-4, (0.9, 0.95), 1e-8, 0.01)
    factor = torch.full((1,), CLIP, device=parameters[0].device)
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    averages, squares = (
        [torch.zeros_like(parameter, requires_grad=False) for parameter in parameters] for _ in range(2)
    )

    @torch.no_grad()
    def step() -> None:
        reference.adamw_(parameters, gradients, averages, squares, scalars, factor, copies)

    return step


def _own(parameters: list[nn.Parameter], copies: list[torch.Tensor], kernels: str) -> Call:
    optimizer = OnePassAdamW(
        parameters, lr=1e-4, kernels=kernels, keys={parameter: place for place, parameter in enumerate(parameters)}
    )
    for parameter, copy in zip(parameters, copies, strict=False):
        assert optimizer.keep_copy(parameter, copy)
    return lambda: clipped_step(optimizer, [], CLIP, 1e-4)
