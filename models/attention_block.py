"""Attention of some queries to some keys, of which there may be others: with the log-sum-exp by which blocks are merged.

Fused kernels of torch where there is one, else written out. Backward takes the output and log-sum-exp of the whole row, which
makes a block's gradients exact whatever the other blocks are (FlashAttention, arXiv 2205.14135, appendix B).

Shapes: q [B, A, Q, D], k and v [B, G, K, D], mask bool broadcastable to [B, 1, Q, K], out [B, A, Q, D], weight [B, A, Q].
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

_aten = torch.ops.aten
Drop = Callable[[Tensor], Tensor]
"""Dropout of attention weights, linear in them and always the same."""


def attend(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, causal: bool, drop: Drop | None
) -> tuple[Tensor, Tensor]:
    """Output and log-sum-exp (-inf where a row sees nothing; its output is 0).

    causal: where no mask is given, rows and columns are the same positions and see none after them.
    """
    k, v = (_repeat(part, q.shape[1]) for part in (k, v))
    kernel = _kernel(q, mask, drop)
    if kernel == "cpu":
        out, weight = _aten._scaled_dot_product_flash_attention_for_cpu(
            q, k, v, 0.0, causal and mask is None, attn_mask=_additive(mask, q)
        )
        return out, weight if mask is None else weight.masked_fill(~mask.any(-1), -math.inf)  # there it says 0
    if kernel == "cuda":
        out, weight = _aten._scaled_dot_product_flash_attention(q, k, v, 0.0, causal)[:2]
        return out, weight
    scores = _scores(q, k, mask, causal)
    weight = scores.logsumexp(-1)
    shares = (scores - weight.masked_fill(weight == -math.inf, 0).unsqueeze(-1)).exp()
    return (shares if drop is None else drop(shares)).to(v.dtype) @ v, weight


def attend_backward(
    gradient: Tensor,
    q: Tensor,
    out: Tensor,
    weight: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor | None,
    causal: bool,
    drop: Drop | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of q, k and v. out, weight: of the whole rows, over all blocks."""
    groups = k.shape[1]
    k, v = (_repeat(part, q.shape[1]) for part in (k, v))
    kernel = _kernel(q, mask, drop)
    if kernel == "cpu":
        found = _aten._scaled_dot_product_flash_attention_for_cpu_backward(
            gradient, q, k, v, out, weight, 0.0, causal and mask is None, attn_mask=_additive(mask, q)
        )
    elif kernel == "cuda":
        unused = torch.empty(
            2, dtype=torch.uint64, device=q.device
        )  # state of random numbers, which nothing draws here
        found = _aten._scaled_dot_product_flash_attention_backward(
            gradient, q, k, v, out, weight.contiguous(), None, None, q.shape[2], k.shape[2], 0.0, causal, unused, unused
        )
    else:
        found = _written_out_backward(gradient, q, out, weight, k, v, mask, causal, drop)
    for_query, for_key, for_value = found
    return for_query, *(part.unflatten(1, (groups, -1)).sum(2) for part in (for_key, for_value))


def _written_out_backward(
    gradient: Tensor,
    q: Tensor,
    out: Tensor,
    weight: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor | None,
    causal: bool,
    drop: Drop | None,
) -> tuple[Tensor, Tensor, Tensor]:
    shares = (_scores(q, k, mask, causal) - weight.unsqueeze(-1)).exp()
    for_shares = (gradient @ v.transpose(-1, -2)).to(shares.dtype)
    kept = shares if drop is None else drop(shares)
    for_shares = for_shares if drop is None else drop(for_shares)
    along = (gradient * out).to(shares.dtype).sum(-1, keepdim=True)
    for_scores = (shares * (for_shares - along) / math.sqrt(q.shape[-1])).to(q.dtype)
    return for_scores @ k, for_scores.transpose(-1, -2) @ q, kept.to(q.dtype).transpose(-1, -2) @ gradient


def _kernel(q: Tensor, mask: Tensor | None, drop: Drop | None) -> str:
    """Whose kernel takes a block: cpu, cuda, or none."""
    if drop is not None:
        return "none"
    if not q.is_cuda:
        return "cpu"
    half = q.dtype in (torch.bfloat16, torch.float16)
    return "cuda" if half and mask is None and q.shape[-1] % 8 == 0 and q.shape[-1] <= 256 else "none"


def _repeat(x: Tensor, heads: int) -> Tensor:
    return x if x.shape[1] == heads else x.repeat_interleave(heads // x.shape[1], dim=1)


def _additive(mask: Tensor | None, q: Tensor) -> Tensor | None:
    if mask is None:
        return None
    return torch.zeros(mask.shape, dtype=q.dtype, device=q.device).masked_fill_(~mask, -math.inf)


def _scores(q: Tensor, k: Tensor, mask: Tensor | None, causal: bool) -> Tensor:
    """[B, A, Q, K] in float32 or wider, -inf where a row does not see a column."""
    scores = (q @ k.transpose(-1, -2)).to(torch.promote_types(q.dtype, torch.float32)) / math.sqrt(q.shape[-1])
    if mask is None and causal:
        mask = torch.ones(scores.shape[-2:], dtype=torch.bool, device=q.device).tril()
    return scores if mask is None else scores.masked_fill(~mask, -math.inf)
