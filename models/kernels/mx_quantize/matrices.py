"""A tensor as batches of matrices whose blocks lie along rows or columns, which is how GPU kernels look at it."""

from __future__ import annotations

from math import prod
from typing import NamedTuple

from torch import Tensor


class Matrices(NamedTuple):
    """x as batches of matrices [rows, columns]; strides in elements. dims: how many of x's are batches and rows."""

    x: Tensor
    dims: int
    batches: int
    rows: int
    columns: int
    batch_stride: int
    row_stride: int


def matrices_of(x: Tensor, formats: tuple[str | None, str | None], dim: int) -> Matrices:
    """For blocks along the last dimension in formats[0] and along `dim` in formats[1], None for what is not wanted. Rows lie
    along the last dimension, or, of an earlier `dim`, along it; where both are wanted, so that one matrix shows both."""
    row, column = formats
    last = x.ndim - 1
    if x.ndim == 2 and x.stride(1) == 1 and x.numel():
        return Matrices(x, 1, 1, x.shape[0], x.shape[1], 0, x.stride(0))
    x = x.contiguous()
    if column is None or (dim == last and row is None):
        return Matrices(x, last, 1, prod(x.shape[:-1]), x.shape[-1], 0, x.shape[-1])
    dim = 0 if dim == last else dim
    columns = prod(x.shape[dim + 1 :])
    return Matrices(x, dim + 1, prod(x.shape[:dim]), x.shape[dim], columns, x.shape[dim] * columns, columns)
