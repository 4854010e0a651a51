"""What the products of linear layers are quantised to. No torch here: the launcher refuses before it starts.

A linear layer y = x Wᵀ has three products: forward (activations and weights, along the inputs), input gradient (output
gradients and weights, along the outputs) and weight gradient (output gradients and activations, along the tokens of a
sequence). Each operand is quantised along the dimension that its product sums over (Microscaling, arXiv 2310.10537, section 4).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from models.errors import ModelError

BLOCKS = {
    "mxfp8_e4m3": 32,
    "mxfp8_e5m2": 32,
    "mxfp6_e3m2": 32,
    "mxfp6_e2m3": 32,
    "mxfp4_e2m1": 32,
    "mxint8": 32,
    "nvfp4": 16,
    "fp8_e4m3": 0,
    "fp8_e5m2": 0,
}
"""Elements that share a scale, by format; 0: a row of the product or the whole tensor (`fp8_scale`)."""

SCALES = ("floor", "rceil", "ceil", "even")
ROUNDINGS = ("nearest_even", "half_away", "stochastic")
HADAMARD = ("off", "deterministic", "random")
HIGH = ("embeddings", "head", "router")
FP8_SCALES = ("tensor", "row")

_OPERANDS = {
    "forward": ("activation", "weight"),
    "input_gradient": ("gradient", "weight"),
    "weight_gradient": ("gradient", "activation"),
}


@dataclass(frozen=True)
class ProductConfig:
    """The two operands of one product, and how they get into their formats. An operand of `none` is left as it is."""

    activation: str = "none"
    """Format of the activations; of forward and weight_gradient."""
    weight: str = "none"
    """Format of the weights; of forward and input_gradient."""
    gradient: str = "none"
    """Format of the output gradients; of input_gradient and weight_gradient."""
    rounding: str = "nearest_even"
    """How activations and weights are rounded: nearest_even, half_away, stochastic."""
    gradient_rounding: str = "nearest_even"
    """How output gradients are rounded."""
    hadamard: str = "off"
    """Rotation of both operands along the sum, which spreads outliers: off, deterministic, random (signs by seed)."""
    hadamard_size: int = 64
    """Elements that are rotated together, a power of two."""

    @property
    def formats(self) -> tuple[str, ...]:
        """Those that are in use."""
        return tuple(name for name in (self.activation, self.weight, self.gradient) if name != "none")


@dataclass(frozen=True)
class ProductsConfig:
    """The three products of every linear layer but those that stay high. Norms, biases, attention and the residual stream are
    never quantised; a bias and the sum of a product are added in float32 or the model's own precision."""

    forward: ProductConfig = ProductConfig()
    input_gradient: ProductConfig = ProductConfig()
    weight_gradient: ProductConfig = ProductConfig()
    scale: str = "floor"
    """How a block's power of two is found: floor (the specification's), rceil, ceil, even."""
    fp8_scale: str = "tensor"
    """What shares a scale in fp8_e4m3 and fp8_e5m2: the whole tensor, or each row of a product."""
    square_weights: bool = False
    """Blocks of weights are square (32 x 32), so that forward and backward see the same weights."""
    high: tuple[str, ...] = HIGH
    """What stays in the model's own precision, of embeddings, head and router."""
    high_first: int = 0
    """Layers at the beginning of each stack that stay in the model's own precision."""
    high_last: int = 0
    """Layers at its end that do."""

    def __post_init__(self) -> None:
        """Refuse what no product can do."""
        for name in _OPERANDS:
            self._check_product(name, getattr(self, name))
        _one_of("precision.products.scale", self.scale, SCALES)
        _one_of("precision.products.fp8_scale", self.fp8_scale, FP8_SCALES)
        for part in self.high:
            _one_of("precision.products.high", part, HIGH)
        for option in ("high_first", "high_last"):
            if getattr(self, option) < 0:
                raise ModelError(f"precision.products.{option}={getattr(self, option)}: must be at least 0")
        if not self.quantised:
            self._refuse_without_effect()
        elif self.square_weights and not (self.forward.weight == self.input_gradient.weight != "none"):
            raise ModelError(
                "precision.products.square_weights=true: forward.weight="
                f"{self.forward.weight} and input_gradient.weight={self.input_gradient.weight} must be the same block format; "
                "make them so, or set square_weights=false"
            )
        elif self.square_weights and not BLOCKS[self.forward.weight]:
            raise ModelError(
                f"precision.products.square_weights=true: has no effect on {self.forward.weight}, which has no blocks; set "
                "it to false"
            )

    @property
    def quantised(self) -> bool:
        """Whether any product is."""
        return any(getattr(self, name).formats for name in _OPERANDS)

    @property
    def stochastic(self) -> bool:
        """Whether anything is rounded at random."""
        return any(
            "stochastic" in (product.rounding, product.gradient_rounding)
            for product in (self.forward, self.input_gradient, self.weight_gradient)
        )

    def above(self, index: int, count: int) -> bool:
        """Whether layer `index` of a stack of `count` stays high."""
        return index < self.high_first or index >= count - self.high_last

    def step(self, name: str) -> int:
        """What the length that a product sums over must be a multiple of, on every rank; 1 for anything."""
        product: ProductConfig = getattr(self, name)
        blocks = [max(1, BLOCKS[format]) for format in product.formats]
        return max([*blocks, product.hadamard_size if product.hadamard != "off" else 1])

    def _check_product(self, name: str, product: ProductConfig) -> None:
        where = f"precision.products.{name}"
        for operand in ("activation", "weight", "gradient"):
            format = getattr(product, operand)
            _one_of(f"{where}.{operand}", format, ("none", *BLOCKS))
            if operand not in _OPERANDS[name] and format != "none":
                raise ModelError(
                    f"{where}.{operand}={format}: this product has no such operand, it multiplies "
                    f"{' and '.join(_OPERANDS[name])}; set it to none"
                )
        _one_of(f"{where}.hadamard", product.hadamard, HADAMARD)
        for option in ("rounding", "gradient_rounding"):
            _one_of(f"{where}.{option}", getattr(product, option), ROUNDINGS)
        size = product.hadamard_size
        if size < 2 or size & (size - 1) or size > 1024:
            raise ModelError(f"{where}.hadamard_size={size}: must be a power of two from 2 to 1024")
        default = ProductConfig()
        for option, acts in (
            ("hadamard", len(product.formats) > 0),
            ("hadamard_size", product.hadamard != "off"),
            ("rounding", bool({product.activation, product.weight} - {"none"})),
            ("gradient_rounding", product.gradient != "none"),
        ):
            if not acts and getattr(product, option) != getattr(default, option):
                raise ModelError(
                    f"{where}.{option}={getattr(product, option)}: has no effect where nothing of this product is quantised "
                    "that it acts on; leave it out or choose a format"
                )

    def _refuse_without_effect(self) -> None:
        default = ProductsConfig.__dataclass_fields__
        for option in ("scale", "fp8_scale", "square_weights", "high", "high_first", "high_last"):
            if getattr(self, option) != default[option].default:
                raise ModelError(
                    f"precision.products.{option}={getattr(self, option)}: has no effect where no product is quantised; leave "
                    "it out or choose formats (precision=mxfp8, say)"
                )


def _one_of(option: str, value: str, choices: Iterable[str]) -> None:
    if value not in choices:
        raise ModelError(f"{option}={value}: choose one of {', '.join(choices)}")


UNQUANTISED = ProductsConfig()
"""Every product in the model's own precision."""
