"""Batches that change their shape from step to step train at every layout as in one process: the form of test_parity, over
lists of (rows of the global batch, tokens of each)."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

from models.config import ModelConfig
from parallel.config import ParallelConfig, ParallelError, PrecisionConfig
from parallel.engines.base import Batch, EngineSpec
from parallel.shapes import MOST_COMPILED, check_shapes, micro_batch_rows
from tests.helpers.pool import Pools
from tests.parallel import shape_jobs
from tests.parallel.cases import ADAMW, SGD, Case
from tests.parallel.jobs import Curve
from tests.parallel.test_parity import LOSS_TOLERANCE, NORM_TOLERANCE, assert_routes_alike, case

# A ramp of the batch that also falls back, buckets with batch x length constant, and both at once with lengths in between.
RAMP = [(4, 16), (4, 16), (8, 16), (12, 16), (16, 16), (20, 16), (8, 16), (24, 16), (4, 16)]
BUCKETS = [(8, 16), (16, 8), (4, 32), (4, 32), (16, 8), (8, 16), (32, 4), (4, 32), (16, 8)]
MIXED = [(4, 24), (8, 16), (16, 8), (8, 24), (12, 32), (8, 12), (24, 16), (4, 32), (8, 8)]
LISTS = {"ramp": RAMP, "buckets": BUCKETS, "mixed": MIXED}

LAYOUTS = [
    ("mixed", case("qwen", ADAMW, 1, 1, 2, micro_batch=1, zero_stage=2, offload_optimizer=True)),
    ("buckets", case("llama", SGD, 1, 1, 2, zero_stage=3, recompute="block")),
    ("mixed", case("post", SGD, 1, 2, 1, micro_batch=1)),
    ("ramp", case("gpt", ADAMW, 1, 2, 2, zero_stage=0)),
    ("buckets", case("gpt", SGD, 2, 1, 1, zero_stage=1, sequence_parallel=True)),
    ("mixed", case("documents", SGD, 1, 1, 1, micro_batch=1, context=2, zero_stage=2)),
    ("mixed", case("post", SGD, 1, 1, 2, engine="torch", micro_batch=1, zero_stage=3)),
    ("mixed", case("qwen", ADAMW, 1, 2, 1, engine="torch", micro_batch=1)),
    ("buckets", case("gpt", ADAMW, 1, 2, 1, engine="torch", micro_batch=1, schedule="zbv")),
    ("buckets", case("parted", SGD, 1, 1, 1, engine="torch", context=2, zero_stage=1)),
    ("buckets", case("capacity", ADAMW, 1, 1, 2, engine="torch", micro_batch=2, expert=2, zero_stage=2)),
    ("buckets", case("llama", ADAMW, 1, 1, 1, engine="torch", compile="block")),
]
CAMPAIGN = [
    ("mixed", case("llama", ADAMW, 2, 1, 1, engine="torch", compile="block", micro_batch=1)),
    ("ramp", case("llama", ADAMW, 1, 1, 2, zero_stage=1, recompute="selective")),
    ("ramp", case("gpt", SGD, 1, 1, 2, zero_stage=2)),
    ("ramp", case("post", ADAMW, 1, 1, 2, zero_stage=3, offload_optimizer=True)),
    (
        "buckets",
        case("post", ADAMW, 2, 2, 2, zero_stage=1, sequence_parallel=True, recompute="selective", micro_batch=1),
    ),
    ("mixed", case("llama", SGD, 2, 2, 2, zero_stage=0, micro_batch=1)),
    ("mixed", case("gpt", SGD, 1, 4, 1, zero_stage=1, micro_batch=1)),
    ("mixed", case("parted", SGD, 2, 1, 1, context=2, sequence_parallel=True, zero_stage=1, micro_batch=1)),
    ("buckets", case("window", SGD, 1, 2, 1, context=2, context_method="ulysses", zero_stage=0)),
    ("buckets", case("switch", SGD, 1, 1, 2, zero_stage=1, expert=2, micro_batch=2)),
    ("buckets", case("experts", ADAMW, 2, 2, 2, zero_stage=1, expert=2, micro_batch=1)),
    ("buckets", case("gpt", ADAMW, 1, 2, 1, zero_stage=1, compile="block", recompute="block")),
    ("mixed", case("llama", ADAMW, 1, 1, 1, engine="torch", micro_batch=1, zero_stage=0)),
    ("ramp", case("gpt", SGD, 1, 1, 2, engine="torch", zero_stage=0)),
    ("ramp", case("llama", ADAMW, 1, 1, 4, engine="torch", zero_stage=3, data_replicas=2, micro_batch=1)),
    ("mixed", case("qwen", SGD, 2, 1, 2, engine="torch", zero_stage=2, offload_optimizer=True, micro_batch=1)),
    ("mixed", case("gpt", ADAMW, 1, 2, 1, engine="torch", schedule="gpipe", zero_stage=3, micro_batch=1)),
    ("ramp", case("llama", SGD, 1, 2, 1, engine="torch", schedule="dualpipev", micro_batch=1)),
    (
        "buckets",
        case("post", ADAMW, 1, 2, 1, engine="torch", schedule="interleaved_1f1b", virtual_stages=2, micro_batch=1),
    ),
    (
        "ramp",
        case("gpt", SGD, 1, 2, 1, engine="torch", schedule="interleaved_zero_bubble", virtual_stages=2, micro_batch=1),
    ),
    ("buckets", case("llama", SGD, 2, 2, 2, engine="torch", zero_stage=3, sequence_parallel=True, micro_batch=1)),
    ("ramp", case("head", ADAMW, 1, 2, 2, engine="torch", schedule="gpipe", zero_stage=3)),
    ("buckets", case("qwen", ADAMW, 2, 2, 1, engine="torch", context=2, zero_stage=1, micro_batch=1)),
    ("buckets", case("tight", SGD, 1, 2, 2, engine="torch", expert=2, zero_stage=2, micro_batch=1)),
]

Reference = Callable[[str, Case], Curve]


@pytest.fixture(scope="module")
def reference(pools: Pools) -> Reference:
    """The curve of one process, each computed once; in micro-batches of other sizes, save where routers judge them."""
    known: dict[tuple[str, str, str, int], Curve] = {}

    def of(name: str, layout: Case) -> Curve:
        rows = layout.micro_batch if layout.model.moe.experts else 1
        key = name, layout.dialect, layout.optimizer.name, rows
        if key not in known:
            alone = replace(layout.reference, micro_batch=rows)
            known[key] = pools.run(1, shape_jobs.train_shapes, case=alone, shapes=LISTS[name])[0]
        return known[key]

    return of


def _named(pairs: list[tuple[str, Case]], *marks: pytest.MarkDecorator) -> list:
    return [pytest.param(name, layout, id=f"{name}-{layout}", marks=marks) for name, layout in pairs]


@pytest.mark.parametrize(("name", "layout"), _named(LAYOUTS) + _named(CAMPAIGN, pytest.mark.slow))
def test_changing_shapes_match_one_process(name: str, layout: Case, pools: Pools, reference: Reference) -> None:
    expected = reference(name, layout)
    curves = pools.run(layout.world_size, shape_jobs.train_shapes, case=layout, shapes=LISTS[name])
    for rank, curve in enumerate(curves):
        assert curve.losses == curves[0].losses, f"rank {rank} reports another loss than rank 0"
        assert curve.norms == curves[0].norms, f"rank {rank} reports another gradient norm than rank 0"
        assert curve.validation == curves[0].validation, f"rank {rank} reports another validation loss than rank 0"
        assert all(map(torch.equal, curve.logits, curves[0].logits)), f"rank {rank} has other logits than rank 0"
    found = curves[0]
    assert len(found.losses) == len(expected.losses) == len(LISTS[name])
    assert found.losses == pytest.approx(expected.losses, rel=LOSS_TOLERANCE, abs=0)
    assert found.norms == pytest.approx(expected.norms, rel=NORM_TOLERANCE, abs=0)
    assert found.validation == pytest.approx(expected.validation, rel=LOSS_TOLERANCE, abs=0)
    for ours, theirs in zip(found.logits, expected.logits, strict=True):
        assert float((ours - theirs).abs().max()) <= NORM_TOLERANCE * float(theirs.abs().max())
    assert not any(found.skipped)
    assert found.state["applied_steps"] == (0 if layout.optimizer is SGD else len(LISTS[name]))
    assert_routes_alike(curves, expected)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("precision", "layout"),
    [
        ("bf16", case("llama", SGD, 1, 1, 2, zero_stage=2)),
        ("bf16", case("gpt", SGD, 1, 2, 1, zero_stage=1, micro_batch=1)),
        ("bf16", case("llama", SGD, 1, 2, 1, engine="torch", schedule="zbv", micro_batch=1)),
        ("fp16", case("gpt", SGD, 1, 1, 2, engine="torch", zero_stage=3)),
    ],
    ids=str,
)
def test_narrow_numbers_are_as_near_as_in_one_process(precision: str, layout: Case, pools: Pools) -> None:
    """The rule of test_precision: not farther from the float32 curve than twice what one process is."""

    def losses(of: Case, name: str) -> torch.Tensor:
        narrow = replace(of, precision=PrecisionConfig(name))
        return torch.tensor(pools.run(of.world_size, shape_jobs.train_shapes, case=narrow, shapes=BUCKETS)[0].losses)

    alone = replace(layout.reference, micro_batch=layout.micro_batch)
    exact = losses(alone, "fp32")
    rounding = (losses(alone, precision) - exact).abs().max()
    assert 0 < (losses(layout, precision) - exact).abs().max() <= 2 * rounding


@pytest.mark.parametrize(("schedule", "held"), [("1f1b", 1), ("zbv", 2)])
def test_stages_of_earlier_shapes_are_let_go(schedule: str, held: int, pools: Pools) -> None:
    """They hold room for all that their micro-batches receive."""
    layout = case("deep", SGD, 1, 2, 1, engine="torch", schedule=schedule, micro_batch=1)
    assert pools.run(2, shape_jobs.stages_alive, case=layout, shapes=BUCKETS) == [held, held]


def test_a_micro_batch_keeps_its_tokens() -> None:
    assert [micro_batch_rows(2, 16, length) for length in (4, 8, 12, 16, 24, 32, 64)] == [8, 4, 2, 2, 1, 1, 1]


def test_what_is_let_through_is_what_engines_can_cut() -> None:
    """Every data rank's part of a global batch is cut without rest, or the batch is refused; nothing lies between."""
    taken = 0
    for data, micro_batch, rows, length in itertools.product((1, 2, 3), (1, 2, 5), range(1, 25), (8, 20, 32, 48, 128)):
        spec = EngineSpec(
            MODEL, ParallelConfig(data=data), PrecisionConfig("fp32"), torch.optim.SGD, 1.0, micro_batch, 1, 32, 1
        )
        share, rest = divmod(rows, data)
        batch = Batch(*[torch.zeros(share, length)] * 3, first_sample=0)
        try:
            check_shapes(spec.parallel, MODEL, [(rows, length)], micro_batch=micro_batch, sequence_length=32)
        except ParallelError:
            assert rest or share < 1 or share % micro_batch_rows(micro_batch, 32, length)
            continue
        size, count = spec.cut(batch)
        assert not rest and size * count == share
        assert size * length <= max(micro_batch * 32, length), "a micro-batch keeps its tokens"
        taken += 1
    assert taken > 100


MODEL = ModelConfig(vocab_size=1000, hidden_size=64, layers=12, heads=4, ffn_size=128, max_sequence=256)


@pytest.mark.parametrize(
    ("options", "shapes", "words"),
    [
        ({}, [(8, 512)], ["train.sequence_length=512", "model.max_sequence=256", "shorten"]),
        ({}, [(8, 0)], ["train.sequence_length=0", "at least 1"]),
        (
            {"data": 2},
            [(8, 128), (10, 128)],
            [
                "train.micro_batch=2",
                "10 sequences of 128",
                "micro-batches of 2",
                "data=2",
                "nearest batch is 8",
                "1024 tokens",
            ],
        ),
        ({"data": 2}, [(8, 128), (12, 64)], ["12 sequences of 64", "micro-batches of 4", "nearest batch is 16"]),
        ({}, [(0, 128)], ["batch of 0 sequences", "nearest batch is 2"]),
        ({"tensor": 4, "sequence_parallel": True}, [(8, 130)], ["sequence_length=130", "parallel.tensor=4"]),
        ({"context": 4}, [(8, 128), (16, 60)], ["sequence_length=60", "8 pieces", "parallel.context=4"]),
        (
            {"pipeline": 2, "schedule": "dualpipev"},
            [(8, 128), (4, 128)],
            ["schedule=dualpipev", "at least 4 micro-batches", "has 2", "batch of 4 sequences of 128"],
        ),
        ({"pipeline": 4, "engine": "torch"}, [(4, 128)], ["1F1B", "has 2", "gpipe", "batch of 4 sequences of 128"]),
        (
            {"compile": "block", "engine": "torch"},
            [(128 * 128, length) for length in range(8, 8 + MOST_COMPILED + 1)],
            ["parallel.compile=block", f"{MOST_COMPILED + 1} (8 to", "fewer lengths"],
        ),
    ],
)
def test_shapes_that_a_layout_cannot_take_are_refused(options: dict, shapes: list, words: list[str]) -> None:
    layout = ParallelConfig(**{"data": 1, **options})
    with pytest.raises(ParallelError) as refusal:
        check_shapes(layout, MODEL, shapes, micro_batch=2, sequence_length=128)
    for word in words:
        assert word in str(refusal.value)


def test_shapes_that_divide_are_let_through() -> None:
    layout = ParallelConfig(tensor=2, pipeline=2, data=2, context=2, sequence_parallel=True)
    check_shapes(layout, MODEL, [(8, 128), (16, 64), (4, 256), (12, 128)], micro_batch=2, sequence_length=128)
    check_shapes(
        ParallelConfig(data=1), replace(MODEL, positions="none"), [(1, 512)], micro_batch=1, sequence_length=64
    )
