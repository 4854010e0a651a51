"""The losses of a chunk's logits and their gradient in one launch.

A program reads a row of logits twice, and writes it once: what it has just read it finds in the L2 cache again, as long as all
programs' rows fit there. With 16 warps two programs fill an SM's 64 warps to half, so 264 rows of 256 KB are on their way on an
H100, of which L2 holds a good part; more programs would evict one another's rows.
"""

from __future__ import annotations

from collections.abc import Iterator

import triton.language as tl
from torch import Tensor

from models.kernels.cross_entropy.triton import gradient as gradient
from models.kernels.cross_entropy.triton import gradient_of, loss_of, scan_row, sizes
from models.kernels.cross_entropy.triton import losses as losses
from models.kernels.cross_entropy.triton import statistics as statistics
from models.kernels.cross_entropy.vocabulary import Terms, accumulated_in
from models.kernels.runtime.compiling import Compilation
from models.kernels.runtime.jit import kernel
from models.kernels.runtime.rounding import rounded

WIDEST, WARPS = 8192, 16


@kernel
def _both(
    logits, targets, scales, losses, lses, stride, vocab,
    Z: tl.constexpr, SMOOTHING: tl.constexpr, BLOCK: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """One program a row."""
    index = tl.program_id(0)
    row = logits + index.to(tl.int64) * stride
    target = tl.load(targets + index)
    logit = tl.load(row + target).to(WIDE)
    largest, powers, total = scan_row(row, vocab, BLOCK, SMOOTHING > 0, WIDE)
    loss, lse = loss_of(largest, powers, total, logit, vocab, Z, SMOOTHING)
    tl.store(losses + index, loss)
    tl.store(lses + index, lse)
    scale = tl.load(scales + index)
    for start in range(0, vocab, BLOCK):
        at = start + tl.arange(0, BLOCK)
        x = tl.load(row + at, mask=at < vocab, other=0.0).to(WIDE)
        found = gradient_of(x, at, target, lse, scale, vocab, Z, SMOOTHING)
        tl.store(row + at, rounded(found, logits.dtype.element_ty), mask=at < vocab)


def both(logits: Tensor, targets: Tensor, scale: Tensor, terms: Terms) -> tuple[Tensor, Tensor]:
    """As `HeadFunctions.both`."""
    rows, vocab = logits.shape
    loss, lse = (logits.new_empty(rows, dtype=accumulated_in(logits.dtype)) for _ in range(2))
    how = sizes(logits, WIDEST, WARPS)
    if rows:
        _both[(rows,)](
            logits, targets, scale, loss, lse, logits.stride(0), vocab,
            Z=terms.z_loss, SMOOTHING=terms.label_smoothing, **how,
        )  # fmt: skip
    return loss, lse


def compilations() -> Iterator[Compilation]:
    """Llama 3's vocabulary."""
    signature = {"logits": "*bf16", "targets": "*i64", "stride": "i32", "vocab": "i32"}
    signature |= dict.fromkeys(("scales", "losses", "lses"), "*fp32")
    for z, smoothing in ((0.0, 0.0), (1e-4, 0.1)):
        constants = {"Z": z, "SMOOTHING": smoothing, "BLOCK": WIDEST, "WIDE": tl.float32}
        yield Compilation(_both, signature, constants, WARPS, ("stride", "vocab"))
