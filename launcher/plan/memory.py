"""Bytes that one rank needs, part by part."""

from __future__ import annotations

from dataclasses import dataclass

from models.config import ModelConfig
from parallel.config import ParallelConfig


@dataclass(frozen=True)
class Memory:
    """Bytes on one rank, without the framework's own and without fragmentation."""

    weights: int
    gradients: int
    optimizer: int
    activations: int

    @property
    def total(self) -> int:
        """All of it."""
        return self.weights + self.gradients + self.optimizer + self.activations

    def line(self) -> str:
        """One line for people, in GB or MB."""
        parts = ("weights", "gradients", "optimizer", "activations")
        told = ", ".join(f"{part} {human(getattr(self, part))}" for part in parts)
        return f"memory per rank about {human(self.total)}: {told}"


def human(size: float) -> str:
    """Bytes in GB from a tenth of a GB on, else in MB."""
    return f"{size / 1e9:.2f} GB" if size >= 1e8 else f"{size / 1e6:.1f} MB"


def estimate(
    held: int, model: ModelConfig, parallel: ParallelConfig, precision: str, micro_batch: int, sequence_length: int
) -> Memory:
    """Memory of a rank that holds `held` parameters before ZeRO cuts them.

    Weights and gradients in the model's type (gradients summed in float32 where it is narrower); AdamW's two moments and,
    below float32, master weights in float32. Activations after Korthikanti et al. (arXiv 2205.05198), without the score
    matrix that a fused attention core never stores.
    """
    size = 4 if precision == "fp32" else 2
    data, stage = parallel.data or 1, parallel.zero_stage
    weights = held * size // (data if stage == 3 else 1)
    gradients = held * 4 // (data if stage >= 2 else 1)
    states = held * (8 if precision == "fp32" else 12) // (data if stage >= 1 else 1)
    if parallel.offload_optimizer:
        states = 0
    layers = -(-model.layers // parallel.pipeline)
    token = activation_bytes_per_token(model, parallel, size)
    in_flight = min(parallel.pipeline, 1 + parallel.pipeline)  # 1F1B keeps as many micro-batches as there are stages
    logits = 8 * model.padded_vocab // parallel.tensor * sequence_length * micro_batch
    activations = token * layers * sequence_length * micro_batch * in_flight + logits
    return Memory(weights, gradients, states, activations)


def activation_bytes_per_token(model: ModelConfig, parallel: ParallelConfig, size: int) -> int:
    """Bytes that one layer keeps for backward, for each token."""
    hidden, width = model.hidden_size, model.head_width
    if parallel.recompute == "block":
        return hidden * size
    outside = 4 * hidden * size // (parallel.tensor if parallel.sequence_parallel else 1)
    heads = (2 * model.heads + 2 * model.key_value_heads) * width
    core = (
        heads * size // parallel.tensor
        if parallel.recompute == "none"
        else model.heads * width * size // parallel.tensor
    )
    feed = (3 if model.gated else 2) * model.ffn_width * size // parallel.tensor
    return outside + core + feed
