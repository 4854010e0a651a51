"""Self-attention: multi-head, grouped-query and multi-query, with rotary positions and query-key norm.

Shapes: S sequence, B batch, H hidden, A query heads, G key-value heads, D head size; A and G are this rank's.
"""

from __future__ import annotations

import math
from functools import lru_cache

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from models.config import ModelConfig, RopeScaling
from models.core import CoreSpec, Spans, positions_of, take_spans
from models.feedforward import residual_std
from models.kernels.rms_norm import rms_norm
from models.kernels.rotary import rotate, split_and_rotate
from models.layers import Layers, scaled
from models.parameters import declare
from models.random import key_tensor, stream_key


class Attention(nn.Module):
    """Projections around the attention core. `recompute_core` drops the core's activations and computes them again."""

    def __init__(self, config: ModelConfig, layers: Layers, name: str, *, recompute_core: bool) -> None:
        super().__init__()
        width = config.head_width
        self.config, self.recompute_core, self._layers = config, recompute_core, layers
        self._query_scale = config.scales.query
        self.heads, self.kv_heads = layers.share(config.heads), layers.share(config.key_value_heads)
        query, key_value = config.heads * width, config.key_value_heads * width
        bias = config.bias or config.qkv_bias
        self.qkv = layers.column(
            "qkv", config.hidden_size, (query, key_value, key_value), bias=bias, std=config.matrix_std
        )
        self.output = layers.row("output", query, config.hidden_size, bias=config.bias, std=residual_std(config))
        self.query_norm = query_key_norm(config, layers, config.heads)
        self.key_norm = query_key_norm(config, layers, config.key_value_heads)
        spec = CoreSpec(
            causal=config.causal,
            window=config.attention_window,
            documents=config.parted,
            prefix=config.prefix_mask,
            varlen=config.attention_kernel == "varlen",
            dropout=config.attention_dropout,
            dropout_key=key_tensor(stream_key(layers.clock.seed, "dropout", name, "attention")),
            heads=config.heads,
            start=config.encoder_length,
        )
        self._attend = layers.attention_core(spec, self.heads)

    def forward(self, x: Tensor, first_sample: int | Tensor) -> Tensor:
        """x: [S, B, H] -> [S, B, H]."""
        query, key, value = self._heads(self.qkv(x, first_sample), first_sample)
        query = scaled(query, self._query_scale)
        if self.recompute_core and self.training:
            mixed = checkpoint(self._core, query, key, value, first_sample, use_reentrant=False)
        else:
            mixed = self._core(query, key, value, first_sample)
        return self.output(mixed, first_sample)

    def _rotation(self, qkv: Tensor, first_sample: int | Tensor) -> tuple[Tensor, Tensor] | None:
        """Cosine and sine for qkv [S, B, …]: [S, 1, 1, D] each, or [S, B, 1, D] where each document has its own positions."""
        config, layers, length = self.config, self._layers, qkv.shape[0]
        if config.positions != "rotary":
            return None
        spans = layers.spans_in_heads(length)
        options = config.head_width, config.rope_theta, config.rope_scaling, qkv.device, qkv.dtype
        if not config.reset_position_ids:
            return rotary_table(spans, *options)
        places = layers.clock.positions(first_sample, qkv.shape[1])
        cosine, sine = rotary_table(((0, places.shape[1]),), *options)
        own = take_spans(places, spans, 1).t()
        return cosine[own, 0], sine[own, 0]

    def _heads(self, qkv: Tensor, first_sample: int | Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """[S, B, (A + 2 G) D] -> query [S, B, A, D], key and value [S, B, G, D], normed and rotated."""
        width = self.config.head_width
        table, kernels = self._rotation(qkv, first_sample), self._layers.kernels
        if table is not None and self.query_norm is None:
            return split_and_rotate(qkv, self.heads, self.kv_heads, *table, kernels)
        parts = qkv.unflatten(-1, (-1, width)).split([self.heads, self.kv_heads, self.kv_heads], dim=-2)
        query, key, value = parts
        if self.query_norm is not None and self.key_norm is not None:
            query, key = self.query_norm(query), self.key_norm(key)
        if table is not None:
            query, key = rotate(query, *table, kernels), rotate(key, *table, kernels)
        return query, key, value

    def _core(self, query: Tensor, key: Tensor, value: Tensor, first_sample: int | Tensor) -> Tensor:
        """query [S, B, A, D], key and value [S, B, G, D] -> [S, B, A * D]."""
        return self._attend(query, key, value, first_sample, self.training)


class _HeadNorm(nn.Module):
    """RMSNorm of each head; its gain is shared by all heads, so its gradient is summed over the tensor axis."""

    def __init__(self, layers: Layers, width: int, eps: float) -> None:
        super().__init__()
        self.eps, self._layers = eps, layers
        self.weight = layers.replicated(nn.Parameter(torch.empty(width, dtype=layers.dtype)), constant=1.0)

    def forward(self, x: Tensor) -> Tensor:
        return rms_norm(x, self._layers.use_in_heads(self.weight), self.eps, self._layers.kernels)


class _WholeNorm(nn.Module):
    """RMSNorm of all heads together; gain [heads * D], cut over the tensor axis as the heads are."""

    def __init__(self, layers: Layers, heads: int, width: int, eps: float) -> None:
        super().__init__()
        self.eps, self.size, self._layers = eps, heads * width, layers
        self.weight = nn.Parameter(torch.empty(self.size // layers.degree, dtype=layers.dtype))
        shape = (self.size // layers.degree,)
        if layers.degree == 1:
            declare(self.weight, shape=shape, constant=1.0)
        else:
            declare(self.weight, shape=shape, constant=1.0, dim=0, degree=layers.degree, rank=layers.rank)

    def forward(self, x: Tensor) -> Tensor:
        """x: [S, B, share of heads, D] -> the same."""
        flat = x.flatten(-2)
        if self._layers.degree == 1:
            return rms_norm(flat, self.weight, self.eps, self._layers.kernels).view_as(x)
        wide = flat.float()
        squares = self._layers.sum_over_tensor(wide.square().sum(-1, keepdim=True))
        return (wide * (squares / self.size + self.eps).rsqrt() * self.weight).to(x.dtype).view_as(x)


def query_key_norm(config: ModelConfig, layers: Layers, heads: int) -> nn.Module | None:
    """The norm of so many heads before attention, where the model has one."""
    if config.qk_norm:
        return _HeadNorm(layers, config.head_width, config.norm_eps)
    return _WholeNorm(layers, heads, config.head_width, config.norm_eps) if config.qk_norm_whole else None


@torch.compiler.assume_constant_result  # a compiled block holds the table instead of making it in every step
def rotary_table(
    spans: Spans, width: int, theta: float, scaling: RopeScaling, device: torch.device, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """Cosine and sine, each [S, 1, 1, width] for the positions of the spans, both halves filled, the first half of the sine
    negated (RoFormer, arXiv 2104.09864); angles in float64 so that long positions keep their precision. Made once."""
    return _rotary_table(spans, width, theta, scaling, device, dtype)


@lru_cache(maxsize=16)
@torch.inference_mode(False)  # a table first made while sampling must still serve training
def _rotary_table(
    spans: Spans, width: int, theta: float, scaling: RopeScaling, device: torch.device, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    frequency = theta ** -(torch.arange(0, width, 2, dtype=torch.float64, device=device) / width)
    if scaling.factor != 1.0:
        frequency = _scale_frequencies(frequency, scaling)
    angle = positions_of(spans, device).double()[:, None] * frequency
    angle = angle[:, None, None, :]
    sine = angle.sin()
    return angle.cos().repeat(1, 1, 1, 2).to(dtype), torch.cat((-sine, sine), dim=-1).to(dtype)


def _scale_frequencies(frequency: Tensor, scaling: RopeScaling) -> Tensor:
    """Llama 3.1's rule: long wavelengths are stretched by `factor`, short ones kept, those between interpolated."""
    turns = scaling.original_sequence * frequency / (2 * math.pi)
    low, high = scaling.low_frequency_factor, scaling.high_frequency_factor
    kept = ((turns - low) / (high - low)).clamp(0, 1)
    return frequency * (kept + (1 - kept) / scaling.factor)
