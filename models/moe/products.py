"""Products of tokens with their experts' matrices: grouped, one by one, or with operands in block formats.

Tokens come sorted by expert. Where the weight gradient is quantised along them, every expert's group is a whole number of
blocks (`models.kernels.moe_permute.order_of`), so that no block holds tokens of two experts, or of two ranks.

Shapes: N tokens, E experts here, I inputs, O outputs; x [N, I], matrices [E, I, O].
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from models.formats.exact import exact_grouped_product, exact_values, grouped_product
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
        return grouped_product(x, matrices, rows.ends, self.loop)


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
        if torch.is_grad_enabled() and (x.requires_grad or matrices.requires_grad):
            return _Experts.apply(x, matrices, rows, self)
        return self.multiply(self._rows(x, -1, "forward", "activation", rows), matrices, rows, x.dtype)

    def activations(self, x: Tensor, rows: Rows) -> tuple[Operand, Operand]:
        """x [N, I] for forward, and what the gradient of the matrices will need of it."""
        return self._quantiser.pair(x, "activation", ("forward", "weight_gradient")) or (
            self._rows(x, -1, "forward", "activation", rows),
            self._rows(x, 0, "weight_gradient", "activation", rows),
        )

    def gradients(self, gradient: Tensor, rows: Rows) -> tuple[Operand, Operand]:
        """Output gradient [N, O] for the gradient of x and for that of the matrices."""
        return self._quantiser.pair(gradient, "gradient", ("input_gradient", "weight_gradient")) or (
            self._rows(gradient, -1, "input_gradient", "gradient", rows),
            self._rows(gradient, 0, "weight_gradient", "gradient", rows),
        )

    def multiply(self, activation: Operand, matrices: Tensor, rows: Rows, dtype: torch.dtype) -> Tensor:
        """Forward: [N, I] x [E, I, O] -> [N, O]."""
        return self._grouped(activation, self._matrices(matrices, 1, "forward", rows), rows, dtype)

    def for_input(self, gradients: Operand, matrices: Tensor, rows: Rows, dtype: torch.dtype) -> Tensor:
        """[N, O] x [E, I, O] -> [N, I]."""
        return self._grouped(
            gradients, self._matrices(matrices, 2, "input_gradient", rows), rows, dtype, turned="right"
        )

    def for_matrices(self, gradients: Operand, kept: Operand, rows: Rows, dtype: torch.dtype) -> Tensor:
        """[N, I] x [N, O] -> [E, I, O], sums over the rows of each expert."""
        return self._grouped(kept, gradients, rows, dtype, turned="left")

    def _grouped(self, left: Operand, right: Operand, rows: Rows, dtype: torch.dtype, turned: str = "none") -> Tensor:
        """`grouped_product`. turned: the side whose last two dimensions the product takes in the other order."""
        exact = exact_values(left, right, dtype, self._quantiser.kernels)
        a, b, scale = exact or (self._quantiser.values(left, dtype), self._quantiser.values(right, dtype), None)
        a = a.contiguous().t() if turned == "left" else a
        b = b.transpose(1, 2) if turned == "right" else b.contiguous()
        if exact is None:
            return grouped_product(a, b, rows.ends, self.product.loop)
        return exact_grouped_product(a, b, rows.ends, scale, self.product.loop)

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
        activation, kept = product.activations(x, rows)
        ctx.product, ctx.first_sample, ctx.kept = product, rows.first_sample, replace(kept, tensors=())
        ctx.save_for_backward(matrices, rows.ends, rows.expert, rows.tokens, *kept.tensors)
        return product.multiply(activation, matrices, rows, x.dtype)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
        product = ctx.product
        matrices, ends, expert, tokens, *kept = ctx.saved_tensors
        rows = Rows(ends, expert, tokens, ctx.first_sample)
        by_features, by_rows = product.gradients(gradient, rows)
        for_input = for_matrices = None
        if ctx.needs_input_grad[0]:
            for_input = product.for_input(by_features, matrices, rows, gradient.dtype)
        if ctx.needs_input_grad[1]:
            for_matrices = product.for_matrices(by_rows, replace(ctx.kept, tensors=tuple(kept)), rows, gradient.dtype)
        return for_input, for_matrices, None, None
