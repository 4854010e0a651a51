"""What failures cost: checkpoints, the best interval between them, and the share of time that is left for training."""

from __future__ import annotations

import math
from dataclasses import dataclass

GPU_HOURS_PER_FAILURE = 50_700.0
"""GPU hours from one unforeseen interruption to the next: 419 in 54 days of 16,384 H100 (Llama 3, arXiv 2407.21783,
section 3.3.4)."""
RESTART_SECONDS = 600.0
"""From a failure to the next step: noticing, starting anew on other nodes, reading the checkpoint. Judgement: Llama 3
lost less than a tenth of its time to 8.6 interruptions a day, which is 17 minutes each, lost steps included."""
LEAST_STALL = 2.0
"""Seconds that training waits for a checkpoint at least: ranks meet, lists are made, kernels are launched anew. Judgement."""
HOST_RATE = 25e9
"""Bytes/s from a GPU to host memory: PCIe 4.0 x 16, of 32 GB/s."""
STORAGE_RATE = 1e9
"""Bytes/s of each node to storage: Llama 3's 2 TB/s for 16,384 GPUs (section 3.3.1)."""
STATE_BYTES = 12
"""Bytes a parameter in a checkpoint: float32 weights and AdamW's two moments."""


@dataclass(frozen=True)
class Checkpoint:
    """One checkpoint. size: bytes; stall: seconds in which training waits; write: seconds until it is safe."""

    size: float
    stall: float
    write: float


def checkpoint_of(parameters: int, gpus: int, node: int, asynchronous: bool) -> Checkpoint:
    """A checkpoint of a model on so many GPUs, `node` of them each: copied to host memory, then written while training
    goes on, or at once."""
    size = float(STATE_BYTES * parameters)
    copy, write = LEAST_STALL + size / gpus / HOST_RATE, size / max(1, gpus // node) / STORAGE_RATE
    return Checkpoint(size, copy if asynchronous else copy + write, copy + write)


@dataclass(frozen=True)
class Goodput:
    """Expectations under failures. between: seconds from one failure to the next; interval: seconds of training between
    checkpoints; share: of the time that is training which lasts."""

    between: float
    interval: float
    share: float


def goodput_of(
    checkpoint: Checkpoint, gpus: int, gpu_hours: float = GPU_HOURS_PER_FAILURE, restart: float = RESTART_SECONDS
) -> Goodput:
    """Expectations at the best interval: Daly's of higher order (Future Generation Computer Systems 22, 2006, equation
    37; Young's, Communications of the ACM 17, 1974, is its first term), but no shorter than a write takes."""
    between, stall = gpu_hours * 3600 / gpus, max(checkpoint.stall, 1e-9)
    young = math.sqrt(2 * stall * between)
    daly = young * (1 + math.sqrt(stall / (2 * between)) / 3 + stall / (18 * between)) - stall
    interval = max(daly if stall < 2 * between else between, checkpoint.write)
    return Goodput(between, interval, share_of(interval, checkpoint, between, restart))


def share_of(interval: float, checkpoint: Checkpoint, between: float, restart: float) -> float:
    """Share of time that is left for training where failures come at random (exponentially) and each takes back to the newest
    checkpoint that is safe (Daly 2006, equation 20, a restart being a restart and the writing that was in vain)."""
    lost = restart + checkpoint.write - checkpoint.stall
    whole = between * math.exp(lost / between) * math.expm1((interval + checkpoint.stall) / between)
    return interval / whole
