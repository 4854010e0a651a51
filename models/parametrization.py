"""How initial weights, learning rates and multipliers follow a model's width and depth, so that what was tuned on a small model
holds for a large one. No torch here: layouts and plans are judged before anything is built.

mup: Tensor Programs V (arXiv 2203.03466), table 8: the head's matrix stays as it was initialised at the base and its product is
divided, so that it may be tied to the embedding; attention is divided by the head size, not by its root. completep: the same,
and branches of the residual stream shrink with depth (arXiv 2505.01618, table 1). Written m for the width over the base's and d
for the depth over the base's, a for depth_exponent, against what `standard` has at the base (mup: d = 1):

    adamw               initial std   learning rate      weight decay   epsilon
    embeddings, head    1             1                  1              1 / m
    matrices            1 / sqrt(m)   d^(a-1) / m        m              1 / (m d^a)
    router, gates       1 / m         d^(a-1) / m        m              1 / d^a
    gains and biases    constant      d^(a-1) in layers  none           1 / m, in layers 1 / (m d^a)

    sgd (mup alone)     initial std   learning rate      weight decay
    embeddings, head    1             m                  1 / m
    matrices            1 / sqrt(m)   1                  1
    router, gates       1 / m         1 / m              m
    gains and biases    constant      m                  none

A router maps width to a number of experts that does not grow: it is an output, here as table 3 has outputs, without a
multiplier. The decay of a step, learning rate x weight decay, is the same at every width. Epsilon follows the gradients' size.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields

from models.errors import ModelError

KINDS = ("standard", "mup", "completep")


@dataclass(frozen=True)
class Scales:
    """How far a model is from its base. width, depth: over the base's. query, branch, head, embedding: what queries, what a
    layer adds to the residual stream, the head's input, and the embeddings are multiplied by."""

    width: float = 1.0
    depth: float = 1.0
    exponent: float = 1.0
    query: float = 1.0
    head: float = 1.0
    embedding: float = 1.0

    @property
    def branch(self) -> float:
        """What a part of a layer is multiplied by before it is added to the residual stream."""
        return self.depth**-self.exponent

    @property
    def matrix_std(self) -> float:
        """Of matrices both of whose sides grow with the width."""
        return self.width**-0.5

    @property
    def output_std(self) -> float:
        """Of matrices from the width to a few numbers."""
        return 1 / self.width

    @property
    def multipliers(self) -> dict[str, float]:
        """All that makes another function of the same weights."""
        return {name: getattr(self, name) for name in ("query", "branch", "head", "embedding")}


@dataclass(frozen=True)
class Scaling:
    """What the optimizer's options are multiplied by for one parameter."""

    rate: float = 1.0
    decay: float = 1.0
    epsilon: float = 1.0


@dataclass(frozen=True)
class ParametrizationConfig:
    """How a model differs from the smaller one, the base, that its learning rate was found on. Every width must grow with
    hidden_size: that of feed-forward layers and experts, and the heads' number or size."""

    kind: str = "standard"
    """standard: nothing follows the size. mup: initial weights, learning rates and multipliers follow the width (arXiv
    2203.03466). completep: the depth as well (arXiv 2505.01618)."""
    base_width: int = 0
    """mup and completep: hidden_size of the base, where all of it is as in standard."""
    base_head_size: int = 0
    """mup and completep: head size of the base. As that of this model where wider models get more heads; smaller where they get
    wider ones, whose attention is then divided by the head size instead of its root."""
    base_depth: int = 0
    """completep only: layers of the base."""
    depth_exponent: float = 1.0
    """completep only: branches are divided by (layers / base_depth) to this power, from 0.5 to 1, the published choice."""
    embedding_multiplier: float = 1.0
    """mup and completep: embeddings, positions included, are multiplied by this; tuned on the base."""
    output_multiplier: float = 1.0
    """mup and completep: logits are multiplied by this besides what follows the width; tuned on the base."""

    def __post_init__(self) -> None:
        """Refuse what cannot be, and what would have no effect."""
        where = "model.parametrization"
        if self.kind not in KINDS:
            raise ModelError(f"{where}.kind={self.kind}: choose one of {', '.join(KINDS)}")
        if self.kind == "standard":
            for one in fields(self):
                self._refuse_without_effect(one.name, "mup or completep")
            return
        if self.kind == "mup":
            self._refuse_without_effect("base_depth", "completep")
            self._refuse_without_effect("depth_exponent", "completep")
        needed = ("base_width", "base_head_size", *(("base_depth",) if self.kind == "completep" else ()))
        for option in needed:
            if getattr(self, option) < 1:
                raise ModelError(
                    f"{where}.{option}={getattr(self, option)}: {where}.kind={self.kind} needs the base model's, at least 1; "
                    "set it"
                )
        if not 0.5 <= self.depth_exponent <= 1:
            raise ModelError(f"{where}.depth_exponent={self.depth_exponent}: must be from 0.5 to 1")
        for option in ("embedding_multiplier", "output_multiplier"):
            if not 0 < getattr(self, option) < math.inf:
                raise ModelError(f"{where}.{option}={getattr(self, option)}: must be above 0")

    def _refuse_without_effect(self, option: str, kinds: str) -> None:
        if getattr(self, option) != getattr(ParametrizationConfig, option):
            raise ModelError(
                f"model.parametrization.{option}={getattr(self, option)}: has no effect with kind={self.kind}; leave it out or "
                f"set model.parametrization.kind to {kinds}"
            )

    def scales(self, width: int, depth: int, head_size: int) -> Scales:
        """Of a model of this hidden size, so many layers and this head size."""
        if self.kind == "standard":
            return Scales()
        wider = width / self.base_width
        return Scales(
            width=wider,
            depth=depth / self.base_depth if self.base_depth else 1.0,
            exponent=self.depth_exponent,
            # over the root of the head size, by which every attention core divides
            query=math.sqrt(self.base_head_size / head_size),
            head=self.output_multiplier / wider,
            embedding=self.embedding_multiplier,
        )


def scaling_of(scales: Scales, optimizer: str, name: str, dims: int) -> Scaling:
    """The row of the table above that a parameter is in. optimizer: adamw or sgd; dims: of the logical tensor."""
    role, inside = role_of(name, dims), name.startswith(("layers.", "encoder."))
    if optimizer == "sgd":
        rate = {"matrix": 1.0, "output": 1 / scales.width}.get(role, scales.width)
        return Scaling(rate, 1 / rate)
    depth = scales.depth ** (scales.exponent - 1) if inside else 1.0
    branch = scales.branch if inside else 1.0
    if role == "output":
        return Scaling(depth / scales.width, scales.width, branch)
    if role == "matrix":
        return Scaling(depth / scales.width, scales.width, branch / scales.width)
    return Scaling(depth, 1.0, branch / scales.width)


def role_of(name: str, dims: int) -> str:
    """embedding (and head), vector (gains and biases), output (routers and gates) or matrix: by a parameter's logical name."""
    if dims <= 1:
        return "vector"
    if name in ("embedding.token.weight", "positions.weight", "head.projection.weight"):
        return "embedding"
    return "output" if name.endswith(("router.weight", "shared_gate.weight")) else "matrix"
