"""How many blocks a decoder has and what each costs, without torch, so that layouts can be judged before anything is built."""

from __future__ import annotations

from models.config import ModelConfig
from models.flops import mean_keys, two_part_costs


def block_count(config: ModelConfig) -> int:
    """Number of blocks: embedding, positions, the encoder's layers and (pre-norm models) their norm, layers, the final norm of
    pre-norm models, head."""
    pre = config.norm_position == "pre"
    encoder = config.encoder_layers + pre if config.encoder_layers else 0
    return encoder + config.layers + 3 + pre


def block_costs(config: ModelConfig, sequence_length: int) -> list[float]:
    """Estimated cost of each block in FLOPs a token, for cutting pipeline stages evenly: matrix products forward and
    backward; looking up an embedding costs next to nothing, the head as much as its matrix."""
    if config.encoder_layers:
        encoder, decoder, head = two_part_costs(config, sequence_length)
        small = 0.01 * decoder / config.layers
        norm = [small] if config.norm_position == "pre" else []
        first = [encoder / config.encoder_layers] * config.encoder_layers
        last = [decoder / config.layers] * config.layers
        return [small, small, *first, *norm, *last, *norm, head]
    width = config.head_width * (2 * config.heads + 2 * config.key_value_heads)
    chosen = config.expert_width * (config.moe.top_k + config.moe.shared_experts)
    products = 3 if config.gated else 2
    scores = 12.0 * config.heads * config.head_width * mean_keys(config, sequence_length)
    layers = [
        6.0 * config.hidden_size * (width + products * (chosen if config.has_experts(index) else config.ffn_width))
        + scores
        for index in range(config.layers)
    ]
    small = 0.01 * layers[0]
    tail = [small] if config.norm_position == "pre" else []
    return [small, small, *layers, *tail, 6.0 * config.hidden_size * config.padded_vocab]
