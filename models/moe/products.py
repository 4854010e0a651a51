"""Products of tokens with their experts' matrices: grouped, one by one, or with operands in block formats.

Tokens come sorted by expert. Where the weight gradient is quantised along them, every expert's group is a whole number of
blocks (`models.kernels.moe_permute.order_of`), so that no block holds tokens of two experts, or of two ranks.

Shapes: N tokens, E experts here, I inputs, O outputs; x [N, I], matrices [E, I, O].
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from models.formats.health import Health
from models.formats.operand import Operand
from models.precision import ProductsConfig
from models.products import SAMPLE, Axes, Line, Quantiser

POSITION = 24
"""Bits of a token's position in a number that tells sample and position."""


@dataclass(frozen=True)
class Rows:
    """How N rows, sorted by expert, belong to the experts of this rank. ends: int32 [held], one past each expert's last row;
    expert: int64 [N], whose a row is. tokens: int64 [N], (sample << POSITION) + position of each, where rounding needs it.
    first_sample: of the micro-batch, where what operands become is counted."""

    ends: Tensor
    expert: Tensor
    tokens: Tensor | None = None
    first_sample: int = 0

    @staticmethod
    def of(counts: Tensor, rows: int, tokens: Tensor | None = None, first_sample: int = 0) -> Rows:
        """From int64 counts [held] that sum to `rows`."""
        expert = torch.repeat_interleave(counts, output_size=rows)
        return Rows(counts.cumsum(0).to(torch.int32), expert, tokens, first_sample)


class Product:
    """Rows of x [N, I] of each expert times its matrix [I, O] -> [N, O].

    grouped: one call for all experts. loop: one product an expert, the reference, for widths too that are no multiple of 16
    bytes.
    """

    def __init__(self, kind: str) -> None:
        self.loop = kind == "loop"

    def __call__(self, x: Tensor, matrices: Tensor, rows: Rows) -> Tensor:
        if not self.loop:
            return F.grouped_mm(x, matrices, offs=rows.ends)
        return torch.cat([x[begin:end] @ matrix for matrix, (begin, end) in zip(matrices, _spans(rows), strict=True)])

    def transposed(self, x: Tensor, y: Tensor, rows: Rows) -> Tensor:
        """x [N, I] and y [N, O] -> of each expert the sum of xᵀ y over its rows, [E, I, O]."""
        if not self.loop:
            return F.grouped_mm(x.t(), y, offs=rows.ends)
        return torch.stack([x[begin:end].t() @ y[begin:end] for begin, end in _spans(rows)])


def _spans(rows: Rows) -> list[tuple[int, int]]:
    ends = rows.ends.tolist()
    return list(zip([0, *ends[:-1]], ends, strict=True))


class QuantisedExperts:
    """The same three products with operands in block formats. first, experts: of all experts the first that is here, and how
    many there are; for random numbers."""

    def __init__(
        self,
        product: Product,
        config: ProductsConfig,
        kernels: str,
        seed: int,
        name: str,
        lines: tuple[Line, Line],
        axes: Axes,
        first: int,
        experts: int,
        health: Health,
    ) -> None:
        self.product, self.inputs, self.outputs, self.first, self.experts = product, *lines, first, experts
        self._quantiser = Quantiser(config, kernels, seed, name, axes, health)

    def __call__(self, x: Tensor, matrices: Tensor, rows: Rows) -> Tensor:
        learning = torch.is_grad_enabled() and (x.requires_grad or matrices.requires_grad)
        return _Experts.apply(x, matrices, rows, self) if learning else self.multiply(x, matrices, rows)

    def multiply(self, x: Tensor, matrices: Tensor, rows: Rows) -> Tensor:
        """Forward."""
        value = self._quantiser.values
        activation = value(self._rows(x, -1, "forward", "activation", rows), x.dtype)
        return self.product(activation, value(self._matrices(matrices, 1, "forward", rows), x.dtype), rows)

    def keep(self, x: Tensor, rows: Rows) -> Operand:
        """What the gradient of the matrices will need of x."""
        return self._rows(x, 0, "weight_gradient", "activation", rows)

    def for_input(self, gradient: Tensor, matrices: Tensor, rows: Rows) -> Tensor:
        """[N, O] -> [N, I]."""
        value = self._quantiser.values
        gradients = value(self._rows(gradient, -1, "input_gradient", "gradient", rows), gradient.dtype)
        weights = value(self._matrices(matrices, 2, "input_gradient", rows), gradient.dtype)
        return self.product(gradients.contiguous(), weights.transpose(1, 2).contiguous(), rows)

    def for_matrices(self, gradient: Tensor, kept: Operand, rows: Rows) -> Tensor:
        """[E, I, O]."""
        value = self._quantiser.values
        gradients = value(self._rows(gradient, 0, "weight_gradient", "gradient", rows), gradient.dtype)
        return self.product.transposed(value(kept, gradient.dtype), gradients.contiguous(), rows)

    def _rows(self, x: Tensor, dim: int, product: str, role: str, rows: Rows) -> Operand:
        line = self.outputs if role == "gradient" else self.inputs

        def places() -> tuple[Tensor, ...]:
            assert rows.tokens is not None, "stochastic rounding was not told of the tokens"
            sample, position = rows.tokens >> POSITION, rows.tokens & ((1 << POSITION) - 1)
            place = position * self.experts + self.first + rows.expert
            return (sample << SAMPLE) + place * line.total, line.places(x.device)

        over = {"gradient": ("rows", "outputs"), "activation": ("tokens", "inputs")}[role][dim != 0]
        return self._quantiser.operand(x, dim, product, role, over, places, rows.first_sample)

    def _matrices(self, matrices: Tensor, dim: int, product: str, rows: Rows) -> Operand:
        def places() -> tuple[Tensor, ...]:
            device = matrices.device
            expert = torch.arange(self.first, self.first + matrices.shape[0], device=device)
            size = self.inputs.total * self.outputs.total
            return expert * size, self.inputs.places(device) * self.outputs.total, self.outputs.places(device)

        over = "inputs" if dim == 1 else "outputs"
        return self._quantiser.operand(matrices, dim, product, "weight", over, places, rows.first_sample)


class _Experts(torch.autograd.Function):
    """x [N, I], matrices [E, I, O] -> [N, O], quantised in all three products."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, matrices: Tensor, rows: Rows, product: QuantisedExperts) -> Tensor:
        kept = product.keep(x, rows)
        ctx.product, ctx.first_sample, ctx.kept = product, rows.first_sample, replace(kept, tensors=())
        ctx.save_for_backward(matrices, rows.ends, rows.expert, rows.tokens, *kept.tensors)
        return product.multiply(x, matrices, rows)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
        matrices, ends, expert, tokens, *kept = ctx.saved_tensors
        rows = Rows(ends, expert, tokens, ctx.first_sample)
        for_input = for_matrices = None
        if ctx.needs_input_grad[0]:
            for_input = ctx.product.for_input(gradient, matrices, rows)
        if ctx.needs_input_grad[1]:
            for_matrices = ctx.product.for_matrices(gradient, replace(ctx.kept, tensors=tuple(kept)), rows)
        return for_input, for_matrices, None, None
