"""Which layouts are refused: each refusal names the option, its value, the limit and a cure."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest

from models.config import ModelConfig
from models.moe.config import MoEConfig
from parallel.check import check_engine, check_micro_batches, check_model, choose_engine, resolve_world
from parallel.config import ParallelConfig, ParallelError, PrecisionConfig
from parallel.schedule import SCHEDULES, bubble, chunks_in_flight, owner, stage_count, stages_of

MODEL = ModelConfig(vocab_size=1000, hidden_size=64, layers=12, heads=4, kv_heads=2, ffn_size=128)

# Worlds and models ----------------------------------------------------------------------------------------------------


def test_data_takes_what_the_world_leaves() -> None:
    assert resolve_world(ParallelConfig(tensor=2, pipeline=2), 8).data == 2
    assert resolve_world(ParallelConfig(tensor=2, data=4), 8).data == 4
    assert resolve_world(ParallelConfig(), 1).data == 1
    found = resolve_world(ParallelConfig(tensor=2, context=2, expert=4), 8)
    assert (found.data, found.replicas, found.model_parallel) == (2, 4, 4)


@pytest.mark.parametrize(
    ("options", "world", "words"),
    [
        ({"tensor": 3}, 8, ["parallel.tensor=3", "world has 8", "product"]),
        ({"tensor": 4, "pipeline": 4}, 8, ["parallel.pipeline=4", "16 processes", "world has 8"]),
        ({"data": 3}, 2, ["parallel.data=3", "3 processes", "world has 2"]),
        ({"context": 3}, 8, ["parallel.context=3", "world has 8", "product"]),
        ({"data": 2, "expert": 4}, 2, ["parallel.expert=4", "data x parallel.context=2", "divisor"]),
        ({"tensor": 2, "context": 2, "expert": 3}, 8, ["parallel.expert=3", "parallel.context=4", "divisor"]),
        ({"tensor": 2, "data": 2}, 8, ["parallel.data=2", "4 processes", "world has 8"]),
    ],
)
def test_a_layout_that_does_not_divide_the_world_is_refused(options: dict, world: int, words: list[str]) -> None:
    with pytest.raises(ParallelError) as refusal:
        resolve_world(ParallelConfig(**options), world)
    for word in words:
        assert word in str(refusal.value)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"engine": "jax"}, ["parallel.engine=jax", "deepspeed", "torch"]),
        ({"tensor": 0}, ["parallel.tensor=0", "at least 1"]),
        ({"pipeline": -1}, ["parallel.pipeline=-1", "at least 1"]),
        ({"context": 0}, ["parallel.context=0", "at least 1"]),
        ({"expert": 0}, ["parallel.expert=0", "at least 1"]),
        ({"context": 2, "context_method": "torus"}, ["context_method=torus", "ring, ulysses"]),
        ({"context_method": "ulysses"}, ["context_method=ulysses", "no effect", "context above 1"]),
        ({"data": -2}, ["parallel.data=-2", "at least 1"]),
        ({"zero_stage": 4}, ["parallel.zero_stage=4", "0, 1, 2 or 3"]),
        ({"compile": "all"}, ["parallel.compile=all", "none or block"]),
        ({"recompute": "all"}, ["parallel.recompute=all", "none, block or selective"]),
        ({"pipeline": 2, "schedule": "2f2b"}, ["parallel.schedule=2f2b", "1f1b", "dualpipev"]),
        ({"schedule": "zbv"}, ["parallel.schedule=zbv", "no effect", "pipeline above 1"]),
        ({"pipeline": 2, "schedule": "interleaved_1f1b"}, ["virtual_stages=1", "2 or more"]),
        ({"pipeline": 2, "virtual_stages": 2}, ["virtual_stages=2", "no effect", "schedule=1f1b"]),
        ({"data": 4, "data_replicas": 3}, ["data_replicas=3", "divide parallel.data=4"]),
        ({"data": 4, "data_replicas": 2, "zero_stage": 0}, ["data_replicas=2", "no effect", "zero_stage=3"]),
        ({"sequence_parallel": True}, ["sequence_parallel=true", "parallel.tensor=1", "set it to false"]),
        ({"offload_optimizer": True, "zero_stage": 0}, ["offload_optimizer=true", "zero_stage to 1, 2 or 3"]),
    ],
)
def test_an_impossible_layout_is_refused(options: dict, words: list[str]) -> None:
    with pytest.raises(ParallelError) as refusal:
        ParallelConfig(**options)
    for word in words:
        assert word in str(refusal.value)


@pytest.mark.parametrize(
    ("options", "changes", "words"),
    [
        ({"tensor": 3}, {}, ["model.heads=4", "parallel.tensor=3", "choose a tensor degree"]),
        ({"tensor": 4}, {}, ["model.kv_heads=2", "parallel.tensor=4", "divides 2"]),
        ({"tensor": 2}, {"ffn_size": 129}, ["model.ffn_size=129", "parallel.tensor=2"]),
        ({"tensor": 2}, {"vocab_size": 1001}, ["vocab_size", "1001", "model.vocab_multiple to a multiple of 2"]),
        ({"pipeline": 13}, {}, ["parallel.pipeline=13", "model.layers=12", "fewer stages"]),
        ({"pipeline": 8, "schedule": "zbv"}, {}, ["parallel.pipeline=8 of 2 stages each", "model.layers=12"]),
    ],
)
def test_a_model_that_does_not_divide_is_refused(options: dict, changes: dict, words: list[str]) -> None:
    with pytest.raises(ParallelError) as refusal:
        check_model(ParallelConfig(**options), replace(MODEL, **changes), 128)
    for word in words:
        assert word in str(refusal.value)


def test_a_sequence_that_does_not_divide_is_refused_with_sequence_parallelism_only() -> None:
    check_model(ParallelConfig(tensor=2), MODEL, 127)
    with pytest.raises(ParallelError, match=r"train.sequence_length=127.*parallel.tensor=2.*choose a multiple"):
        check_model(ParallelConfig(tensor=2, sequence_parallel=True), MODEL, 127)


@pytest.mark.parametrize(
    ("options", "changes", "length", "words"),
    [
        ({"context": 2}, {}, 126, ["train.sequence_length=126", "4 pieces", "parallel.context=2", "ring"]),
        ({"context": 4, "context_method": "ulysses"}, {}, 126, ["sequence_length=126", "4 pieces", "ulysses"]),
        (
            {"context": 2, "tensor": 2, "sequence_parallel": True, "context_method": "ulysses"},
            {},
            126,
            ["sequence_length=126", "parallel.context=2", "tensor=2", "multiple of 4"],
        ),
        ({"context": 8, "context_method": "ulysses"}, {}, 128, ["model.heads=4", "context=8", "context_method=ring"]),
        (
            {"context": 3, "context_method": "ulysses"},
            {"heads": 6, "kv_heads": 2, "head_size": 8},
            126,
            ["model.kv_heads=2", "parallel.context=3", "context_method=ring"],
        ),
        ({}, {"document_mask": True}, 128, ["model.document_end=-1", "document_mask=true", "ends documents"]),
    ],
)
def test_a_sequence_or_heads_that_the_context_axis_cannot_cut_are_refused(
    options: dict, changes: dict, length: int, words: list[str]
) -> None:
    with pytest.raises(ParallelError) as refusal:
        check_model(ParallelConfig(**options), replace(MODEL, **changes), length)
    for word in words:
        assert word in str(refusal.value)


def test_what_the_context_axis_can_cut_is_let_through() -> None:
    check_model(ParallelConfig(context=8), MODEL, 128)  # a ring asks nothing of heads
    check_model(ParallelConfig(context=4, context_method="ulysses"), MODEL, 124)  # key-value heads go to two ranks each
    check_model(ParallelConfig(context=2, tensor=2, context_method="ulysses", sequence_parallel=True), MODEL, 128)


def test_a_padded_vocabulary_divides() -> None:
    check_model(ParallelConfig(tensor=2), replace(MODEL, vocab_size=1001, vocab_multiple=2), 128)


@pytest.mark.parametrize(
    ("options", "micro_batches", "words"),
    [
        ({"schedule": "zbv"}, 3, ["schedule=zbv", "at least 4", "has 3"]),
        ({"schedule": "interleaved_1f1b", "virtual_stages": 2}, 5, ["interleaved_1f1b", "2 rounds", "has 5"]),
        ({"engine": "torch"}, 1, ["pipeline=2", "as many micro-batches", "has 1"]),
    ],
)
def test_micro_batches_that_a_schedule_cannot_take_are_refused(
    options: dict, micro_batches: int, words: list[str]
) -> None:
    layout = ParallelConfig(pipeline=2, **options)
    check_micro_batches(layout, 4)
    with pytest.raises(ParallelError) as refusal:
        check_micro_batches(layout, micro_batches)
    for word in words:
        assert word in str(refusal.value)


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("degree", [2, 3, 4])
def test_every_stage_has_one_owner_and_a_v_comes_back(name: str, degree: int) -> None:
    layout = ParallelConfig(pipeline=degree, schedule=name, virtual_stages=1 if SCHEDULES[name].stages else 3)
    held = [stages_of(layout, rank) for rank in range(degree)]
    assert sorted(itertools.chain(*held)) == list(range(stage_count(layout)))
    assert all(owner(layout, stage) == rank for rank, stages in enumerate(held) for stage in stages)
    if SCHEDULES[name].v_shaped:
        assert held[0] == [0, 2 * degree - 1]


@pytest.mark.parametrize(
    ("name", "virtual", "idle", "in_flight"),
    [  # 4 ranks, 8 micro-batches; shares of the papers, (stage, micro-batch) pairs held by the first and the last rank
        ("gpipe", 1, 3 / 11, (8, 8)),
        ("1f1b", 1, 3 / 11, (4, 1)),
        ("interleaved_1f1b", 2, 3 / 19, (11, 5)),
        ("interleaved_zero_bubble", 2, 3 / 51, (8, 8)),
        ("zbv", 1, 3 / 51, (8, 8)),
        ("dualpipev", 1, 3 / 51, (9, 9)),
    ],
)
def test_what_a_schedule_costs(name: str, virtual: int, idle: float, in_flight: tuple[int, int]) -> None:
    layout = ParallelConfig(pipeline=4, schedule=name, virtual_stages=virtual)
    assert bubble(layout, 8) == pytest.approx(idle)
    assert (chunks_in_flight(layout, 0, 8), chunks_in_flight(layout, 3, 8)) == in_flight
    assert bubble(layout, 800) < 0.01


# Engines --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "world", "engine"),
    [
        ({}, 1, "torch"),
        ({"zero_stage": 0}, 1, "torch"),
        ({"zero_stage": 2}, 1, "deepspeed"),
        ({"offload_optimizer": True}, 1, "deepspeed"),
        ({"tensor": 2}, 2, "deepspeed"),
        ({"pipeline": 2, "schedule": "zbv"}, 2, "torch"),
        ({"data": 4, "data_replicas": 2}, 4, "torch"),
        ({"engine": "deepspeed"}, 1, "deepspeed"),
        ({"engine": "torch"}, 1, "torch"),
    ],
)
def test_auto_takes_torch_where_nothing_is_sharded_and_for_what_deepspeed_lacks(
    options: dict, world: int, engine: str
) -> None:
    chosen, reason = choose_engine(ParallelConfig(**options), world)
    assert chosen.engine == engine
    assert reason


@pytest.mark.parametrize(
    ("options", "precision", "device", "world", "words"),
    [
        ({"pipeline": 2, "zero_stage": 2}, "fp32", "cpu", 2, ["parallel.pipeline=2", "limit is 1", "zero_stage=1"]),
        ({"pipeline": 2, "zero_stage": 3}, "fp32", "cpu", 2, ["parallel.zero_stage=3", "limit is 1", "engine=torch"]),
        ({"pipeline": 2, "schedule": "gpipe"}, "fp32", "cpu", 2, ["schedule=gpipe", "1f1b", "engine=torch"]),
        ({"data": 4, "data_replicas": 2}, "fp32", "cpu", 4, ["data_replicas=2", "engine=torch"]),
        (
            {"engine": "torch", "pipeline": 2, "schedule": "zbv", "zero_stage": 3},
            "fp32",
            "cpu",
            4,
            ["zero_stage=3", "schedule=zbv", "zero_stage=2"],
        ),
        ({"engine": "torch", "zero_stage": 2}, "fp32", "cpu", 1, ["zero_stage=2", "no effect", "engine=deepspeed"]),
        ({"engine": "torch", "offload_optimizer": True}, "fp32", "cpu", 1, ["offload_optimizer=true", "no effect"]),
        ({"engine": "deepspeed"}, "fp16", "cpu", 2, ["precision.name=fp16", "CPU", "bf16", "engine=torch"]),
        (
            {"engine": "deepspeed", "zero_stage": 0},
            "bf16",
            "cpu",
            2,
            ["zero_stage=0", "precision.name=bf16", "zero_stage=1"],
        ),
        (
            {"engine": "deepspeed", "zero_stage": 3, "compile": "block"},
            "fp32",
            "cpu",
            2,
            ["compile=block", "zero_stage=3", "engine=torch"],
        ),
        (
            {"engine": "torch", "pipeline": 2, "schedule": "zbv", "compile": "block"},
            "fp32",
            "cpu",
            2,
            ["compile=block", "schedule=zbv", "twice", "compile=none"],
        ),
        ({"engine": "deepspeed", "zero_stage": 0}, "fp16", "cuda", 2, ["zero_stage=0", "precision.name=fp16"]),
    ],
)
def test_what_an_engine_cannot_do_is_refused(
    options: dict, precision: str, device: str, world: int, words: list[str]
) -> None:
    with pytest.raises(ParallelError) as refusal:
        check_engine(ParallelConfig(**options), PrecisionConfig(precision), device, world)
    for word in words:
        assert word in str(refusal.value)


def test_compiling_for_cpu_without_a_compiler_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv("CXX", raising=False)
    layout = ParallelConfig("torch", compile="block")
    with pytest.raises(ParallelError, match=r"compile=block.*C\+\+ compiler.*CXX.*compile=none"):
        check_engine(layout, PrecisionConfig("fp32"), "cpu", 1)
    check_engine(layout, PrecisionConfig("fp32"), "cuda", 1)


@pytest.mark.parametrize(
    ("options", "precision", "device"),
    [
        ({"engine": "torch"}, "fp16", "cpu"),
        ({"engine": "torch"}, "bf16", "cpu"),
        ({"engine": "deepspeed", "zero_stage": 0}, "fp32", "cpu"),
        ({"engine": "deepspeed", "zero_stage": 1}, "bf16", "cpu"),
        ({"engine": "deepspeed", "zero_stage": 3}, "fp16", "cuda"),
    ],
)
def test_what_an_engine_can_do_is_let_through(options: dict, precision: str, device: str) -> None:
    check_engine(ParallelConfig(**options), PrecisionConfig(precision), device, 1)


# Experts --------------------------------------------------------------------------------------------------------------

MIXTURE = replace(MODEL, moe=MoEConfig(experts=8, top_k=2, expert_size=48))


@pytest.mark.parametrize(
    ("model", "options", "words"),
    [
        (MODEL, {"data": 2, "expert": 2}, ["parallel.expert=2", "no effect", "model.moe.experts=0"]),
        (MIXTURE, {"data": 3, "expert": 3}, ["model.moe.experts=8", "parallel.expert=3", "divides 8"]),
        (
            replace(MIXTURE, kv_heads=4),
            {"tensor": 4, "data": 1},
            ["expert_size=48", "leaves 12 features", "model.moe.product=loop"],
        ),
        (
            MIXTURE,
            {"data": 4, "expert": 2, "data_replicas": 4, "engine": "torch"},
            ["parallel.data_replicas=4", "2 ranks that hold the same experts"],
        ),
        (
            replace(MIXTURE, moe=replace(MIXTURE.moe, first_dense=10)),
            {"data": 2, "expert": 2, "pipeline": 2, "engine": "deepspeed"},
            ["parallel.expert=2", "stage 0", "has no experts", "parallel.engine=torch"],
        ),
        (
            MIXTURE,
            {"data": 1, "compile": "block", "engine": "torch"},
            ["parallel.compile=block", "model.moe.experts=8"],
        ),
    ],
)
def test_experts_that_a_layout_cannot_cut_are_refused(model: ModelConfig, options: dict, words: list[str]) -> None:
    with pytest.raises(ParallelError) as refusal:
        check_model(ParallelConfig(**options), model, 64)
    for word in words:
        assert word in str(refusal.value)


def test_zero_3_shards_experts_under_torch_alone() -> None:
    layout = ParallelConfig("deepspeed", data=2, expert=2, zero_stage=3)
    with pytest.raises(ParallelError, match=r"zero_stage=3: with parallel.expert=2 .* parallel.engine=torch"):
        check_engine(layout, PrecisionConfig("fp32"), "cpu", 2)
    chosen, why = choose_engine(replace(layout, engine="auto"), 2)
    assert chosen.engine == "torch" and "experts" in why
    check_engine(chosen, PrecisionConfig("fp32"), "cpu", 2)


def test_a_data_axis_that_is_left_open_is_as_long_as_the_expert_axis_needs() -> None:
    assert ParallelConfig(expert=4).least_data == 4
    assert ParallelConfig(expert=4, context=2).least_data == 2
    assert ParallelConfig(expert=4, data=8).least_data == 8
