"""What chips do: peaks from their data sheets, and the shares of them that others have measured to last.

One row serves every plan and every published figure that plans are checked against; nothing here is fitted to a model.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from launcher.plan.errors import PlanError

BURST = "best product in bursts (stas00/ml-engineering, compute/accelerator, maximum achievable matmul FLOPS) "
LONG = "SemiAnalysis, MI300X vs H100 vs H200, December 2024: products of a Llama 70B "
FLASH = "attention: FlashAttention-2 (arXiv 2307.08691, figures 4 and 5)"


@dataclass(frozen=True)
class Chip:
    """One accelerator. Rates are a second, of dense products; shares are of the peak named before them."""

    name: str
    flops: float
    """Peak FLOP/s in bf16."""
    sustained: float
    """Share of it that the best product reaches."""
    flops8: float
    """Peak FLOP/s in fp8; 0 for chips without."""
    sustained8: float
    """Share of it that the best product reaches."""
    units: int
    """Streaming multiprocessors, which a product's tiles are dealt out to."""
    attention: tuple[float, float]
    """Shares of the bf16 peak that a fused attention core reaches, forward and backward, at head size 128."""
    memory: int
    """Bytes."""
    memory_rate: float
    """Peak bytes/s of that memory."""
    link: float
    """Bytes/s to the other chips of a node, one way."""
    link_sustained: float
    """Share of it that collectives reach (busbw of nccl-tests)."""
    watts: float
    """Board power."""
    node_watts: float
    """Power of its share of a node at most: the vendor's system by the number of its chips."""
    source: str


BESIDE = 20 / 132
"""Share of a chip that transfers beside computing take from it: 20 of 132 multiprocessors (DeepSeek-V3, arXiv
2412.19437, section 3.2.2; NCCL's channels are as many)."""
MEMORY_SUSTAINED = 0.9
"""Share of the memory's peak that element-wise passes reach: copies on H100 3.02 of 3.35 TB/s, on H200 4.3 of 4.8 (PyTorch)."""

_HOPPER = (
    "data sheet; "
    + LONG
    + "720 in bf16, 1280 in fp8 (in bursts 794.5 and 1402.6); attention: between FlashAttention-2's 0.40 "
    "and 0.34 and 0.6 and 0.5 of cuDNN and FlashAttention-3 (arXiv 2407.08608, figures 5 and 6); DGX H100: 10.2 kW"
)

CHIPS = {
    chip.name: chip
    for chip in (
        Chip(
            *("a100_80gb", 312e12, 0.804, 0.0, 0.0, 108, (0.62, 0.53), 80 << 30, 2.039e12),
            *(300e9, 0.78, 400, 812),
            "data sheet; "
            + BURST
            + "271.2, at the clock that lasts, 1305 of 1410 MHz (NVIDIA's own HPL: glennklockwood.com, peak FLOPS); "
            + FLASH
            + "; nccl-tests 230 to 235 GB/s; DGX A100: 6.5 kW",
        ),
        Chip(
            *("h100_sxm", 989e12, 0.728, 1979e12, 0.647, 132, (0.50, 0.42), 80 << 30, 3.35e12),
            *(450e9, 0.80, 700, 1275, _HOPPER + "; nccl-tests 360 GB/s (ring)"),
        ),
        Chip(
            *("h800", 989e12, 0.728, 1979e12, 0.647, 132, (0.50, 0.42), 80 << 30, 3.35e12),
            *(
                200e9,
                0.80,
                700,
                1275,
                _HOPPER + "; NVLink 160 GB/s in use: DeepSeek-V3 (arXiv 2412.19437, section 3.2.2)",
            ),
        ),
        Chip(
            *("h200", 989e12, 0.728, 1979e12, 0.647, 132, (0.50, 0.42), 141_000_000_000, 4.8e12),
            *(450e9, 0.80, 700, 1275, _HOPPER + "; 788 TFLOP/s seen at 8192 x 8192 x 8192"),
        ),
        Chip(
            *("gh200", 989e12, 0.76, 1979e12, 0.70, 132, (0.50, 0.42), 96_000_000_000, 4.0e12),
            *(
                450e9,
                0.80,
                900,
                1000,
                "data sheet; " + BURST + "828.6, fp8 1535, times 0.91 as of H100's lasts; the rest as H100",
            ),
        ),
        Chip(
            *("b200", 2250e12, 0.728, 4500e12, 0.647, 148, (0.50, 0.42), 180_000_000_000, 7.7e12),
            *(900e9, 0.80, 1000, 1790, "DGX B200 data sheet (14.3 kW); shares taken over from H100, not measured"),
        ),
        Chip(
            *("mi300x", 1307e12, 0.474, 2615e12, 0.379, 304, (0.35, 0.27), 192_000_000_000, 5.3e12),
            *(448e9, 0.70, 750, 1250, "data sheet; " + LONG + "620, fp8 990; other shares: judgement, not measured"),
        ),
        Chip(
            *("cpu", 80e9, 0.7, 0.0, 0.0, 1, (0.4, 0.4), 4 << 30, 12e9),
            *(5e9, 0.5, 10, 20, "one core of a server with AVX2 at 2.5 GHz, float32; an order of magnitude, no more"),
        ),
    )
}


DEVICES = (
    # numbers are of the boards' own data sheets, dense; boards of less power come before the chip whose name they share
    (r"H[12]00 NVL", 835e12),
    (r"H[18]00 PCIe", 756e12),
    (r"H20\b", 148e12),
    (r"GH200", CHIPS["gh200"].flops),
    (r"H200", CHIPS["h200"].flops),
    (r"H100", CHIPS["h100_sxm"].flops),
    (r"H800", CHIPS["h800"].flops),
    (r"A[18]00\b", CHIPS["a100_80gb"].flops),
    (r"(?<!G)B200", CHIPS["b200"].flops),
    (r"MI300X", CHIPS["mi300x"].flops),
    (r"L40S", 362e12),
    (r"L40\b", 181e12),
    (r"L4\b", 121e12),
    (r"A40\b", 150e12),
    (r"A30\b", 165e12),
)
"""Peak FLOP/s in bf16 by what a driver calls its device; the first expression that is found counts."""


def peak_of_device(name: str) -> float | None:
    """Peak dense bf16 FLOP/s of a device by the name that its driver gives it, such as NVIDIA H100 80GB HBM3; None where it is
    not known."""
    return next((flops for pattern, flops in DEVICES if re.search(pattern, name)), None)


def chip_of(name: str) -> Chip:
    """The chip of a name that `cluster.chip` gives."""
    if name not in CHIPS:
        raise PlanError(f"cluster.chip={name}: not in the table of chips; choose one of {', '.join(CHIPS)}")
    return CHIPS[name]
