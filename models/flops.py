"""Floating-point operations of a model, counted product by product, without torch."""

from __future__ import annotations

from models.config import ModelConfig, count_active_parameters


def mean_keys(config: ModelConfig, sequence_length: int) -> float:
    """Positions that one position sees on average, in round numbers: half of them all under a causal mask, at most the
    window; borders of documents are not known here."""
    sides = 1 if config.causal else 2
    seen = sides * sequence_length / 2
    if not 0 < config.attention_window < sequence_length:
        return seen
    window = config.attention_window  # the first `window` positions see half of it on average
    return sides * (window - window * window / (2 * sequence_length))


def flops_per_token(config: ModelConfig, sequence_length: int) -> float:
    """Floating-point operations of forward and backward for one token: 6 for each weight of a matrix product (of routed
    experts the chosen ones), and 12 x layers x heads x head_size x keys for attention scores, half the sequence under a causal
    mask (PaLM, appendix B, arXiv 2204.02311; the causal half as in most published utilisations)."""
    if config.encoder_layers:
        return sum(two_part_costs(config, sequence_length))
    weights = count_active_parameters(config)
    if not config.tied_embeddings:
        weights -= config.padded_vocab * config.hidden_size
    if config.positions == "learned":
        weights -= config.max_sequence * config.hidden_size
    scores = config.layers * config.heads * config.head_width * mean_keys(config, sequence_length)
    return 6.0 * weights + 12.0 * scores


def two_part_costs(config: ModelConfig, sequence_length: int) -> tuple[float, float, float]:
    """Floating-point operations of an encoder-decoder's encoder, decoder and head, forward and backward, for one token of its
    sequences, the encoder's and the decoder's counted alike: as `flops_per_token` counts, each product over the rows it has."""
    encoder, decoder = config.encoder_length, sequence_length - config.encoder_length
    hidden, query = config.hidden_size, config.heads * config.head_width
    key_value = 2 * config.key_value_heads * config.head_width
    feed = hidden * config.ffn_width * (3 if config.gated else 2)
    within = mean_keys(config.encoder(), encoder), mean_keys(config, decoder)
    plain = 6.0 * (hidden * (2 * query + key_value) + feed)  # self-attention and feed-forward, a row
    first = encoder * (plain + 12.0 * query * within[0])
    last = decoder * (plain + 12.0 * query * within[1])
    last += decoder * (6.0 * hidden * 2 * query + 12.0 * query * encoder) + encoder * 6.0 * hidden * key_value
    head = decoder * 6.0 * hidden * config.padded_vocab
    return (
        config.encoder_layers * first / sequence_length,
        config.layers * last / sequence_length,
        head / sequence_length,
    )
