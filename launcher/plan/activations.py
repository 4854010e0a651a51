"""Bytes that one micro-batch keeps for backward on a rank, tensor by tensor, as the models save them.

Each term below is a tensor that some autograd function of `models/` or `parallel/` saves, or that lives as long as one
because it shares its storage; nothing is fitted. `launcher.bench.counting` counts the real ones.

Shapes: f rows whose heads and features this rank computes (sequence / context x micro-batch), o rows as they flow between
blocks (f / tensor under sequence parallelism), H hidden, A and G features of this rank's query and of its key (or value)
heads."""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache

from launcher.plan.mixture import arriving, expert_bytes
from launcher.plan.setting import (
    FLOAT,
    Setting,
    column_input,
    dropped_bytes,
    feed_bytes,
    narrowed,
    operand_bytes,
    row_input,
    statistics,
    stream_bytes,
)


@lru_cache(maxsize=1 << 16)
def kept_by_layer(s: Setting, kind: str) -> int:
    """Bytes of a layer of a kind (`launcher.plan.parameters.kind_of`), its own input among them."""
    if s.recompute == "block":
        return s.own() * s.model.hidden_size * s.size  # the layer's input, from which all else is computed again
    return whole_layer(s, kind)


@lru_cache(maxsize=1 << 16)
def whole_layer(s: Setting, kind: str) -> int:
    """The same of a layer that is not to be computed again, or while it is."""
    model = s.model
    if kind == "encoder":
        part = s.sequence_length - model.encoder_length
        inner = replace(s, model=model.encoder(), sequence_length=model.encoder_length)
        # the input's encoder rows are a view of all rows, which stay with them
        return whole_layer(inner, "dense") + s.own(part) * model.hidden_size * s.size
    if kind == "cross":
        return _cross_layer(s)
    found = 2 * (stream_bytes(s) + statistics(s, s.own()) + dropped_bytes(s)) + _attention(s)
    return found + (expert_bytes(s) if kind == "experts" else column_input(s) + feed_bytes(s, model.ffn_width))


def _cross_layer(s: Setting) -> int:
    """A decoder layer that attends to an encoder's rows: three branches on the decoder's rows, of which the first's input is
    a view of all rows."""
    model, width = s.model, s.model.encoder_length
    inner = replace(s, sequence_length=s.sequence_length - width)
    found = 3 * (stream_bytes(inner) + statistics(inner, inner.own()) + dropped_bytes(inner))
    found += s.own(width) * model.hidden_size * s.size
    found += _attention(inner) + _cross_attention(inner, width)
    return found + column_input(inner) + feed_bytes(inner, model.ffn_width)


@lru_cache(maxsize=1 << 16)
def split_layer(s: Setting, kind: str) -> int:
    """Output gradients that a layer keeps from its input gradient to its weight gradients, where backward is split: of the two
    products that end in the residual stream, of both norms, and of what is projected."""
    if kind in ("encoder", "cross"):  # what is not counted apart is taken as of all rows
        return split_layer(s, "dense") + (s.full() * (s.query + 2 * s.key) * s.size if kind == "cross" else 0)
    model = s.model
    found = 4 * stream_bytes(s) + s.full() * (s.query + 2 * s.key) * s.size
    up = 2 if model.gated else 1
    if kind == "experts":
        shared = s.full() * model.moe.shared_experts
        return (
            found
            + up * (arriving(s) + shared) * (model.expert_width // s.tensor) * s.size
            + arriving(s) * model.hidden_size * s.size
        )
    return found + up * s.full() * (model.ffn_width // s.tensor) * s.size


def head_input(s: Setting) -> int:
    """The head's input: of an encoder-decoder's the decoder's rows, which are a view of all where nothing is gathered."""
    model = s.model
    rows = s.sequence_length - model.encoder_length
    if s.products.quantised and "head" not in s.products.high:
        return operand_bytes(s, s.own(rows), model.hidden_size)
    return s.full(rows if s.sequence_parallel else None) * model.hidden_size * s.size


# Parts of a layer -----------------------------------------------------------------------------------------------------


def _attention(s: Setting) -> int:
    """From the normed input to what enters the output projection."""
    return column_input(s) + _heads(s) + _core(s, s.full(), s.sequence_length // s.context) + _mixed(s)


def _heads(s: Setting) -> int:
    """Queries, keys and values as attention gets them."""
    model, rows = s.model, s.full() * s.size
    fused = rows * (s.query + 2 * s.key)  # all three as one product gives them; the values are a view of it
    normed = model.qk_norm or model.qk_norm_whole
    statistics = _head_norms(s, s.full(), s.full())
    if s.ulysses:
        # what came from the other ranks, of which queries, keys and values are views; where heads are few, keys are repeated
        keys = max(s.key, s.context * model.head_width)
        return rows * (s.query + 2 * keys) + (fused + statistics if normed else 0)
    turned = rows * (s.query + s.key)
    if model.attention_dropout and s.recompute != "selective":
        # copies by heads, keys and values of each query head, that products of matrices are made of
        return rows * 3 * s.query + (fused + statistics if normed else 0)
    if normed:
        return fused + turned + statistics  # norms keep views of the product; what is normed, or turned, is new
    if model.positions == "rotary" and not s.fused:
        return fused + turned  # plain torch turns into new memory, Triton in place
    return fused


def _head_norms(s: Setting, queries: int, keys: int) -> int:
    """Statistics of query-key norms over so many rows: one a head, or one for all of them."""
    model = s.model
    if model.qk_norm:
        return FLOAT * (queries * model.heads + keys * model.key_value_heads) // s.tensor
    if not model.qk_norm_whole:
        return 0
    if s.tensor == 1:
        return FLOAT * (queries + keys)
    # written out in float32: what is normed before its gain, and the input, where that is narrower
    wide = FLOAT if s.size == FLOAT else 2 * FLOAT
    return (queries * s.query + keys * s.key) * wide + FLOAT * (queries + keys)


def _core(s: Setting, rows: int, keys: int) -> int:
    """What attention keeps beside queries, keys and values: its output, the log-sum-exp of each row and head, and a mask. None
    of it where it is computed again. keys: positions of a sequence that it is given."""
    if s.recompute == "selective":
        return 0
    heads = s.model.heads // s.tensor
    if s.model.attention_dropout and s.context == 1:
        scores = rows * heads * keys  # softmax in float32, what was dropped, and weights in the model's type
        return scores * (FLOAT + 1 + s.size) + _mask(s, rows, keys, 1)
    found = rows * s.query * s.size + rows * heads * FLOAT
    return found + (_mask(s, rows, keys, s.size) if s.context == 1 else 0)


def _mask(s: Setting, rows: int, keys: int, size: int) -> int:
    """Who sees whom, where more is hidden than what comes later: rows x keys of one sequence, or of each where documents part
    them. A fused core keeps it as a number of the model's type, each layer its own."""
    model = s.model
    if model.attention_kernel == "varlen":
        return 0
    if model.parted or model.prefix_mask:
        return rows * keys * size
    windowed = 0 < model.attention_window < keys
    return rows // s.micro_batch * keys * size if windowed or model.attention_dropout else 0


def _mixed(s: Setting) -> int:
    """The input of the output projection, where it is not a view of what the core keeps."""
    if narrowed(s):
        return row_input(s, s.query)
    apart = (
        s.recompute == "selective" or s.context > 1 or s.model.attention_kernel == "varlen" or s.model.attention_dropout
    )
    return s.full() * s.query * s.size if apart else 0


def _cross_attention(s: Setting, encoder: int) -> int:
    """Queries of the decoder's rows, keys and values of so many of the encoder's. s: of the decoder's rows."""
    theirs = s.full(encoder)
    found = column_input(s) + (s.full() * s.query + theirs * 2 * s.key) * s.size
    if s.model.qk_norm or s.model.qk_norm_whole:
        found += (s.full() * s.query + theirs * s.key) * s.size + _head_norms(s, s.full(), theirs)
    if s.products.quantised:
        found += operand_bytes(s, s.own(encoder), s.model.hidden_size)
    elif s.sequence_parallel:
        found += theirs * s.model.hidden_size * s.size  # gathered; else a view of the layer's input
    return found + _core(s, s.full(), encoder) + _mixed(s)
