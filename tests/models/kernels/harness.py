"""How every kernel is proven: against float64 with plain torch in the same dtype as the measure, between guards, twice."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

GUARD = 64
"""Elements before and behind a guarded tensor."""


def noise(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32, scale: float = 1.0) -> Tensor:
    """Normal numbers, the same in every dtype but for its rounding."""
    return (torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * scale).to(dtype)


def no_worse_than_torch(ours: Tensor, torchs: Tensor, exact: Tensor, what: str = "") -> None:
    """The criterion for low precision: the error against float64 is at most twice that of plain torch in the same dtype, with
    room for the rounding of the dtype itself."""
    exact = exact.double()
    limit = 2 * (torchs.double() - exact).abs().max() + 2 * torch.finfo(ours.dtype).eps * exact.abs().mean() * 2**-3
    error = (ours.double() - exact).abs().max()
    assert error <= limit, f"{what}: error {float(error):.3e}, plain torch has half of {float(limit):.3e}"


class Guarded:
    """A tensor between two guards that nothing may write to: out of bounds shows here before it breaks the heap."""

    def __init__(self, shape: Sequence[int], dtype: torch.dtype, device: str = "cpu") -> None:
        count = torch.Size(shape).numel()
        self._whole = torch.zeros(count + 2 * GUARD, dtype=dtype, device=device)
        self._guards = (self._whole[:GUARD], self._whole[GUARD + count :])
        for guard in self._guards:
            guard.view(torch.uint8).fill_(0xA5)
        self.tensor = self._whole[GUARD : GUARD + count].view(*shape)

    def check(self) -> None:
        for guard in self._guards:
            assert (guard.view(torch.uint8) == 0xA5).all(), "written out of bounds"


def gradients(call: Callable[..., Tensor], inputs: Sequence[Tensor], upstream: Tensor) -> list[Tensor]:
    """Of inputs that are leaves of their own, by an upstream gradient of any kind."""
    leaves = [x.detach().clone().requires_grad_() for x in inputs]
    call(*leaves).backward(upstream)
    return [leaf.grad for leaf in leaves if leaf.grad is not None]


def same_twice(call: Callable[[], Sequence[Tensor]]) -> None:
    """Two runs give the same bits."""
    for first, second in zip(call(), call(), strict=True):
        assert torch.equal(first.view(torch.uint8), second.view(torch.uint8))
