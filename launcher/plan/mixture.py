"""Bytes that a mixture of experts keeps for backward on a rank, tensor by tensor; shares of tokens are taken to be even."""

from __future__ import annotations

import math

from launcher.plan.setting import FLOAT, INT, Setting, column_input, feed_bytes, narrowed, operand_bytes


def expert_bytes(s: Setting) -> int:
    """A mixture's router, the way of tokens to their experts and back, the experts and the shared ones. Shares are even."""
    model, moe = s.model, s.model.moe
    choices = s.full() * moe.top_k
    rows = arriving(s)
    hidden = model.hidden_size * s.size
    found = _router(s)
    found += _order_bytes(s)
    found += (2 * INT * rows) if s.expert > 1 else 0  # the order in which rows arrive, and in which they leave
    found += INT * rows if model.bias and not s.products.quantised else 0  # whose expert a row is
    found += operand_bytes(s, rows, model.hidden_size) if s.products.quantised else rows * hidden
    found += feed_bytes(s, model.expert_width, rows)
    found += rows * hidden + FLOAT * choices  # what experts gave, and its weights
    if moe.shared_experts:
        found += column_input(s) + feed_bytes(s, moe.shared_experts * model.expert_width)
    if moe.shared_gate:
        found += s.own() * (hidden + s.size)  # what is gated, and the gate
        if (s.sequence_parallel or narrowed(s)) and s.size < FLOAT:
            found += s.own() * hidden  # its input, which others keep gathered, in another format, or in float32
    return found


def _order_bytes(s: Setting) -> int:
    """Which row a choice has, which choice a row, and in block formats whose expert a row is; where numbers are rounded at
    random, which token, too."""
    choices = s.full() * s.model.moe.top_k
    if not s.products.quantised:
        return 2 * INT * choices
    return INT * (choices + arriving(s) * (3 if s.products.stochastic else 2))


def arriving(s: Setting) -> int:
    """Rows that the experts of a rank get where shares are even: those that capacity leaves, and zeros that fill blocks."""
    moe = s.model.moe
    choices = s.full() * moe.top_k
    if moe.capacity:
        choices = min(choices, moe.experts * math.ceil(moe.capacity * choices / moe.experts))
    step = s.products.step("weight_gradient") if s.products.quantised else 1
    return -(-(choices + moe.experts * (step - 1)) // step) * step if step > 1 else choices


def _router(s: Setting) -> int:
    """Its input in float32, scores and logits of every expert, and the choices."""
    moe, rows, hidden = s.model.moe, s.own(), s.model.hidden_size
    found = rows * hidden * FLOAT
    if (
        s.size == FLOAT
        and not moe.jitter
        and not s.products.quantised
        and not s.sequence_parallel
        and moe.shared_experts
    ):
        found = 0  # it is the shared experts' input
    if moe.jitter:
        found += rows * hidden * FLOAT  # the noise
    if s.size < FLOAT:
        found += moe.experts * hidden * FLOAT  # its weight
    found += rows * moe.experts * FLOAT * (2 if moe.z_loss else 1)
    return found + rows * moe.top_k * (INT + 2 * FLOAT)
