"""Which layouts a world, a model and an engine allow, without torch, so that the launcher refuses before it starts."""

from __future__ import annotations

import os
import shutil
from dataclasses import replace

from models.config import ModelConfig
from parallel.config import ParallelConfig, ParallelError, PrecisionConfig
from parallel.schedule import SCHEDULES, micro_batch_trouble, stage_count, stages_per_rank
from parallel.stages import stage_bounds


def resolve_world(config: ParallelConfig, world_size: int) -> ParallelConfig:
    """Fill in `data=0` and refuse a layout that does not divide the world."""
    data = config.data or world_size // config.model_parallel
    if data * config.model_parallel != world_size or data < 1:
        degrees = f"parallel.tensor={config.tensor} x parallel.pipeline={config.pipeline} x parallel.data={data or 1}"
        degrees += f" x parallel.context={config.context}" if config.context > 1 else ""
        raise ParallelError(
            f"{degrees}: makes {max(1, data) * config.model_parallel} processes, but the world has {world_size}; "
            "choose degrees whose product is the number of processes"
        )
    if data * config.context % config.expert:
        raise ParallelError(
            f"parallel.expert={config.expert}: must divide parallel.data x parallel.context={data * config.context}, whose "
            "ranks share the experts; choose a divisor of it"
        )
    return replace(config, data=data)


def check_model(config: ParallelConfig, model: ModelConfig, sequence_length: int) -> None:
    """Refuse a model that a layout cannot cut evenly."""
    degree = config.tensor
    for option, value in (
        ("heads", model.heads),
        ("kv_heads", model.key_value_heads),
        *([] if all(model.has_experts(layer) for layer in range(model.layers)) else [("ffn_size", model.ffn_width)]),
        *([("moe.expert_size", model.expert_width)] if model.moe.experts else []),
        ("vocab_size (padded)", model.padded_vocab),
    ):
        if value % degree:
            cure = (
                f"set model.vocab_multiple to a multiple of {degree}"
                if option.startswith("vocab")
                else f"choose a tensor degree that divides {value}"
            )
            raise ParallelError(f"model.{option}={value}: does not divide by parallel.tensor={degree}; {cure}")
    _check_experts(config, model, sequence_length)
    _check_compiled(config, model)
    _check_encoder(config, model, sequence_length)
    if config.sequence_parallel and sequence_length % degree:
        raise ParallelError(
            f"train.sequence_length={sequence_length}: does not divide by parallel.tensor={degree}, as "
            "parallel.sequence_parallel=true needs; choose a multiple"
        )
    _check_context(config, model, sequence_length)
    if model.document_mask and model.document_end < 0:
        raise ParallelError(
            "model.document_end=-1: model.document_mask=true must know the token that ends documents; name it"
        )
    stages = stage_count(config)
    if stages > model.layers + model.encoder_layers:
        each = f" of {stages_per_rank(config)} stages each" if stages > config.pipeline else ""
        raise ParallelError(
            f"parallel.pipeline={config.pipeline}{each}: more stages than model.layers={model.layers}"
            + (f" and model.encoder_layers={model.encoder_layers} have" if model.encoder_layers else "")
            + "; choose fewer stages"
        )


def _check_encoder(config: ParallelConfig, model: ModelConfig, sequence_length: int) -> None:
    if not model.encoder_layers:
        return
    encoder, decoder = model.encoder_length, sequence_length - model.encoder_length
    if decoder < 1:
        raise ParallelError(
            f"train.sequence_length={sequence_length}: leaves no tokens to the decoder after model.encoder_length={encoder}; "
            "raise one or lower the other"
        )
    if config.context > 1:
        raise ParallelError(
            f"parallel.context={config.context}: cuts sequences, and with model.encoder_layers={model.encoder_layers} a "
            "decoder attends to all of the encoder's part; set parallel.context=1"
        )
    if config.sequence_parallel and (encoder % config.tensor or decoder % config.tensor):
        raise ParallelError(
            f"model.encoder_length={encoder}: parallel.sequence_parallel=true cuts the encoder's tokens and the {decoder} of "
            f"the decoder in parallel.tensor={config.tensor} parts each; choose multiples of {config.tensor}"
        )


def _check_experts(config: ParallelConfig, model: ModelConfig, sequence_length: int) -> None:
    if not model.moe.experts:
        if config.expert > 1:
            raise ParallelError(
                f"parallel.expert={config.expert}: has no effect with model.moe.experts=0; set it to 1 or choose a model with "
                "experts"
            )
        return
    if model.moe.experts % config.expert:
        raise ParallelError(
            f"model.moe.experts={model.moe.experts}: does not divide by parallel.expert={config.expert}; choose an expert "
            f"degree that divides {model.moe.experts}"
        )
    cut = model.expert_width // config.tensor
    if model.moe.product == "grouped" and cut % 8:
        raise ParallelError(
            f"model.moe.expert_size={model.expert_width}: parallel.tensor={config.tensor} leaves {cut} features of an expert, "
            "and grouped products need multiples of 8 (16 bytes); choose a smaller tensor degree or model.moe.product=loop"
        )
    if config.engine == "deepspeed" and config.expert > 1 and config.pipeline > 1 and config.zero_stage:
        bounds = stage_bounds(model, config.pipeline, sequence_length)
        for stage in range(config.pipeline):  # blocks 0 and 1 are the embedding and the positions
            if not any(model.has_experts(index - 2) for index in range(bounds[stage], bounds[stage + 1]) if index >= 2):
                raise ParallelError(
                    f"parallel.expert={config.expert}: stage {stage} of parallel.pipeline={config.pipeline} has no experts, "
                    "and DeepSpeed's gradient norm would wait for them; set parallel.engine=torch or another pipeline degree"
                )
    apart = config.data * config.context // config.expert
    if config.data and apart % config.data_replicas:
        raise ParallelError(
            f"parallel.data_replicas={config.data_replicas}: must divide the {apart} ranks that hold the same experts "
            "(parallel.data x parallel.context / parallel.expert); choose a divisor of it"
        )


def _check_context(config: ParallelConfig, model: ModelConfig, sequence_length: int) -> None:
    degree = config.context
    if degree == 1:
        return
    pieces = (2 if config.context_method == "ring" else 1) * degree
    if sequence_length % pieces:
        raise ParallelError(
            f"train.sequence_length={sequence_length}: does not divide into the {pieces} pieces that parallel.context={degree} "
            f"cuts for parallel.context_method={config.context_method}; choose a multiple"
        )
    if config.sequence_parallel and sequence_length // degree % config.tensor:
        raise ParallelError(
            f"train.sequence_length={sequence_length}: its share under parallel.context={degree} does not divide by "
            f"parallel.tensor={config.tensor}, as parallel.sequence_parallel=true needs; choose a multiple of "
            f"{degree * config.tensor}"
        )
    if config.context_method == "ring":
        if model.attention_kernel == "varlen":
            raise ParallelError(
                "model.attention_kernel=varlen: parallel.context_method=ring attends to blocks of sequences, and leaves out "
                "those without a common document; set model.attention_kernel=dense or parallel.context_method=ulysses"
            )
        return
    heads, groups = model.heads // config.tensor, model.key_value_heads // config.tensor
    for option, value, fits in (
        ("heads", model.heads, heads % degree == 0),
        ("kv_heads", model.key_value_heads, groups % degree == 0 or degree % groups == 0),
    ):
        if not fits:
            raise ParallelError(
                f"model.{option}={value}: parallel.context_method=ulysses cannot share them out over parallel.tensor="
                f"{config.tensor} x parallel.context={degree}; choose another degree or parallel.context_method=ring"
            )


def _check_compiled(config: ParallelConfig, model: ModelConfig) -> None:
    if config.compile == "none":
        return
    for option, there in (
        (f"model.moe.experts={model.moe.experts}: how many tokens each expert gets", model.moe.experts > 0),
        (f"parallel.context={config.context}: what attention sends and receives", config.context > 1),
        ("model.document_mask=true: where documents end", model.document_mask),
        ("model.prefix_mask=true: where prefixes end", model.prefix_mask),
        (f"model.encoder_layers={model.encoder_layers}: where documents end", model.encoder_layers > 0),
    ):
        if there:
            raise ParallelError(
                f"parallel.compile={config.compile}: with {option} is known in each step anew, and a compiled layer is one "
                "graph; set parallel.compile=none"
            )


def check_micro_batches(config: ParallelConfig, micro_batches: int) -> None:
    """Refuse a number of micro-batches a step and data rank that the schedule cannot take."""
    trouble = micro_batch_trouble(config, micro_batches)
    if trouble:
        raise ParallelError(
            f"parallel.schedule={config.schedule}: with parallel.pipeline={config.pipeline} {trouble}, and a step has "
            f"{micro_batches}; change train.batch_tokens or train.micro_batch"
        )
    engine = choose_engine(config, config.model_parallel * config.data)[0].engine
    if engine == "torch" and config.schedule == "1f1b" and micro_batches < config.pipeline:
        raise ParallelError(
            f"parallel.pipeline={config.pipeline}: torch's 1F1B needs as many micro-batches a step, which has {micro_batches}; "
            "raise train.batch_tokens, lower train.micro_batch, or set parallel.schedule=gpipe or parallel.engine=deepspeed"
        )


def choose_engine(config: ParallelConfig, world_size: int) -> tuple[ParallelConfig, str]:
    """Resolve `auto`; returns the configuration and the reason in words."""
    if config.engine != "auto":
        return config, "as the recipe says"
    if world_size == 1 and config.zero_stage <= 1 and not config.offload_optimizer:
        return replace(config, engine="torch"), "one process needs no sharding"
    for beyond, option in (
        (config.schedule != "1f1b", f"schedule={config.schedule}"),
        (config.data_replicas > 1, f"data_replicas={config.data_replicas}"),
        (config.expert > 1 and config.zero_stage == 3, "zero_stage=3 for experts over an expert axis"),
    ):
        if beyond:
            return replace(config, engine="torch"), f"DeepSpeed has no {option}"
    return replace(config, engine="deepspeed"), f"{world_size} processes"


def check_engine(
    config: ParallelConfig, precision: PrecisionConfig, device: str, world_size: int, master: str = "float32"
) -> None:
    """Refuse combinations that an engine cannot do, before any process starts. precision: resolved, not auto. master: what
    updates are added to, float32 or none."""
    _check_compile(config, device)
    if master == "none":
        _check_no_master(config, precision, world_size)
    if config.engine == "torch":
        _check_torch(config, world_size)
    else:
        _check_deepspeed(config, precision, device)


def _check_compile(config: ParallelConfig, device: str) -> None:
    if config.compile == "none":
        return
    if config.engine == "deepspeed" and config.zero_stage == 3:
        raise ParallelError(
            f"parallel.compile={config.compile}: with parallel.zero_stage=3 DeepSpeed gathers parameters inside of each layer, "
            "where no compiler can follow; set parallel.engine=torch or parallel.compile=none"
        )
    if SCHEDULES[config.schedule].splits_backward:
        raise ParallelError(
            f"parallel.compile={config.compile}: parallel.schedule={config.schedule} computes gradients of weights apart from "
            "those of inputs, and a compiled layer gives both at once, so its backward would run twice; set "
            "parallel.schedule=interleaved_1f1b or parallel.compile=none"
        )
    compiler = os.environ.get("CXX", "g++")
    if device == "cpu" and not (shutil.which(compiler) or shutil.which("clang++")):
        raise ParallelError(
            f"parallel.compile={config.compile}: on CPU torch needs a C++ compiler and {compiler} was not found; install g++, "
            "name one in CXX, or set parallel.compile=none"
        )


def _check_no_master(config: ParallelConfig, precision: PrecisionConfig, world_size: int) -> None:
    if precision.name not in ("bf16", "auto"):
        raise ParallelError(
            f"optimizer.master=none: steps bf16 weights, and precision.name={precision.name} has none; set precision.name=bf16 "
            "or optimizer.master=float32"
        )
    if config.engine != "torch" or world_size > 1:
        where = f"parallel.engine={config.engine}" if config.engine != "torch" else f"{world_size} processes"
        raise ParallelError(
            f"optimizer.master=none: with {where} gradients would be summed in bf16 or masters kept all the same; set "
            "optimizer.master=float32, or train in one process with parallel.engine=torch"
        )


def _check_torch(config: ParallelConfig, world_size: int) -> None:
    if SCHEDULES[config.schedule].splits_backward and config.zero_stage == 3:
        raise ParallelError(
            f"parallel.zero_stage=3: parallel.schedule={config.schedule} computes gradients of weights later than those of "
            "inputs, and torch frees parameters in between (gradients are silently wrong); set parallel.zero_stage=2"
        )
    if world_size == 1 and (config.zero_stage > 1 or config.offload_optimizer):
        option = f"zero_stage={config.zero_stage}" if config.zero_stage > 1 else "offload_optimizer=true"
        raise ParallelError(
            f"parallel.{option}: has no effect with parallel.engine=torch in one process; set parallel.engine=deepspeed"
        )


def _check_deepspeed(config: ParallelConfig, precision: PrecisionConfig, device: str) -> None:
    if config.pipeline > 1 and config.zero_stage > 1:
        raise ParallelError(
            f"parallel.zero_stage={config.zero_stage}: with parallel.pipeline={config.pipeline} DeepSpeed's gradients stay "
            "whole until the last micro-batch, so the limit is 1; set parallel.zero_stage=1 or parallel.engine=torch"
        )
    for option, value, plain in (("schedule", config.schedule, "1f1b"), ("data_replicas", config.data_replicas, 1)):
        if value != plain:
            raise ParallelError(
                f"parallel.{option}={value}: DeepSpeed has only {plain}; set it to {plain} or parallel.engine=torch"
            )
    if config.expert > 1 and config.zero_stage == 3:
        raise ParallelError(
            f"parallel.zero_stage=3: with parallel.expert={config.expert} DeepSpeed shards only its own experts; set "
            "parallel.zero_stage=2 or parallel.engine=torch"
        )
    if precision.name == "fp16" and device == "cpu":
        raise ParallelError(
            "precision.name=fp16: DeepSpeed refuses it on most CPUs; set parallel.engine=torch or precision.name=bf16"
        )
    if precision.name != "fp32" and config.zero_stage == 0:
        raise ParallelError(
            f"parallel.zero_stage=0: with precision.name={precision.name} DeepSpeed keeps float32 master weights only in "
            "sharded form; set parallel.zero_stage=1"
        )
