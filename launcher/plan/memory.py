"""Bytes that one rank needs, part by part."""

from __future__ import annotations

from dataclasses import dataclass, replace

from launcher.config import Recipe
from models.config import ModelConfig
from parallel.config import ParallelConfig
from parallel.schedule import chunks_in_flight, owner, stage_count

FUSED_LOGITS = 256 << 20
"""What the logits of a chunk may take (models/kernels/linear_cross_entropy/chunks.py, which imports torch)."""


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
    """Bytes in TB, in GB from a tenth of a GB on, else in MB."""
    if size >= 1e12:
        return f"{size / 1e12:.2f} TB"
    return f"{size / 1e9:.2f} GB" if size >= 1e8 else f"{size / 1e6:.1f} MB"


def estimate(
    held: int, recipe: Recipe, parallel: ParallelConfig, precision: str, stage: int = 0, experts: int = 0
) -> Memory:
    """Memory of a rank at place `stage` of the pipeline axis that holds `held` parameters before ZeRO cuts them, `experts` of
    them those of routed experts, which fewer ranks share.

    Weights and gradients in the model's type (gradients summed in float32 where it is narrower); AdamW's two moments and,
    below float32 and unless the recipe has none, master weights in float32. Activations after Korthikanti et al. (arXiv
    2205.05198), without the score matrix that a fused attention core never stores, for as many micro-batches as the schedule
    keeps at once.
    parallel, precision: resolved, no `data=0` and no `auto`.
    """
    model, train = recipe.model, recipe.train
    size = 4 if precision == "fp32" else 2
    data, zero = parallel.data, parallel.zero_stage
    shards = parallel.replicas // parallel.data_replicas
    cut = (held - experts) // shards + experts // max(1, shards // parallel.expert)
    states = (cut if zero >= 1 else held) * (8 if precision == "fp32" or recipe.optimizer.master == "none" else 12)
    tokens = train.micro_batch * train.sequence_length // parallel.context
    micro_batches = train.batch_sequences // (train.micro_batch * data)
    in_flight = chunks_in_flight(parallel, stage, micro_batches)
    layers = -(-(model.layers + model.encoder_layers) // stage_count(parallel))
    last = stage == owner(parallel, stage_count(parallel) - 1)
    predicted = tokens - tokens * model.encoder_length // train.sequence_length
    rows = model.padded_vocab // parallel.tensor
    logits = 8 * rows * predicted
    if recipe.loss.fused:  # logits of a chunk, and the gradient of the head in float32
        logits = min(size * rows * predicted, FUSED_LOGITS) + 4 * rows * model.hidden_size
    kept = activation_bytes_per_token(model, parallel, size, train.sequence_length)
    return Memory(
        weights=(cut if zero == 3 else held) * size,
        gradients=(cut if zero >= 2 else held) * 4,
        optimizer=0 if parallel.offload_optimizer else states,
        activations=kept * layers * tokens * in_flight + (logits if last else 0),
    )


def activation_bytes_per_token(model: ModelConfig, parallel: ParallelConfig, size: int, sequence_length: int) -> int:
    """Bytes that one layer keeps for backward, for each token; of a mixture, whose experts' shares are taken to be even, and of
    an encoder-decoder, of whose tokens a layer acts on a part, the mean over its layers."""
    hidden, width = model.hidden_size, model.head_width
    if parallel.recompute == "block":
        return hidden * size
    if model.encoder_layers:
        return _of_two_parts(model, parallel, size, sequence_length)
    outside = 4 * hidden * size // (parallel.tensor if parallel.sequence_parallel else 1)
    heads = (2 * model.heads + 2 * model.key_value_heads) * width
    core = (
        heads * size // parallel.tensor
        if parallel.recompute == "none"
        else model.heads * width * size // parallel.tensor
    )
    products = (3 if model.gated else 2) * size // parallel.tensor
    mixtures = sum(model.has_experts(layer) for layer in range(model.layers))
    feed = products * model.ffn_width * (model.layers - mixtures)
    if mixtures:
        chosen = model.expert_width * (model.moe.top_k + model.moe.shared_experts)
        feed += mixtures * (products * chosen + 2 * model.moe.top_k * hidden * size)  # rows that are sent, and results
    return outside + core + feed // model.layers


def _of_two_parts(model: ModelConfig, parallel: ParallelConfig, size: int, sequence_length: int) -> int:
    """Each layer its own rows, and a decoder's layer attention to the encoder: queries and results on its rows, keys and values
    on the encoder's."""
    alone = replace(model, encoder_layers=0, encoder_length=0)
    plain = activation_bytes_per_token(alone, parallel, size, sequence_length)
    encoder = model.encoder_length / sequence_length
    query, key_value = 2 * model.heads * model.head_width, 2 * model.key_value_heads * model.head_width
    kept = (query + key_value * encoder / (1 - encoder)) * size / parallel.tensor + 2 * model.hidden_size * size
    decoder = model.layers * (1 - encoder) * (plain + kept)
    return int((model.encoder_layers * encoder * plain + decoder) / (model.encoder_layers + model.layers))
