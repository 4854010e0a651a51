"""What the bytes of a layer depend on, and the terms that all layers share: streams, inputs of products, feed-forward."""

from __future__ import annotations

from dataclasses import dataclass, replace

from models.config import ModelConfig
from models.precision import BLOCKS, UNQUANTISED, ProductsConfig

FLOAT, INT = 4, 8
"""Bytes of what is computed in float32 whatever the model is in, and of indices."""
ELEMENT_BITS = {"mxfp6_e3m2": 6, "mxfp6_e2m3": 6, "mxfp4_e2m1": 4, "nvfp4": 4}
"""Of formats whose elements are narrower than a byte (`models.formats.elements`, which imports torch)."""


@dataclass(frozen=True)
class Setting:
    """All that the bytes of a layer depend on. size: bytes of a number of the model's type; fused: whether a GPU's kernels
    run, not plain torch, which keeps more; ring, ulysses: how attention crosses the context axis, where it does."""

    model: ModelConfig
    products: ProductsConfig
    size: int
    fused: bool
    micro_batch: int
    sequence_length: int
    tensor: int = 1
    context: int = 1
    ulysses: bool = False
    expert: int = 1
    sequence_parallel: bool = False
    recompute: str = "none"

    @property
    def ring(self) -> bool:
        return self.context > 1 and not self.ulysses

    def full(self, length: int | None = None) -> int:
        """f, of all positions or of so many of them."""
        return (self.sequence_length if length is None else length) // self.context * self.micro_batch

    def own(self, length: int | None = None) -> int:
        """o."""
        return self.full(length) // (self.tensor if self.sequence_parallel else 1)

    @property
    def query(self) -> int:
        return self.model.heads * self.model.head_width // self.tensor

    @property
    def key(self) -> int:
        return self.model.key_value_heads * self.model.head_width // self.tensor

    def high(self) -> Setting:
        """The same where nothing is quantised."""
        return replace(self, products=UNQUANTISED) if self.products.quantised else self


POWERS_KEPT = 7
"""Of PolyNorm written out, float32 tensors as large as its input."""


def stream_bytes(s: Setting) -> int:
    """What a norm was given: the residual stream before it (pre-norm) or the sum after it (post-norm), o x H."""
    return s.own() * s.model.hidden_size * s.size


def statistics(s: Setting, rows: int) -> int:
    """A norm's factor for each row in float32, and of LayerNorm its mean; torch's own on CPU has both in the model's type."""
    return rows * (2 * (FLOAT if s.fused else s.size) if s.model.norm == "layernorm" else FLOAT)


def dropped_bytes(s: Setting) -> int:
    """Which elements dropout has put to zero, bool o x H."""
    return s.own() * s.model.hidden_size if s.model.dropout else 0


def operand_bytes(s: Setting, rows: int, width: int) -> int:
    """What a quantised product keeps of its input for the weight's gradient: elements and scales along the rows."""
    format = s.products.weight_gradient.activation
    if format == "none":
        return rows * width * s.size
    elements = rows * width * ELEMENT_BITS.get(format, 8) // 8
    return elements + (rows // BLOCKS[format] * width if BLOCKS[format] else 0)


def column_input(s: Setting, width: int = 0) -> int:
    """The input of a layer that the tensor axis cuts along its outputs. Sequence parallelism gathers it before a plain
    product (f x H), and a quantised one keeps its share (o x H) and gathers again in backward."""
    width = width or s.model.hidden_size
    if s.products.quantised:
        return operand_bytes(s, s.own(), width)
    return s.full() * width * s.size


def row_input(s: Setting, width: int) -> int:
    """The input of a layer that it cuts along its inputs, f x width."""
    return operand_bytes(s, s.full(), width) if s.products.quantised else s.full() * width * s.size


def narrowed(s: Setting) -> bool:
    """Whether a product keeps its input in another format, so that the tensor itself is kept by others alone."""
    return s.products.quantised and s.products.weight_gradient.activation != "none"


def feed_bytes(s: Setting, width: int, rows: int | None = None) -> int:
    """From the product up to the input of the product down, f x width of this rank each; rows: of experts, their tokens."""
    rows = s.full() if rows is None else rows
    width //= s.tensor
    one, activation = rows * width * s.size, s.model.activation
    down = operand_bytes(s, rows, width) if s.products.quantised else one
    if s.model.gated:  # gate and up side by side; plain torch keeps the active gate, too
        return (2 if s.fused else 3) * one + down
    if activation == "relu":  # keeps its result, which is the input of the product down
        return one + (down if narrowed(s) else 0)
    if activation == "polynorm":
        return _powers(s, rows, width) + down
    return one + down  # its input; of squared ReLU in plain torch, what is squared


def _powers(s: Setting, rows: int, width: int) -> int:
    """PolyNorm's: by Triton its input and three factors a row; written out, what autograd keeps of each of three powers."""
    if s.fused and s.tensor == 1:
        return rows * width * s.size + rows * 3 * FLOAT
    return rows * width * FLOAT * POWERS_KEPT + rows * 3 * FLOAT
