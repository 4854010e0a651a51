"""How long a chip takes for one product, one attention core, one pass over memory."""

from __future__ import annotations

import math
from dataclasses import dataclass

from launcher.plan.chips import MEMORY_SUSTAINED, Chip
from launcher.plan.products import Core, Product

TILES = ((256, 128), (128, 256), (128, 128), (64, 128), (128, 64))
"""Outputs of a product that one streaming multiprocessor computes at a time (cuBLAS, CUTLASS); those which suit a shape
best."""
TILE_START = 1.5e-6
"""Seconds in which a tile's first operands arrive and its last results leave: twice the latency of memory, which is 0.6
to 0.7 us under load."""
LAUNCH = 3e-6
"""Seconds from one kernel's end to the next one's full speed."""


@dataclass(frozen=True)
class Rates:
    """A chip at work on elements of `size` bytes; products of linear layers in fp8 where `eight`."""

    chip: Chip
    size: int = 2
    eight: bool = False
    speed: float = 1.0
    """Of the software's kernels."""

    @property
    def memory(self) -> float:
        """Bytes/s of passes over memory."""
        return self.chip.memory_rate * MEMORY_SUSTAINED * self.speed

    @property
    def flops(self) -> float:
        """FLOP/s of the best product."""
        if self.eight:
            return self.chip.flops8 * self.chip.sustained8 * self.speed
        return (
            self.chip.flops
            * self.chip.sustained
            * self.speed
            / (2 if self.size == 4 and self.chip.name != "cpu" else 1)
        )

    def product(self, product: Product) -> float:
        """Seconds. Outputs are cut into tiles, which are dealt out to the multiprocessors in waves; the last wave, and
        tiles at the edges, are paid for whole (NVIDIA, Matrix Multiplication Background User's Guide). Or, if longer,
        the time in which operands and results pass through memory."""
        rows, columns, inner = max(1, math.ceil(product.rows)), product.columns, product.inner
        size = 1 if self.eight else self.size
        moved = product.count * (size * inner * (rows + columns) + self.size * rows * columns)
        units = self.chip.units
        slowest = math.inf
        for high, wide in TILES:
            tiles = math.ceil(rows / high) * math.ceil(columns / wide) * product.count
            per_tile = 2.0 * high * wide * inner * units / self.flops
            waves = tiles / units
            cut = min(max(1, math.floor(units / tiles)), max(1, inner // 1024)) if tiles < units else 1  # along the sum
            slowest = min(slowest, math.ceil(waves) * (per_tile / cut + TILE_START))
        return LAUNCH + max(slowest, moved / self.memory)

    def quantise(self, elements: float) -> float:
        """Seconds to scale and cast operands to fp8: read, and written along both of the dims that products sum over."""
        return elements * (self.size + 2) / self.memory if self.eight else 0.0

    def core(self, core: Core, backward: bool, fused: bool) -> float:
        """Seconds of attention cores. Fused ones compute what is seen, 2.5 times as much backward; others multiply whole
        matrices of scores, which pass through memory (their softmax is among the passes)."""
        if fused:
            share = (
                self.chip.attention[backward] * min(1.0, core.width / 128) ** 0.5
            )  # narrow heads: FlashAttention-2, figure 5
            peak = self.chip.flops / (2 if self.size == 4 and self.chip.name != "cpu" else 1)
            return LAUNCH + core.flops * (2.5 if backward else 1.0) / (peak * share * self.speed)
        sequences = max(1.0, core.queries / core.keys)
        count = core.heads * sequences
        rows = core.queries / sequences
        plain = Rates(self.chip, self.size, speed=self.speed)
        scores = plain.product(Product("attention", rows, core.keys, core.width, count))
        mixed = plain.product(Product("attention", rows, core.width, core.keys, count))
        return (scores + mixed) * (2 if backward else 1)
