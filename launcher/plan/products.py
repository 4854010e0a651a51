"""The matrix products of a model, one by one: what a rank multiplies for one micro-batch, and FLOPs a token by part. No torch.

A linear layer forward is (rows x inner) times (inner x columns); backward it is two products of as many operations, one for the
gradient of its input and one for that of its weight. Attention cores are kept apart, since fused ones form no scores.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

from models.config import ModelConfig
from models.flops import mean_keys

ATTENTION, FEED_FORWARD, EXPERTS, HEAD = "attention", "feed-forward", "experts", "head"
PARTS = (ATTENTION, FEED_FORWARD, EXPERTS, HEAD)


@dataclass(frozen=True)
class Product:
    """`count` products [rows, inner] x [inner, columns] that are independent of one another. part: one of PARTS."""

    part: str
    rows: float
    columns: int
    inner: int
    count: float = 1.0

    @property
    def flops(self) -> float:
        """Operations, a multiplication and an addition counted as two."""
        return 2.0 * self.rows * self.columns * self.inner * self.count

    @property
    def backward(self) -> tuple[Product, Product]:
        """The products of the gradients of the rows and of the columns."""
        inputs = Product(self.part, self.rows, self.inner, self.columns, self.count)
        return inputs, Product(self.part, self.columns, self.inner, int(self.rows), self.count)


@dataclass(frozen=True)
class Core:
    """Attention cores: `queries` positions that see `seen` others of `keys` on average, by `heads` heads of `width`; key
    and value heads: `groups`. queries: of all sequences of the micro-batch on this rank."""

    queries: float
    keys: int
    seen: float
    heads: float
    groups: float
    width: int

    @property
    def flops(self) -> float:
        """Operations forward where only what is seen is computed."""
        return 4.0 * self.queries * self.seen * self.heads * self.width

    @property
    def scores(self) -> float:
        """Elements of the score matrices, hidden ones too."""
        return self.queries * self.keys * self.heads


@dataclass(frozen=True)
class Share:
    """What a rank gets of a micro-batch. tokens: of all its sequences after the context axis cut them; the degrees cut
    features and experts. length: tokens of a whole sequence."""

    tokens: float
    length: int
    tensor: int = 1
    context: int = 1
    expert: int = 1


@dataclass(frozen=True)
class Layer:
    """The work of one layer for one micro-batch. rows: tokens that pass through it on this rank."""

    rows: float
    products: tuple[Product, ...]
    cores: tuple[Core, ...]
    routed: float = 0.0
    """Rows that routed experts here work on: every token once for each expert that it chose."""

    @property
    def flops(self) -> float:
        """Operations forward."""
        return sum(product.flops for product in self.products) + sum(core.flops for core in self.cores)


DENSE, MIXTURE, ENCODER, DECODER = "dense", "mixture", "encoder", "decoder"


def layer_kinds(model: ModelConfig) -> list[str]:
    """What each layer is, the encoder's first."""
    if model.encoder_layers:
        return [ENCODER] * model.encoder_layers + [DECODER] * model.layers
    return [MIXTURE if model.has_experts(layer) else DENSE for layer in range(model.layers)]


@lru_cache(maxsize=4096)
def layer_of(model: ModelConfig, kind: str, share: Share) -> Layer:
    """The work of a layer of a kind."""
    encoder = model.encoder_length / share.length
    part = {ENCODER: encoder, DECODER: 1 - encoder}.get(kind, 1.0)
    rows, length = share.tokens * part, round(share.length * part)
    seen = mean_keys(model.encoder() if kind == ENCODER else model, length)
    products, cores = [*_projections(model, rows, rows, share.tensor)], [_core(model, rows, length, seen, share)]
    if kind == DECODER:  # queries of its own rows, keys and values of the encoder's
        products += _projections(model, rows, share.tokens * encoder, share.tensor)
        cores.append(_core(model, rows, model.encoder_length, model.encoder_length, share))
    if kind != MIXTURE:
        feed = _feed_forward(model, FEED_FORWARD, rows, model.ffn_width, share.tensor)
        return Layer(rows, (*products, *feed), tuple(cores))
    moe, held = model.moe, model.moe.experts // share.expert
    routed = rows * moe.top_k  # even shares: what other ranks send here is what is sent to them
    products += [Product(EXPERTS, rows, moe.experts, model.hidden_size)]
    products += _feed_forward(model, EXPERTS, routed / held, model.expert_width, share.tensor, held)
    if moe.shared_experts:
        width = moe.shared_experts * model.expert_width
        products += _feed_forward(model, EXPERTS, rows, width, share.tensor)
        products += [Product(EXPERTS, rows, 1, model.hidden_size)] if moe.shared_gate else []
    return Layer(rows, tuple(products), tuple(cores), routed)


def head_of(model: ModelConfig, share: Share) -> Product:
    """Logits of the tokens that are predicted."""
    rows = share.tokens * (1 - model.encoder_length / share.length)
    return Product(HEAD, rows, model.padded_vocab // share.tensor, model.hidden_size)


def _projections(model: ModelConfig, rows: float, key_rows: float, tensor: int) -> list[Product]:
    hidden, width = model.hidden_size, model.head_width
    query, pairs = model.heads * width // tensor, 2 * model.key_value_heads * width // tensor
    out = Product(ATTENTION, rows, hidden, query)
    if rows == key_rows:
        return [Product(ATTENTION, rows, query + pairs, hidden), out]
    return [Product(ATTENTION, rows, query, hidden), Product(ATTENTION, key_rows, pairs, hidden), out]


def _core(model: ModelConfig, rows: float, keys: int, seen: float, share: Share) -> Core:
    heads, groups = model.heads / share.tensor, model.key_value_heads / share.tensor
    return Core(rows, keys, seen, heads, groups, model.head_width)


def _feed_forward(
    model: ModelConfig, part: str, rows: float, width: int, tensor: int, count: float = 1.0
) -> list[Product]:
    up = width * (2 if model.gated else 1) // tensor
    return [
        Product(part, rows, up, model.hidden_size, count),
        Product(part, rows, model.hidden_size, width // tensor, count),
    ]


def flops_by_part(model: ModelConfig, sequence_length: int, recompute: str = "none") -> dict[str, float]:
    """FLOPs a token, forward and backward, by part; `recompute` is what is computed again on top of them."""
    share = Share(tokens=sequence_length, length=sequence_length)
    found = dict.fromkeys(PARTS, 0.0)
    again = 0.0
    for kind in layer_kinds(model):
        layer = layer_of(model, kind, share)
        for product in layer.products:
            found[product.part] += 3 * product.flops
        cores = sum(core.flops for core in layer.cores)
        found[ATTENTION] += 3 * cores
        again += {"none": 0.0, "selective": cores, "block": layer.flops}[recompute]
    found[HEAD] = 3 * head_of(model, share).flops
    return {
        part: value / sequence_length
        for part, value in (found | {"recompute": again}).items()
        if value or part in PARTS
    }
