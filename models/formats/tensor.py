"""`MXTensor`: elements in packed storage, their shared scales, and where the blocks lie."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from models.errors import ModelError
from models.formats.elements import decode
from models.formats.names import Format, format_of
from models.formats.packing import GROUP, pack, unpack
from models.formats.scales import block_value, power, spread


@dataclass(frozen=True)
class MXTensor:
    """A tensor in a block format.

    elements: uint8, the tensor's shape with the blocked dimension moved last and packed, [..., n * bits / 8]. scales: uint8
    [..., n / block]; of square blocks [..., rows / block, n / block], where rows is the last dimension but the blocked one.
    dim: the blocked dimension, not negative. square: blocks of block x block, whose transpose has the same bits.
    tensor_scale: float32 scalar of NVFP4, None elsewhere.
    """

    elements: Tensor
    scales: Tensor
    format: Format
    dim: int
    square: bool = False
    tensor_scale: Tensor | None = None

    @property
    def shape(self) -> torch.Size:
        """Of the tensor that this stands for."""
        count, size = GROUP[self.format.element.bits]
        *others, last = self.elements.shape
        others.insert(self.dim, last * count // size)
        return torch.Size(others)

    @property
    def ndim(self) -> int:
        return self.elements.ndim

    @property
    def nbytes(self) -> int:
        """Bytes of elements and scales."""
        return sum(part.nbytes for part in (self.elements, self.scales, self.tensor_scale) if part is not None)

    def codes(self) -> Tensor:
        """The elements' codes, unpacked: uint8, the blocked dimension last."""
        return unpack(self.elements, self.format.element.bits)

    def dequantize(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """The values, exact in float32, of the tensor's shape; in bfloat16 exact for MX formats down to 2^-133."""
        found = decode(self.codes(), self.format.element) * self.factors()
        return found.to(dtype).movedim(-1, self.dim)

    def factors(self) -> Tensor:
        """What each element is multiplied by, float32, the blocked dimension last."""
        whole = self.tensor_scale
        factors = power(self.scales) if whole is None else block_value(self.scales, whole)
        return spread(factors, self.format.block, self.square) if self.format.block else factors

    def t(self) -> MXTensor:
        """The transpose of a matrix. Of square blocks it is blocked along the same dimension number as before, that is
        along the other one of the matrix; nothing is quantised again."""
        if self.ndim != 2:
            raise ModelError(f"only a matrix is transposed, not an MXTensor of {self.ndim} dimensions")
        if not self.square:
            return replace(self, dim=1 - self.dim)
        elements = pack(self.codes().t().contiguous(), self.format.element.bits)
        return replace(self, elements=elements, scales=self.scales.t().contiguous())

    def narrow(self, dim: int, start: int, length: int) -> MXTensor:
        """A part along one dimension; along blocked ones it must begin and end where blocks do."""
        dim %= self.ndim
        block, inner = self.format.block, dim == self.dim
        row = self._storage_dim(dim)
        beside = self.square and row == self.ndim - 2
        if block and (inner or beside) and (start % block or length % block):
            raise ModelError(
                f"elements {start} to {start + length} of dimension {dim}: parts of an MXTensor begin and end at multiples of "
                f"its block, {block}"
            )
        count, size = GROUP[self.format.element.bits]
        if inner:
            elements = self.elements.narrow(-1, start * size // count, length * size // count)
            scales = self.scales.narrow(-1, start // block, length // block) if block else self.scales
            return replace(self, elements=elements, scales=scales)
        step = block if beside else 1
        return replace(
            self,
            elements=self.elements.narrow(row, start, length),
            scales=self.scales.narrow(row, start // step, length // step),
        )

    def _storage_dim(self, dim: int) -> int:
        """Where a dimension lies in the storage, whose last one is the blocked."""
        return self.ndim - 1 if dim == self.dim else dim - (dim > self.dim)

    def to(self, device: torch.device | str) -> MXTensor:
        """On another device."""
        whole = None if self.tensor_scale is None else self.tensor_scale.to(device)
        return replace(self, elements=self.elements.to(device), scales=self.scales.to(device), tensor_scale=whole)

    def state_dict(self) -> dict[str, Any]:
        """Tensors and plain values, which `torch.save` and safetensors keep as they are."""
        found = {"elements": self.elements, "scales": self.scales}
        found |= {} if self.tensor_scale is None else {"tensor_scale": self.tensor_scale}
        return {**found, "format": self.format.name, "dim": self.dim, "square": self.square}

    @classmethod
    def from_state_dict(cls, state: dict[str, Any]) -> MXTensor:
        """What `state_dict` gave, again."""
        rest = {name: state[name] for name in ("elements", "scales", "dim", "square")}
        return cls(format=format_of(state["format"]), tensor_scale=state.get("tensor_scale"), **rest)
