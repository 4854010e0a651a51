"""Layouts by chance, for checks of plans: small models of every kind on one, two or four processes."""

from __future__ import annotations

import random
from dataclasses import dataclass, replace
from typing import Any

from launcher.config import OptimizerConfig
from models.config import ModelConfig
from models.errors import ModelError
from models.loss import LossConfig
from models.moe.config import MoEConfig
from models.precision import ProductConfig, ProductsConfig
from parallel.blocks import check_products
from parallel.check import check_engine, check_micro_batches, check_model, choose_engine, resolve_world
from parallel.config import ParallelConfig, ParallelError, PrecisionConfig

_MXFP8 = ProductConfig(activation="mxfp8_e4m3", weight="mxfp8_e4m3")
MXFP8 = ProductsConfig(
    forward=_MXFP8,
    input_gradient=ProductConfig(gradient="mxfp8_e4m3", weight="mxfp8_e4m3"),
    weight_gradient=ProductConfig(gradient="mxfp8_e4m3", activation="mxfp8_e4m3"),
    scale="rceil",
)
PRECISIONS = {
    "fp32": PrecisionConfig("fp32"),
    "bf16": PrecisionConfig("bf16"),
    "mxfp8": PrecisionConfig("bf16", products=MXFP8),
}


@dataclass(frozen=True)
class Layout:
    """A model, how it is trained and over which processes; data is resolved. dialect: what the model is, for people."""

    dialect: str
    model: ModelConfig
    parallel: ParallelConfig
    precision: PrecisionConfig
    sequence_length: int
    micro_batch: int
    micro_batches: int
    loss: LossConfig = LossConfig()
    optimizer: OptimizerConfig = OptimizerConfig()

    @property
    def world(self) -> int:
        """Processes."""
        return self.parallel.model_parallel * self.parallel.data

    def __str__(self) -> str:
        config = self.parallel
        words = [self.dialect, f"{self.model.hidden_size}x{self.model.layers}", config.engine]
        words += [
            f"{name[0]}{value}" for name in ("tensor", "pipeline", "data") if (value := getattr(config, name)) > 1
        ]
        words += [f"{config.context_method}{config.context}"] if config.context > 1 else []
        words += [f"expert{config.expert}"] if config.expert > 1 else []
        words += ["sp"] if config.sequence_parallel else []
        words += [f"zero{config.zero_stage}"] if self.world > 1 else []
        words += [f"replicas{config.data_replicas}"] if config.data_replicas > 1 else []
        words += [config.schedule] if config.pipeline > 1 else []
        words += [config.recompute] if config.recompute != "none" else []
        words += ["offload"] if config.offload_optimizer else []
        words += ["fused"] if self.loss.fused else []
        words += ["mxfp8" if self.precision.products.quantised else self.precision.name]
        return " ".join((*words, f"{self.micro_batches}x{self.micro_batch}x{self.sequence_length}"))


def sample(count: int, seed: int) -> list[Layout]:
    """So many different layouts that a run would accept, the same ones for a seed."""
    draw = random.Random(seed)
    found: dict[str, Layout] = {}
    while len(found) < count:
        try:
            layout = _drawn(draw)
            check(layout)
        except (ModelError, ParallelError):
            continue
        found.setdefault(str(layout), layout)
    return list(found.values())


def check(layout: Layout) -> None:
    """Refuse what the launcher would."""
    config, model = layout.parallel, layout.model
    resolve_world(config, layout.world)
    check_model(config, model, layout.sequence_length)
    check_products(config, model, layout.precision.products, layout.sequence_length)
    check_engine(config, layout.precision, "cpu", layout.world, layout.optimizer.master)
    check_micro_batches(config, layout.micro_batches)
    if layout.world == 1 and (config.zero_stage == 0) == (config.engine == "deepspeed"):
        raise ParallelError("one process has nothing to sum")


def _drawn(draw: random.Random) -> Layout:
    dialect = draw.choice(tuple(DIALECTS))
    model = _model(draw, dialect)
    pipeline, context, data = draw.choice((1, 1, 2)), draw.choice((1, 1, 1, 2)), draw.choice((1, 1, 2, 2, 4))
    tensor = draw.choice((1, 1, 2))
    if tensor * pipeline * context * data > 4:
        raise ParallelError("more than four processes")
    options: dict[str, Any] = {"tensor": tensor, "pipeline": pipeline, "context": context, "data": data}
    if context > 1:
        options["context_method"] = draw.choice(("ring", "ulysses"))
    if pipeline > 1:
        schedules = ("1f1b", "1f1b", "gpipe", "interleaved_1f1b", "zbv", "dualpipev")
        options["schedule"] = draw.choice(schedules)
        options["virtual_stages"] = 2 if options["schedule"].startswith("interleaved") else 1
    options["sequence_parallel"] = tensor > 1 and draw.random() < 0.5
    options["expert"] = draw.choice((1, 2)) if dialect == "mixture" else 1
    options["zero_stage"], options["recompute"] = draw.randrange(4), draw.choice(("none", "none", "selective", "block"))
    config = ParallelConfig(**options, engine=draw.choice(("torch", "deepspeed")))
    precision = draw.choice(tuple(PRECISIONS.values()))
    loss = LossConfig(fused=draw.random() < 0.25)
    return Layout(
        dialect, model, config, precision, 64 * draw.choice((1, 2)), draw.choice((1, 2)), draw.choice((1, 2, 4)), loss
    )


DIALECTS: dict[str, dict[str, Any]] = {
    "llama": {"kv_heads": 2},
    "gpt": {"positions": "learned", "norm": "layernorm", "activation": "gelu_tanh", "bias": True},
    "mixture": {"kv_heads": 4, "qk_norm": True},
    "encoder_decoder": {"activation": "geglu_tanh", "kv_heads": 2},
}


def _model(draw: random.Random, dialect: str) -> ModelConfig:
    hidden = draw.choice((64, 128, 192))
    options: dict[str, Any] = {
        "hidden_size": hidden,
        "heads": draw.choice((4, 8)),
        "layers": draw.choice((2, 4, 5)),
        "ffn_size": 32 * draw.choice((4, 8, 11)),
        "vocab_size": 32 * draw.choice((9, 16, 31)),
        "vocab_multiple": 64,
        "max_sequence": 128,
        "tied_embeddings": draw.random() < 0.5,
        "dropout": draw.choice((0.0, 0.0, 0.1)),
        **DIALECTS[dialect],
    }
    if dialect == "mixture":
        moe = MoEConfig(experts=4, expert_size=64, shared_experts=draw.choice((0, 1)), first_dense=draw.choice((0, 1)))
        options["moe"] = replace(moe, top_k=draw.choice((1, 2)))
    if dialect == "encoder_decoder":
        options |= {"encoder_layers": 2, "encoder_length": 32}
    return ModelConfig(**options)


def resolved(layout: Layout) -> Layout:
    """The layout with its engine named."""
    return replace(layout, parallel=choose_engine(layout.parallel, layout.world)[0])
