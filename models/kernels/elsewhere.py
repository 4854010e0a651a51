"""Kernels of other packages, for what they have: liger-kernel and apex, both on GPUs alone, imported when they are chosen.

Signatures as of liger-kernel 0.8.5 and apex's `apex/normalization/fused_layer_norm.py` (2025). Their gradients of weights are
theirs: liger-kernel adds them up over as many programs as the GPU has multiprocessors.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from models.kernels.choice import check_choice

PACKAGES = ("liger", "apex")


def on_gpus(device: torch.device, dtype: torch.dtype, shape: tuple[int, ...]) -> str | None:
    """Why a package's kernel cannot take a tensor."""
    return None if device.type == "cuda" else "it runs on GPUs alone"


def not_erf(device: torch.device, dtype: torch.dtype, shape: tuple[int, ...]) -> str | None:
    """For GEGLU by the error function, which liger-kernel has by tanh alone."""
    return "it has GELU by tanh alone"


def rms_norm(package: str, x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """RMSNorm over the last dim."""
    if package == "apex":
        return _apex().fused_rms_norm_affine(x, weight, (x.shape[-1],), eps)
    # casting mode "gemma": all of it in float32, as the reference has it; not in place: x's gradient has a memory of its own
    return _liger().LigerRMSNormFunction.apply(x, weight, eps, 0.0, "gemma", False)


def layer_norm(package: str, x: Tensor, weight: Tensor, bias: Tensor | None, eps: float) -> Tensor:
    """LayerNorm over the last dim."""
    bias = torch.zeros_like(weight) if bias is None else bias
    if package == "apex":
        return _apex().fused_layer_norm_affine(x, weight, bias, (x.shape[-1],), eps)
    return _liger().LigerLayerNormFunction.apply(x, weight, bias, eps)


def gated(x: Tensor, activation: str) -> Tensor:
    """SwiGLU, or GEGLU by tanh, by liger-kernel: x [..., 2F] -> [..., F]."""
    gate, up = x.chunk(2, dim=-1)
    function = _liger().LigerSiLUMulFunction if activation == "silu" else _liger().LigerGELUMulFunction
    return function.apply(gate, up)


def squared_relu(x: Tensor) -> Tensor:
    """relu(x)² by liger-kernel."""
    return _liger().LigerReLUSquaredFunction.apply(x)


def poly_norm(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    """PolyNorm by liger-kernel, whose weights go from the third power down."""
    return _liger().LigerPolyNormFunction.apply(x, weight.flip(0), bias, eps, False)


def _liger() -> Any:
    check_choice("liger")
    import liger_kernel.ops

    return liger_kernel.ops


def _apex() -> Any:
    check_choice("apex")
    import apex.normalization

    return apex.normalization.fused_layer_norm
