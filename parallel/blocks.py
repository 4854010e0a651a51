"""Whether the blocks of quantised products fit a model at a layout, so that none straddles a shard. No torch here."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from models.config import ModelConfig
from models.precision import BLOCKS, ProductsConfig
from parallel.config import ParallelConfig, ParallelError


@dataclass(frozen=True)
class Layer:
    """A linear layer of the model. inputs, outputs: (option that decides it, width) of the parts fused in each; column: whether
    the tensor axis cuts the outputs, else the inputs; whole: it cuts neither."""

    name: str
    inputs: tuple[str, int]
    outputs: tuple[tuple[str, int], ...]
    column: bool
    whole: bool = False


def linear_layers(model: ModelConfig, products: ProductsConfig) -> Iterator[Layer]:
    """Those whose products are quantised, each kind once."""
    hidden, width = ("hidden_size", model.hidden_size), model.head_width
    query, keys = ("heads", model.heads * width), ("kv_heads", model.key_value_heads * width)
    yield Layer("attention.qkv", hidden, (query, keys, keys), True)
    yield Layer("attention.output", query, (hidden,), False)
    widths = {}
    if not all(model.has_experts(layer) for layer in range(model.layers)):
        widths["feed_forward"] = ("ffn_size", model.ffn_width)
    if model.moe.experts:
        widths["experts"] = ("moe.expert_size", model.expert_width)
        if model.moe.shared_experts:
            widths["shared"] = ("moe.expert_size", model.moe.shared_experts * model.expert_width)
    for name, inner in widths.items():
        yield Layer(f"{name}.up", hidden, (inner,) * (2 if model.gated else 1), True)
        yield Layer(f"{name}.down", inner, (hidden,), False)
    if "head" not in products.high:
        yield Layer("head", hidden, (("vocab_size (padded)", model.padded_vocab),), True)
    if model.moe.experts and "router" not in products.high:
        yield Layer("router", hidden, (("moe.experts", model.moe.experts),), True, whole=True)


def check_products(config: ParallelConfig, model: ModelConfig, products: ProductsConfig, length: int) -> None:
    """Refuse widths and sequence lengths whose blocks would straddle a shard, and what has no effect."""
    if not products.quantised:
        return
    stacks = [model.layers, *([model.encoder_layers] if model.encoder_layers else [])]
    if all(products.above(index, count) for count in stacks for index in range(count)) and "head" in products.high:
        raise ParallelError(
            f"precision.products.high_first={products.high_first} and high_last={products.high_last}: leave no layer of "
            f"model.layers={model.layers} to quantise; lower them or choose precision=bf16"
        )
    for layer in linear_layers(model, products):
        _check_widths(config, products, layer)
    _check_tokens(config, model, products, length)
    _check_experts(config, model, products)


def _check_widths(config: ParallelConfig, products: ProductsConfig, layer: Layer) -> None:
    tensor = 1 if layer.whole else config.tensor
    square = BLOCKS[products.forward.weight] if products.square_weights else 1
    for product, parts, cut in (
        ("forward", (layer.inputs,), not layer.column),
        ("input_gradient", layer.outputs, layer.column),
    ):
        step, degree = max(products.step(product), square), tensor if cut else 1
        # uncut, parts lie side by side and only their sum counts
        sizes = parts if degree > 1 else ((parts[0][0], sum(width for _, width in parts)),)
        for option, width in sizes:
            if width // degree % step:
                share = f", of which a rank of parallel.tensor={degree} has {width // degree}" if degree > 1 else ""
                raise ParallelError(
                    f"model.{option}: gives {layer.name} a dimension of {width}{share}, which precision.products.{product} "
                    f"cuts into blocks of {step}; make that a multiple of {step}, or choose another tensor degree or format"
                )


def _check_tokens(config: ParallelConfig, model: ModelConfig, products: ProductsConfig, length: int) -> None:
    step = products.step("weight_gradient")
    ring = config.context > 1 and config.context_method == "ring"
    pieces = config.context * (2 if ring else 1)
    parts = (model.encoder_length, length - model.encoder_length) if model.encoder_layers else (length,)
    for part in parts:
        shares = [part // pieces]
        if config.sequence_parallel:
            shares.append(part // config.context // config.tensor)
        for share in shares:
            if share % step:
                raise ParallelError(
                    f"train.sequence_length={length}: leaves {share} tokens of a sequence together, which "
                    f"precision.products.weight_gradient cuts into blocks of {step}; choose a length whose shares are "
                    f"multiples of {step}, or keep that product high (weight_gradient.activation=none and .gradient=none)"
                )


def _check_experts(config: ParallelConfig, model: ModelConfig, products: ProductsConfig) -> None:
    if not model.moe.experts:
        return
    if config.context > 1 and products.weight_gradient.formats:
        raise ParallelError(
            f"parallel.context={config.context}: cuts the tokens that an expert's weight gradient is quantised along, "
            "differently than one process; keep that product high (precision.products.weight_gradient.activation=none and "
            ".gradient=none) or set parallel.context=1"
        )
    shared = [
        format
        for product in (products.forward, products.input_gradient, products.weight_gradient)
        for format in product.formats
        if format == "nvfp4" or not BLOCKS[format]
    ]
    if shared and config.expert > 1:
        raise ParallelError(
            f"parallel.expert={config.expert}: experts see tokens of several ranks, and {shared[0]} has a scale of the whole "
            "tensor, which would be another one; set parallel.expert=1 or choose an mx format"
        )
