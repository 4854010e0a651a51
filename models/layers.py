"""What models are made of: the `Layers` protocol and its plain factory.

A model asks a factory for its parts, so a model file knows no mesh. `parallel/layers.py` has the factory over
megatron-core; fused kernels and number formats are choices that a factory is given.

Shapes: S sequence (this rank's share where context or sequence parallelism cuts it), B batch, H hidden. Activations are
[S, B, H], sequence first as in megatron-core, since sequence parallelism cuts dim 0.
"""

from __future__ import annotations

import copy
from functools import partial
from typing import Protocol, Self

import torch
from torch import Tensor, nn

from models.core import AttentionCore, CoreSpec, Spans
from models.formats.health import Health
from models.linear import Embedding, Head, Linear, cross_entropy
from models.loss import PLAIN, Terms
from models.moe.axis import ExpertAxis, LocalExperts
from models.moe.routing import Routing
from models.parameters import Declaration, declaration, declare
from models.precision import UNQUANTISED, ProductsConfig
from models.products import Axes, Product, QuantisedProduct, WholeAxes, plain_product, round_rows
from models.random import Clock
from models.varlen import core_of


class Loss(Protocol):
    """Cross entropy, (logits [S, B, share of V], targets int64 [S, B]) -> float32 [S, B], nats."""

    def __call__(self, logits: Tensor, targets: Tensor, terms: Terms = PLAIN, *, in_place: bool = False) -> Tensor:
        """in_place: backward, which then runs once, may write over the logits."""


class Layers(Protocol):
    """A factory of layers. Column layers cut their outputs over the tensor axis, row layers their inputs.

    kernels: what computes what lies between products, of `models.kernels.choice.CHOICES`; products: what the products of
    linear layers are quantised to; name: of the part of the model that asks.
    """

    dtype: torch.dtype
    kernels: str
    products: ProductsConfig
    name: str
    clock: Clock
    routing: Routing
    health: Health
    experts: ExpertAxis
    degree: int
    rank: int

    def within(self, name: str, *, high: bool = False) -> Self:
        """The factory for a part of the model by this name; high: nothing in it is quantised."""

    def share(self, count: int) -> int:
        """How many of `count` heads or features this rank holds."""

    def spans(self, length: int) -> Spans:
        """Global positions of `length` local rows as they flow between blocks."""

    def spans_in_heads(self, length: int) -> Spans:
        """Global positions of `length` local rows where this rank has a share of the heads."""

    def uncut(self, length: int) -> int:
        """Sequence length of which `length` positions are this rank's share."""

    def feature_start(self, count: int) -> int:
        """Global index of the first of `count` local heads or features."""

    def attention_core(self, spec: CoreSpec, heads: int) -> AttentionCore:
        """Attention of this rank's `heads` query heads."""

    def column(self, name: str, inputs: int, parts: tuple[int, ...], *, bias: bool, std: float) -> nn.Module:
        """Linear layer, called with x and the first sample: [S, B, inputs] -> [S_full, B, share of every part], the parts side
        by side."""

    def row(self, name: str, inputs: int, outputs: int, *, bias: bool, std: float) -> nn.Module:
        """Linear layer, called with x and the first sample: [S_full, B, share of inputs] -> [S, B, outputs]."""

    def embedding(self, rows: int, hidden: int, *, std: float) -> nn.Module:
        """Token embedding, tokens [B, S] -> [S, B, H]; `weight` may be shared with `head`."""

    def head(self, hidden: int, rows: int, *, std: float, tied: bool) -> nn.Module:
        """Output projection, called with x, a weight or None, what is asked or None, and the first sample: [S, B, H] -> logits
        [S_full, B, share of rows], or the losses float32 [S_full, B] of what is asked."""

    def replicated(self, parameter: nn.Parameter, *, std: float = 0.0, constant: float = 0.0) -> nn.Parameter:
        """Declare a parameter that every rank holds whole."""

    def use(self, parameter: Tensor) -> Tensor:
        """A replicated parameter as it enters arithmetic on this rank's share of the sequence."""

    def use_in_heads(self, parameter: Tensor) -> Tensor:
        """A replicated parameter as it enters arithmetic on this rank's share of the heads."""

    def enter(self, x: Tensor) -> Tensor:
        """Into a tensor-parallel region: [S, B, …] -> [S_full, B, …], whose gradient is summed over the tensor axis."""

    def leave(self, x: Tensor) -> Tensor:
        """Out of a tensor-parallel region: parts [S_full, B, H] -> their sum [S, B, H]."""

    def sum_over_tensor(self, x: Tensor) -> Tensor:
        """Sum over the tensor axis of what each rank has computed of its heads or features; so is the gradient."""

    def gather_choices(self, choices: Tensor) -> Tensor:
        """Integers [S, B, …] -> [S_full, B, …]."""

    def whole_sequence(self, x: Tensor) -> Tensor:
        """[S_full, B, …] of this rank of the context axis -> the whole sequences', in order; without gradient."""

    def own_positions(self, x: Tensor) -> Tensor:
        """Back from `whole_sequence` to what this rank of the context axis holds."""

    def count_over_context(self, counts: Tensor) -> Tensor:
        """Sum of integers over the context axis."""

    def product_axes(self, cut: str) -> Axes:
        """How the operands of a product lie whose weight the tensor axis cuts along `outputs` or `inputs`, of a whole x; of one
        that every rank holds whole (`none`), x as it flows between blocks."""

    def loss(self) -> Loss:
        """Cross entropy of the head's logits."""


class Named:
    """What factories know of the part of the model that asks."""

    products: ProductsConfig
    name: str = ""

    def within(self, name: str, *, high: bool = False) -> Self:
        found = copy.copy(self)
        found.name = f"{self.name}.{name}" if self.name else name
        if high:
            found.products = UNQUANTISED
        return found

    def rounded_embedding(self, embedding: nn.Module) -> nn.Module:
        """An embedding [B, S] -> [S, B, H] whose vectors are in the weights' format, where `high` does not name it."""
        if self.products.quantised and "embeddings" not in self.products.high:
            embedding.register_forward_hook(lambda module, inputs, output: round_rows(output, self.products))
        return embedding

    def quantised_head(self) -> bool:
        """Whether the head's products are quantised."""
        return self.products.quantised and "head" not in self.products.high


class PlainLayers(Named):
    """The factory for one process: everything whole."""

    def __init__(
        self,
        dtype: torch.dtype = torch.float32,
        clock: Clock | None = None,
        kernels: str = "auto",
        products: ProductsConfig = UNQUANTISED,
    ) -> None:
        self.dtype, self.kernels, self.products = dtype, kernels, products
        self.clock = clock or Clock(0)
        self.routing, self.health = Routing(), Health()
        self.experts: ExpertAxis = LocalExperts()
        self.degree, self.rank = 1, 0

    def share(self, count: int) -> int:
        return count

    def spans(self, length: int) -> Spans:
        return ((0, length),)

    def spans_in_heads(self, length: int) -> Spans:
        return self.spans(length)

    def attention_core(self, spec: CoreSpec, heads: int) -> AttentionCore:
        return core_of(spec, self.clock, self.feature_start(heads))

    def uncut(self, length: int) -> int:
        return length

    def feature_start(self, count: int) -> int:
        return 0

    def column(self, name: str, inputs: int, parts: tuple[int, ...], *, bias: bool, std: float) -> nn.Module:
        return self._linear(Linear(inputs, sum(parts), bias=bias, std=std, dtype=self.dtype), name)

    def row(self, name: str, inputs: int, outputs: int, *, bias: bool, std: float) -> nn.Module:
        return self._linear(Linear(inputs, outputs, bias=bias, std=std, dtype=self.dtype), name)

    def _linear(self, linear: Linear, name: str) -> Linear:
        if self.products.quantised:
            path, axes = f"{self.name}.{name}", self.product_axes("none")
            linear.product = quantised_product(self, path, declaration(linear.weight), axes)
        return linear

    def product_axes(self, cut: str) -> Axes:
        return WholeAxes()

    def embedding(self, rows: int, hidden: int, *, std: float) -> nn.Module:
        return self.rounded_embedding(Embedding(rows, hidden, std=std, dtype=self.dtype))

    def head(self, hidden: int, rows: int, *, std: float, tied: bool) -> nn.Module:
        head = Head(hidden, rows, std=std, tied=tied, dtype=self.dtype, kernels=self.kernels)
        if self.quantised_head():
            declared = Declaration((rows, hidden), None, (), 1, 0, 0.0)
            head.product = quantised_product(self, "head.projection", declared, self.product_axes("none"))
        return head

    def replicated(self, parameter: nn.Parameter, *, std: float = 0.0, constant: float = 0.0) -> nn.Parameter:
        declare(parameter, std=std, constant=constant)
        return parameter

    def use(self, parameter: Tensor) -> Tensor:
        return parameter

    def use_in_heads(self, parameter: Tensor) -> Tensor:
        return parameter

    def enter(self, x: Tensor) -> Tensor:
        return x

    def leave(self, x: Tensor) -> Tensor:
        return x

    def sum_over_tensor(self, x: Tensor) -> Tensor:
        return x

    def gather_choices(self, choices: Tensor) -> Tensor:
        return choices

    def whole_sequence(self, x: Tensor) -> Tensor:
        return x

    def own_positions(self, x: Tensor) -> Tensor:
        return x

    def count_over_context(self, counts: Tensor) -> Tensor:
        return counts

    def loss(self) -> Loss:
        return partial(cross_entropy, kernels=self.kernels)


def replicated_product(layers: Layers, name: str, weight: Tensor) -> Product:
    """The product with a weight that every rank holds whole, quantised where `high` does not name it."""
    products = layers.products
    if not products.quantised or name in products.high:
        return plain_product
    return quantised_product(layers, f"{layers.name}.{name}", declaration(weight), layers.product_axes("none"))


def quantised_product(layers: Layers, path: str, declared: Declaration, axes: Axes) -> QuantisedProduct:
    """The products of the layer at `path`, whose weight is declared so, by what a factory says of formats and kernels."""
    return QuantisedProduct(layers.products, layers.kernels, layers.clock.seed, path, declared, axes, layers.health)


def scaled(x: Tensor, factor: float) -> Tensor:
    """x times a constant, x itself where that is 1."""
    return x if factor == 1.0 else x * factor
