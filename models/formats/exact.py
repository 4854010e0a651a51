"""Products of values that bfloat16 holds exactly, with sums and result in float32.

An element of 8 bits or fewer under a power of two is a bfloat16, so units for bfloat16 multiply two of them without rounding
either, at several times the rate of float32. On GPUs that is a product with its own type of result; on processors oneDNN takes
float32 and narrows operands itself, where the processor has such units (AVX512-BF16, AMX), which changes nothing here.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from models.formats.operand import Operand


def exact_in_bfloat16(found: Operand) -> bool:
    """Whether it stands for bfloat16 values: every format under a power of two does, NVFP4 has a float32 scale besides."""
    return found.layout is not None and found.layout[0].scale == "e8m0"


def carrier(device: torch.device) -> torch.dtype:
    """What `exact_product` takes its operands in."""
    return torch.bfloat16 if device.type == "cuda" else torch.float32


@torch.library.custom_op("triaxis::exact_product", mutates_args=())
def exact_product(a: Tensor, b: Tensor) -> Tensor:
    """a [M, R] times b [R, N], both of `carrier` with values that bfloat16 holds -> float32 [M, N].

    An operator, because compiled code would not see the setting under which oneDNN runs.
    """
    if a.is_cuda:
        return torch.mm(a, b, out_dtype=torch.float32)
    with _bfloat16_units():
        return a @ b


@exact_product.register_fake
def _(a: Tensor, b: Tensor) -> Tensor:
    return a.new_empty((a.shape[0], b.shape[1]), dtype=torch.float32)


@contextmanager
def _bfloat16_units() -> Iterator[None]:
    """oneDNN may narrow the operands of products in float32."""
    settings = torch.backends.mkldnn.matmul
    before = settings.fp32_precision
    settings.fp32_precision = "bf16"
    try:
        yield
    finally:
        settings.fp32_precision = before
