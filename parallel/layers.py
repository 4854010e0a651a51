"""The factory of layers over megatron-core's tensor-parallel ones, with sequence parallelism.

Replicated parameters that act on a share of the sequence (norm gains, row biases) or of the heads pass through
`copy_to_tensor_model_parallel_region`: identity forward, sum over the tensor axis backward. Their gradients are whole
as soon as autograd is done, so no engine has to know about them.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from models.core import AttentionCore, CoreSpec, Spans, slice_spans
from models.formats.health import Health
from models.layers import Layers, Loss, Named, PlainLayers, quantised_product
from models.linear import cross_entropy, head_losses
from models.loss import PLAIN, Terms
from models.moe.axis import ExpertAxis, LocalExperts
from models.moe.routing import Routing
from models.parameters import Declaration, declaration, declare
from models.precision import UNQUANTISED, ProductsConfig
from models.products import Axes, QuantisedProduct
from models.random import Asked, Clock
from parallel.context import AcrossContext, ContextLayers, core_for, cut_for
from parallel.experts import MeshExperts
from parallel.megatron import (
    ColumnParallelLinear,
    ModelParallelConfig,
    RowParallelLinear,
    VocabParallelEmbedding,
    copy_to_tensor_model_parallel_region,
    linear_with_grad_accumulation_and_async_allreduce,
)
from parallel.mesh import Mesh
from parallel.products import MeshAxes
from parallel.regions import (
    GatherSequence,
    KeepShare,
    ScatterSequence,
    Sum,
    SumGradient,
    Vocabulary,
    all_gather,
    reduce_scatter,
)


def layers_for(
    mesh: Mesh, dtype: torch.dtype, clock: Clock, kernels: str = "auto", products: ProductsConfig = UNQUANTISED
) -> Layers:
    """The factory for a layout: megatron-core's layers where tensor > 1, plain modules where it is 1. kernels, products: see
    `Layers`."""
    layers: Layers
    if mesh.config.tensor > 1:
        layers = MegatronLayers(mesh, dtype, clock, kernels, products)
    elif mesh.config.context > 1:
        layers = ContextLayers(mesh, dtype, clock, kernels, products)
    else:
        layers = PlainLayers(dtype, clock, kernels, products)
    if mesh.config.expert > 1:
        layers.experts = MeshExperts(mesh)
    return layers


def gather_vocabulary(logits: Tensor, mesh: Mesh) -> Tensor:
    """[B, share of V] -> [B, V] on every rank of the tensor axis."""
    if mesh.config.tensor == 1:
        return logits
    shares = [torch.empty_like(logits) for _ in range(mesh.config.tensor)]
    dist.all_gather(shares, logits.contiguous(), group=mesh.tensor_group)
    return torch.cat(shares, dim=-1)


def logits_at(logits: Tensor | None, position: int, length: int, mesh: Mesh) -> Tensor | None:
    """Logits float32 [B, V] after a position of sequences of `length`, on every rank of the tensor and context axes.

    logits: [S/C, B, share of V] (of an encoder-decoder the last rows), or None on ranks without the head, who are told None.
    """
    if logits is None:
        return None
    rank, row = cut_for(mesh).find(position, length)
    row -= length // mesh.config.context - logits.shape[0]
    found = gather_vocabulary(logits[row].float(), mesh).contiguous()
    if mesh.config.context > 1:
        dist.broadcast(found, group=mesh.context_group, group_src=rank)
    return found


class MegatronLayers(AcrossContext, Named):
    """Layers cut over the tensor axis of a mesh."""

    def __init__(
        self,
        mesh: Mesh,
        dtype: torch.dtype,
        clock: Clock,
        kernels: str = "auto",
        products: ProductsConfig = UNQUANTISED,
    ) -> None:
        self.dtype, self.kernels, self.products, self.clock = dtype, kernels, products, clock
        self._mesh, self._cut = mesh, cut_for(mesh)
        self.routing, self.health = Routing(), Health()
        self.experts: ExpertAxis = LocalExperts()
        self.group, self.rank, self.degree = mesh.tensor_group, mesh.place.tensor, mesh.config.tensor
        self.sequence_parallel = mesh.config.sequence_parallel
        # megatron-core sums input gradients asynchronously inside its product, which no compiler can follow
        self.sum_at_entry = mesh.config.compile != "none"
        # use_cpu_initialization allocates with torch.empty on the current default device, which serves every device;
        # perform_initialization=False leaves the values to us, so no rank ever holds a whole matrix.
        self.config = ModelParallelConfig(
            tensor_model_parallel_size=self.degree,
            use_cpu_initialization=True,
            perform_initialization=False,
            gradient_accumulation_fusion=False,
            params_dtype=dtype,
        )

    def share(self, count: int) -> int:
        return count // self.degree

    def uncut(self, length: int) -> int:
        return self._cut.degree * (length * self.degree if self.sequence_parallel else length)

    def spans(self, length: int) -> Spans:
        whole = self._cut.spans(self.uncut(length))
        return slice_spans(whole, self.rank * length, (self.rank + 1) * length) if self.sequence_parallel else whole

    def spans_in_heads(self, length: int) -> Spans:
        return self._cut.spans(length * self._cut.degree)

    def attention_core(self, spec: CoreSpec, heads: int) -> AttentionCore:
        return core_for(self._mesh, spec, self.clock, heads)

    def feature_start(self, count: int) -> int:
        return self.rank * count

    def column(self, name: str, inputs: int, parts: tuple[int, ...], *, bias: bool, std: float) -> nn.Module:
        layer = _Column(self, inputs, parts, bias=bias, std=std)
        if self.products.quantised:
            layer.product = self._product(f"{self.name}.{name}", layer.declared, "outputs")
        return layer

    def row(self, name: str, inputs: int, outputs: int, *, bias: bool, std: float) -> nn.Module:
        layer = _Row(self, inputs, outputs, bias=bias, std=std)
        if self.products.quantised:
            layer.product = self._product(f"{self.name}.{name}", declaration(layer.weight), "inputs")
        return layer

    def product_axes(self, cut: str) -> Axes:
        return MeshAxes(self._mesh, cut, self.spans if cut == "none" else self.spans_in_heads)

    def _product(self, name: str, declared: Declaration, cut: str) -> QuantisedProduct:
        axes = self.product_axes(cut)
        if self.sequence_parallel and cut == "outputs":
            gather, scatter = (partial(collective, group=self.group) for collective in (all_gather, reduce_scatter))
            axes = MeshAxes(self._mesh, cut, self.spans_in_heads, self.spans, gather, scatter)
        return quantised_product(self, name, declared, axes)

    def embedding(self, rows: int, hidden: int, *, std: float) -> nn.Module:
        return self.rounded_embedding(_Embedding(self, rows, hidden, std=std))

    def head(self, hidden: int, rows: int, *, std: float, tied: bool) -> nn.Module:
        layer = _Head(self, hidden, (rows,), bias=False, std=std, tied=tied)
        if self.quantised_head():
            layer.product = self._product("head.projection", layer.declared, "outputs")
        return layer

    def replicated(self, parameter: nn.Parameter, *, std: float = 0.0, constant: float = 0.0) -> nn.Parameter:
        declare(parameter, std=std, constant=constant)
        return parameter

    def use(self, parameter: Tensor) -> Tensor:
        return self.use_in_heads(parameter) if self.sequence_parallel else parameter

    def use_in_heads(self, parameter: Tensor) -> Tensor:
        return copy_to_tensor_model_parallel_region(parameter, group=self.group)

    def loss(self) -> Loss:
        return self._loss

    def _loss(self, logits: Tensor, targets: Tensor, terms: Terms = PLAIN, *, in_place: bool = False) -> Tensor:
        axis = Vocabulary(self.group, logits.shape[-1])
        return cross_entropy(logits, targets, terms, in_place=in_place, axis=axis, kernels=self.kernels)

    def enter(self, x: Tensor) -> Tensor:
        return (GatherSequence if self.sequence_parallel else SumGradient).apply(x, self.group)

    def leave(self, x: Tensor) -> Tensor:
        return (ScatterSequence if self.sequence_parallel else Sum).apply(x, self.group)

    def sum_over_tensor(self, x: Tensor) -> Tensor:
        return Sum.apply(SumGradient.apply(x, self.group), self.group)

    def gather_choices(self, choices: Tensor) -> Tensor:
        return all_gather(choices, self.group) if self.sequence_parallel else choices


class _Column(nn.Module):
    """Column-parallel linear layer; tied heads are handed the embedding's weight. product: where it is quantised, whose
    products take the place of megatron-core's."""

    product: QuantisedProduct | None = None

    def __init__(
        self, layers: MegatronLayers, inputs: int, parts: tuple[int, ...], *, bias: bool, std: float, tied: bool = False
    ) -> None:
        super().__init__()
        self._layers = layers
        linear = ColumnParallelLinear(
            inputs,
            sum(parts),
            config=layers.config,
            init_method=_no_init,
            bias=bias,
            gather_output=False,
            skip_weight_param_allocation=tied,
            # `enter` sums the input gradient
            disable_grad_reduce=layers.sequence_parallel or layers.sum_at_entry,
            tp_group=layers.group,
        )
        self.weight, self.bias = linear.weight, linear.bias
        object.__setattr__(self, "linear", linear)  # not a submodule: its parameters are ours, under our names
        outputs = sum(parts) // layers.degree
        for parameter, shape, spread in ((self.weight, (outputs, inputs), std), (self.bias, (outputs,), 0.0)):
            if parameter is not None:
                parameter.tensor_model_parallel = True
                declare(parameter, shape=shape, std=spread, dim=0, parts=parts, degree=layers.degree, rank=layers.rank)
        self.declared = Declaration((sum(parts), inputs), 0, parts, layers.degree, layers.rank, std)

    def forward(self, x: Tensor, first_sample: int | Tensor = 0, weight: Tensor | None = None) -> Tensor:
        """x: [S(/T), B, inputs] -> [S, B, share of outputs]."""
        if self.product is not None:
            x = x if self._layers.sequence_parallel else self._layers.enter(x)  # else the product gathers, and scatters
            return self.product(x, self.weight if weight is None else weight, self.bias, first_sample)
        if (
            self._layers.sequence_parallel or self._layers.sum_at_entry
        ):  # else megatron-core's layer enters the region itself
            x = self._layers.enter(x)
        return _lend(self.linear, self, x, weight)[0]


class _Head(_Column):
    """The output head, which may give losses."""

    def forward(  # type: ignore[override]
        self, x: Tensor, weight: Tensor | None = None, asked: Asked | None = None, first_sample: int | Tensor = 0
    ) -> Tensor:
        """x: [S(/T), B, H] -> logits [S, B, share of V], or losses [S, B], the same on every rank."""
        if asked is None:
            return super().forward(x, first_sample, weight)
        weight = self.weight if weight is None else weight
        axis = Vocabulary(self._layers.group, weight.shape[0])
        return head_losses(self._layers.enter(x), weight, asked, axis=axis, kernels=self._layers.kernels)


class _Row(nn.Module):
    """Row-parallel linear layer: sums over the tensor axis, then adds its replicated bias."""

    product: QuantisedProduct | None = None

    def __init__(self, layers: MegatronLayers, inputs: int, outputs: int, *, bias: bool, std: float) -> None:
        super().__init__()
        self._layers = layers
        linear = RowParallelLinear(
            inputs,
            outputs,
            config=layers.config,
            init_method=_no_init,
            bias=False,
            input_is_parallel=True,
            skip_bias_add=False,
            tp_group=layers.group,
        )
        self.weight = linear.weight
        self.weight.tensor_model_parallel = True
        shape = (outputs, inputs // layers.degree)
        declare(self.weight, shape=shape, std=std, dim=1, degree=layers.degree, rank=layers.rank)
        self.bias = layers.replicated(nn.Parameter(torch.empty(outputs, dtype=layers.dtype))) if bias else None

    def forward(self, x: Tensor, first_sample: int | Tensor = 0) -> Tensor:
        """x: [S, B, share of inputs] -> [S(/T), B, outputs]."""
        if self.product is not None:
            part = self.product(x, self.weight, None, first_sample)
        else:
            part = linear_with_grad_accumulation_and_async_allreduce(
                x, self.weight, None, False, False, False, tp_group=self._layers.group
            )
        y = self._layers.leave(part)
        return y if self.bias is None else y + self._layers.use(self.bias)


class _Embedding(nn.Module):
    """Vocabulary-parallel embedding: tokens [B, S] -> [S(/T), B, H]."""

    def __init__(self, layers: MegatronLayers, rows: int, hidden: int, *, std: float) -> None:
        super().__init__()
        self._layers = layers
        inner = VocabParallelEmbedding(rows, hidden, init_method=_no_init, config=layers.config, tp_group=layers.group)
        self.weight = inner.weight
        object.__setattr__(self, "inner", inner)
        self.weight.tensor_model_parallel = True
        shape = (rows // layers.degree, hidden)
        declare(self.weight, shape=shape, std=std, dim=0, degree=layers.degree, rank=layers.rank)

    def forward(self, tokens: Tensor) -> Tensor:
        x = _lend(self.inner, self, tokens.t().contiguous())
        if not self._layers.sequence_parallel:
            return x
        return KeepShare.apply(x, self._layers.group)


def _lend(inner: nn.Module, owner: nn.Module, *arguments: Any) -> Any:
    """Call megatron-core's layer with the parameters that its owner has now: FSDP2 puts others in their place."""
    for name, value in inner._parameters.items():
        if value is not None:
            inner._parameters[name] = owner._parameters[name]
    return inner(*arguments)


def _no_init(weight: Tensor) -> Tensor:
    return weight
