"""The norms of a model, alone or of the residual stream with a branch added to it."""

from __future__ import annotations

from typing import Any, overload

import torch
from torch import Tensor, nn

from models.kernels.layer_norm import add_layer_norm, layer_norm
from models.kernels.rms_norm import add_rms_norm, rms_norm
from models.layers import Layers


class Norm(nn.Module):
    """LayerNorm or RMSNorm over the last dim, in float32; keeps the input's dtype."""

    def __init__(self, layers: Layers, kind: str, size: int, eps: float, *, bias: bool) -> None:
        super().__init__()
        self.kind, self.eps, self.size = kind, eps, size
        self._use, self._kernels = layers.use, layers.kernels
        self.weight = layers.replicated(nn.Parameter(torch.empty(size, dtype=layers.dtype)), constant=1.0)
        has_bias = kind == "layernorm" and bias
        self.bias = layers.replicated(nn.Parameter(torch.empty(size, dtype=layers.dtype))) if has_bias else None

    @overload
    def __call__(self, x: Tensor) -> Tensor: ...

    @overload
    def __call__(self, x: Tensor, stream: Tensor) -> tuple[Tensor, Tensor]: ...

    def __call__(self, x: Tensor, stream: Tensor | None = None) -> Any:
        """Norm of x [..., N]; of a branch x and the residual stream: (norm of their sum, their sum), in one pass."""
        return super().__call__(x) if stream is None else super().__call__(x, stream)

    def forward(self, x: Tensor, stream: Tensor | None = None) -> Tensor | tuple[Tensor, Tensor]:
        weight, bias = self._use(self.weight), None if self.bias is None else self._use(self.bias)
        if self.kind == "rmsnorm":
            if stream is None:
                return rms_norm(x, weight, self.eps, self._kernels)
            return add_rms_norm(x, stream, weight, self.eps, self._kernels)
        if stream is None:
            return layer_norm(x, weight, bias, self.eps, self._kernels)
        return add_layer_norm(x, stream, weight, bias, self.eps, self._kernels)
