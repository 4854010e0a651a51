"""The products of a linear layer: plain, or with operands in block formats, in forward and in backward.

A quantised product keeps for backward not its activations but what the weight gradient will read of them: their elements and
scales along the tokens. Operands are quantised where they lie, and where sequence parallelism gathers them, that is what
travels. Values are exact in bfloat16, so a product of them in bfloat16 with float32 sums is the format's own product.

Shapes: S sequence, B batch, K inputs, N outputs; x [S, B, K], or [T, K] of tokens in any order.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from models.formats.exact import exact_product, exact_values
from models.formats.health import Health
from models.formats.native import multiply
from models.formats.operand import Operand, operand
from models.kernels.hadamard import random_signs, rotate
from models.kernels.mx_quantize import quantize_both
from models.parameters import Declaration
from models.precision import ProductConfig, ProductsConfig
from models.random import key_tensor, stream_key

SAMPLE = 40
"""Bits of a place in a sample: the samples before it take the bits above."""


class Product(Protocol):
    """x [..., K], weight [N, K], bias [N] or None, global index of the first sample -> [..., N]."""

    def __call__(self, x: Tensor, weight: Tensor, bias: Tensor | None, first_sample: int | Tensor) -> Tensor: ...


def plain_product(x: Tensor, weight: Tensor, bias: Tensor | None, first_sample: int | Tensor) -> Tensor:
    """In the dtype of the operands."""
    return F.linear(x, weight, bias)


class Axes(Protocol):
    """How the operands of a product are cut over processes."""

    def positions(self, length: int) -> Tensor:
        """Global positions int64 [S] of the rows of x."""

    def positions_out(self, length: int) -> Tensor:
        """Of the rows of the product."""

    def largest(self, amax: Tensor, over: str) -> Tensor:
        """Elementwise largest of magnitudes on the ranks that hold other parts along `over`: inputs, outputs, tokens (of x),
        rows (of the product), or tensor for all that hold parts of the same tensor."""

    def gather(self, x: Tensor, dim: int) -> Tensor:
        """Shares of a sequence along `dim`, of x as the product gets it -> whole."""

    def scatter(self, gradient: Tensor) -> Tensor:
        """Gradients of the whole sequence [S, B, K] -> their sum over the ranks that gathered, each its share."""


class WholeAxes:
    """One process: nothing is cut."""

    def positions(self, length: int) -> Tensor:
        return torch.arange(length)

    def positions_out(self, length: int) -> Tensor:
        return self.positions(length)

    def largest(self, amax: Tensor, over: str) -> Tensor:
        return amax

    def gather(self, x: Tensor, dim: int) -> Tensor:
        return x

    def scatter(self, gradient: Tensor) -> Tensor:
        return gradient


@dataclass(frozen=True)
class Line:
    """Where the local rows or columns of a weight stand in the whole one. slabs: (first here, first there, count)."""

    slabs: tuple[tuple[int, int, int], ...]
    total: int

    @staticmethod
    def of(declared: Declaration, dim: int) -> Line:
        """Of dim 0, the outputs, or dim 1, the inputs."""
        total = declared.shape[dim]
        return Line(tuple(declared.slabs()) if declared.dim == dim else ((0, 0, total),), total)

    def places(self, device: torch.device) -> Tensor:
        """int64 [count]."""
        return torch.cat([torch.arange(there, there + count, device=device) for _, there, count in self.slabs])


class Quantiser:
    """Operands of one layer's products in their formats. name: of the layer, which random numbers are a function of, with the
    seed."""

    def __init__(self, config: ProductsConfig, kernels: str, seed: int, name: str, axes: Axes, health: Health) -> None:
        self.config, self.kernels, self.axes = config, kernels, axes
        self._name, self._health = name, health
        self._keys = {key: key_tensor(stream_key(seed, "rounding", name, *key)) for key in _drawn(config)}
        self._signs = {
            product: random_signs(stream_key(seed, "hadamard", name, product), getattr(config, product).hadamard_size)
            for product in ("forward", "input_gradient", "weight_gradient")
            if getattr(config, product).hadamard == "random"
        }

    def operand(
        self,
        x: Tensor,
        dim: int,
        product: str,
        role: str,
        over: str,
        places: Callable[[], tuple[Tensor, ...]],
        first_sample: int | Tensor,
    ) -> Operand:
        """x along `dim` for a product, as its activation, weight or gradient. over: see `Axes.largest`; places: int64 [extent]
        of every dimension, whose sum is where an element stands in the whole model's tensor; first_sample: which micro-batch
        it is of."""
        chosen: ProductConfig = getattr(self.config, product)
        format: str = getattr(chosen, role)
        rounding = chosen.gradient_rounding if role == "gradient" else chosen.rounding
        if chosen.hadamard != "off":
            signs = self._signs.get(product)
            signs = None if signs is None else signs.to(x.device, non_blocking=True)
            x = rotate(x, dim, chosen.hadamard_size, signs, self.kernels)
        if format == "none":
            return Operand((x,))
        drawn = None
        if rounding == "stochastic":
            drawn = self._keys[product, role].to(x.device, non_blocking=True), places()
        found = operand(
            x,
            format,
            dim,
            scale=self.config.scale,
            scope=self.config.fp8_scale,
            rounding=rounding,
            square=self.config.square_weights and role == "weight",
            drawn=drawn,
            largest=lambda amax, whole: self.axes.largest(amax, "tensor" if whole else over),
            kernels=self.kernels,
        )
        if self._health.recording:  # never where layers are compiled
            self._health.record((self._name, product, role, format), first_sample, x, found)
        return found

    def pair(self, x: Tensor, role: str, products: tuple[str, str]) -> tuple[Operand, Operand] | None:
        """x [S, B, K] for a product over its last dim and for one over its tokens, read once; None where the two differ in more
        than their formats, or are not both of blocks that rounding alone decides."""
        first, second = (getattr(self.config, product) for product in products)
        rounding = "gradient_rounding" if role == "gradient" else "rounding"
        formats = getattr(first, role), getattr(second, role)
        plain = first.hadamard == second.hadamard == "off" and all(name.startswith("mx") for name in formats)
        chosen = getattr(first, rounding)
        if not plain or chosen != getattr(second, rounding) or chosen == "stochastic" or self._health.recording:
            return None
        row, column = quantize_both(x, *formats, self.config.scale, chosen, kernels=self.kernels)
        return Operand.of(row), Operand.of(column)

    def values(self, found: Operand, dtype: torch.dtype) -> Tensor:
        """What an operand stands for."""
        return found.values(dtype, self.kernels)

    def multiply(self, x: Operand, weight: Operand, dtype: torch.dtype, along: int = 1) -> Tensor:
        """Product over the last dim of x [..., R] and the dim `along` of a weight, 1: [..., R] x [N, R] -> [..., N]."""
        native = multiply(x, weight, dtype)
        if native is not None:
            return native
        exact = exact_values(x, weight, dtype, self.kernels)
        if exact is None:
            matrix = self.values(weight, dtype)
            return F.linear(self.values(x, dtype), matrix if along == 1 else matrix.t())
        rows, matrix, scale = exact
        y = exact_product(rows.flatten(0, -2), matrix.t() if along == 1 else matrix, scale)
        return y.view(*rows.shape[:-1], y.shape[-1])

    def multiply_tokens(self, y: Operand, x: Operand, dtype: torch.dtype) -> Tensor:
        """Product over the tokens: y [S, B, N] and x [S, B, K] -> [N, K]."""
        native = multiply(y.tokens_last(), x.tokens_last(), dtype) if y.layout and x.layout else None
        if native is not None:
            return native
        exact = exact_values(y, x, dtype, self.kernels)
        if exact is None:
            return self.values(y, dtype).flatten(0, -2).t() @ self.values(x, dtype).flatten(0, -2)
        outputs, inputs, scale = exact
        return exact_product(outputs.flatten(0, -2).t(), inputs.flatten(0, -2), scale)


class QuantisedProduct:
    """The three products of a linear layer. declared: of its weight [N, K]."""

    def __init__(
        self,
        config: ProductsConfig,
        kernels: str,
        seed: int,
        name: str,
        declared: Declaration,
        axes: Axes,
        health: Health,
    ) -> None:
        self.axes, self.inputs, self.outputs = axes, Line.of(declared, 1), Line.of(declared, 0)
        self._quantiser = Quantiser(config, kernels, seed, name, axes, health)

    def __call__(self, x: Tensor, weight: Tensor, bias: Tensor | None, first_sample: int | Tensor) -> Tensor:
        learning = torch.is_grad_enabled() and (x.requires_grad or weight.requires_grad)
        if learning:
            y = _Linear.apply(x, weight, first_sample, self)
        else:
            y = self.multiply(self._activations(x, -1, "forward", first_sample), weight, first_sample, x.dtype)
        return y if bias is None else y + bias

    def activations(self, x: Tensor, first_sample: int | Tensor) -> tuple[Operand, Operand]:
        """x [S, B, K] for forward, and what the gradient of the weight will need of it."""
        return self._quantiser.pair(x, "activation", ("forward", "weight_gradient")) or (
            self._activations(x, -1, "forward", first_sample),
            self._activations(x, 0, "weight_gradient", first_sample),
        )

    def gradients(self, gradient: Tensor, first_sample: int | Tensor) -> tuple[Operand, Operand]:
        """Output gradient [S, B, N] for the gradient of x and for that of the weight."""
        return self._quantiser.pair(gradient, "gradient", ("input_gradient", "weight_gradient")) or (
            self._gradients(gradient, -1, "input_gradient", first_sample),
            self._gradients(gradient, 0, "weight_gradient", first_sample),
        )

    def multiply(self, activation: Operand, weight: Tensor, first_sample: int | Tensor, dtype: torch.dtype) -> Tensor:
        """Forward: [S, B, K] x [N, K] -> [S, B, N]."""
        weights = self._weights(weight, -1, "forward", first_sample)
        return self._quantiser.multiply(activation.gathered(self.axes.gather), weights, dtype)

    def for_input(self, gradients: Operand, weight: Tensor, first_sample: int | Tensor, dtype: torch.dtype) -> Tensor:
        """Gradient of x, summed over what gathered it: [S, B, N] x [N, K] -> [S, B, K]."""
        weights = self._weights(weight, 0, "input_gradient", first_sample)
        return self.axes.scatter(self._quantiser.multiply(gradients, weights, dtype, along=0))

    def for_weight(self, gradients: Operand, kept: Operand, dtype: torch.dtype) -> Tensor:
        """Gradient of the weight: [S, B, N] x [S, B, K] -> [N, K]."""
        return self._quantiser.multiply_tokens(gradients, kept.gathered(self.axes.gather), dtype)

    def _activations(self, x: Tensor, dim: int, product: str, first_sample: int | Tensor) -> Operand:
        def places() -> tuple[Tensor, ...]:
            return _token_places(x, self.axes.positions(x.shape[0]), self.inputs, first_sample)

        return self._quantiser.operand(
            x, dim, product, "activation", "tokens" if dim == 0 else "inputs", places, first_sample
        )

    def _gradients(self, gradient: Tensor, dim: int, product: str, first_sample: int | Tensor) -> Operand:
        def places() -> tuple[Tensor, ...]:
            return _token_places(gradient, self.axes.positions_out(gradient.shape[0]), self.outputs, first_sample)

        return self._quantiser.operand(
            gradient, dim, product, "gradient", "rows" if dim == 0 else "outputs", places, first_sample
        )

    def _weights(self, weight: Tensor, dim: int, product: str, first_sample: int | Tensor) -> Operand:
        def places() -> tuple[Tensor, ...]:
            rows, columns = self.outputs.places(weight.device), self.inputs.places(weight.device)
            # another rounding in every step, the same on all that compute the same samples
            return rows * self.inputs.total + (first_sample << SAMPLE), columns

        return self._quantiser.operand(
            weight, dim, product, "weight", "outputs" if dim == 0 else "inputs", places, first_sample
        )


def _token_places(x: Tensor, positions: Tensor, line: Line, first_sample: int | Tensor) -> tuple[Tensor, ...]:
    """For [S, B, features]: a sample's number stands above what is within it."""
    positions = positions.to(x.device, non_blocking=True) * line.total
    samples = (torch.arange(x.shape[1], device=x.device) + first_sample) << SAMPLE
    return positions, samples, line.places(x.device)


def round_rows(x: Tensor, config: ProductsConfig) -> Tensor:
    """Vectors [..., H] in the format of forward's weights, each by itself; the gradient passes as it is."""
    format = config.forward.weight
    if format == "none":
        return x
    rounding = "nearest_even" if config.forward.rounding == "stochastic" else config.forward.rounding
    rows = x.detach().flatten(0, -2)
    found = operand(
        rows,
        format,
        -1,
        scale=config.scale,
        scope="row",
        rounding=rounding,
        square=False,
        drawn=None,
        largest=lambda amax, whole: amax,
    )
    return x + (found.values(x.dtype).view_as(x) - x.detach())


class _Linear(torch.autograd.Function):
    """x [..., K], weight [N, K] -> [..., N], quantised in all three products."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, first_sample: int | Tensor, product: QuantisedProduct) -> Tensor:
        activation, kept = product.activations(x, first_sample)
        ctx.product, ctx.kept = product, replace(kept, tensors=())
        ctx.first_sample = first_sample
        ctx.save_for_backward(weight, *kept.tensors)
        return product.multiply(activation, weight, first_sample, x.dtype)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
        product, first_sample = ctx.product, ctx.first_sample
        weight, *kept = ctx.saved_tensors
        by_features, by_tokens = product.gradients(gradient, first_sample)
        for_input = for_weight = None
        if ctx.needs_input_grad[0]:
            for_input = product.for_input(by_features, weight, first_sample, gradient.dtype)
        if ctx.needs_input_grad[1]:
            for_weight = product.for_weight(by_tokens, replace(ctx.kept, tensors=tuple(kept)), gradient.dtype)
        return for_input, for_weight, None, None


def _drawn(config: ProductsConfig) -> list[tuple[str, str]]:
    """Operands that are rounded at random, by product and role."""
    found = []
    for name in ("forward", "input_gradient", "weight_gradient"):
        product: ProductConfig = getattr(config, name)
        for role, format in (("activation", product.activation), ("weight", product.weight)):
            if format != "none" and product.rounding == "stochastic":
                found.append((name, role))
        if product.gradient != "none" and product.gradient_rounding == "stochastic":
            found.append((name, "gradient"))
    return found
