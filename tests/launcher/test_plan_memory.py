"""The plan's bytes against those that real ranks allocate, and the arithmetic between parts."""

from __future__ import annotations

import json
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from launcher.bench.plan import main
from launcher.bench.plan_layouts import MXFP8, Layout, sample
from launcher.bench.plan_memory import WITHIN, Found, batch_for, compare, spec_for, summary, work_of
from launcher.config import OptimizerConfig, RecipeError
from launcher.plan.flight import moments
from launcher.plan.memory import Work, fullest, memory_of
from models.config import ModelConfig, count_parameters
from models.loss import LossConfig
from models.moe.config import MoEConfig
from parallel.config import ParallelConfig, PrecisionConfig
from parallel.engines.torch import TorchEngine
from parallel.mesh import Mesh
from parallel.schedule import chunks_in_flight
from tests.helpers.pool import Pools
from tests.launcher import plan_jobs

SMALL = ModelConfig(vocab_size=256, hidden_size=64, layers=4, heads=4, kv_heads=2, ffn_size=192, tied_embeddings=True)
LARGE = ModelConfig(
    vocab_size=128_256, hidden_size=8192, layers=80, heads=64, kv_heads=8, ffn_size=28_672, max_sequence=8192
)


def layout(parallel: ParallelConfig, precision: str = "bf16", model: ModelConfig = SMALL, **options: object) -> Layout:
    chosen: dict = {"sequence_length": 64, "micro_batch": 2, "micro_batches": 2, **options}
    return Layout("llama", model, parallel, PrecisionConfig(precision), **chosen)


def work(model: ModelConfig = LARGE, **options: object) -> Work:
    chosen: dict = {
        "batch_sequences": 1024,
        "precision": "bf16",
        "products": PrecisionConfig("bf16").products,
        "gpu": True,
    } | options
    return Work(model, 8192, **chosen, optimizer=OptimizerConfig(), loss=LossConfig(), reweighted=False, kernels=True)


def counted(pools: Pools, layouts: list[Layout]) -> list[Found]:
    """Of every layout and rank of its pipeline axis, each world's layouts in one job."""
    found: list[Found] = []
    for size in sorted({one.world for one in layouts}):
        group = [one for one in layouts if one.world == size]
        by_rank = pools.run(size, plan_jobs.count_layouts, layouts=group, timeout=500)
        for index, one in enumerate(group):
            found += compare(one, [answers[index] for answers in by_rank])
    return found


def assert_planned(found: list[Found]) -> None:
    for one in found:
        state = {
            part: (getattr(one.planned, part), getattr(one.counted, part))
            for part in ("weights", "gradients", "optimizer")
        }
        assert one.exact, (str(one.layout), one.rank, state)
        assert abs(one.error) <= WITHIN, (str(one.layout), one.rank, one.kept, one.counted.activations)


# One of each way to keep state, of each schedule, and of each way to cut an activation.
FEW = [
    layout(ParallelConfig(data=2, engine="torch", zero_stage=3, recompute="block")),
    layout(ParallelConfig(data=2, engine="deepspeed", zero_stage=1)),
    layout(ParallelConfig(data=2, engine="deepspeed", zero_stage=1), "fp32", micro_batches=1),
    layout(ParallelConfig(data=2, engine="deepspeed", zero_stage=2), "fp32"),
    layout(
        ParallelConfig(data=2, expert=2, engine="deepspeed", zero_stage=2, recompute="block"),
        "fp32",
        model=replace(SMALL, moe=MoEConfig(experts=4, expert_size=64, top_k=2)),
        micro_batches=1,
    ),
    layout(ParallelConfig(tensor=2, data=1, engine="torch", sequence_parallel=True, zero_stage=0), "fp32"),
    layout(
        ParallelConfig(pipeline=2, data=1, engine="torch", schedule="interleaved_1f1b", virtual_stages=2),
        micro_batches=4,
    ),
    layout(ParallelConfig(pipeline=2, data=1, engine="torch", schedule="zbv"), micro_batches=4),
    layout(ParallelConfig(pipeline=2, data=1, engine="deepspeed", recompute="selective")),
    layout(ParallelConfig(context=2, data=1, engine="torch", zero_stage=2), loss=LossConfig(fused=True)),
]


def test_ranks_allocate_what_was_planned(pools: Pools) -> None:
    assert_planned(counted(pools, FEW))


@pytest.mark.slow
def test_thirty_layouts_by_chance_do_too(pools: Pools) -> None:
    assert_planned(counted(pools, sample(30, seed=1)))


def test_the_sample_is_one_of_every_kind() -> None:
    drawn = sample(30, seed=1)
    assert drawn == sample(30, seed=1)
    assert {one.dialect for one in drawn} == {"llama", "gpt", "mixture", "encoder_decoder"}
    assert {one.parallel.engine for one in drawn} == {"torch", "deepspeed"}
    assert {one.parallel.recompute for one in drawn} == {"none", "selective", "block"}
    assert {one.parallel.zero_stage for one in drawn} == {0, 1, 2, 3}
    assert any(one.precision.products == MXFP8 for one in drawn)
    for axis in ("tensor", "pipeline", "data", "context", "expert"):
        assert any(getattr(one.parallel, axis) > 1 for one in drawn), axis


@pytest.mark.parametrize("schedule", ["1f1b", "gpipe", "interleaved_1f1b", "zbv", "dualpipev"])
@pytest.mark.parametrize("micro_batches", [8, 16])
def test_moments_hold_no_more_than_the_schedule_allows(schedule: str, micro_batches: int) -> None:
    virtual = 2 if schedule == "interleaved_1f1b" else 1
    config = ParallelConfig(pipeline=4, data=1, schedule=schedule, virtual_stages=virtual)
    for rank in range(4):
        most = max(sum(one.held) for one in moments(config, rank, micro_batches))
        assert most == chunks_in_flight(config, rank, micro_batches), rank


def test_what_was_sent_grows_with_micro_batches_alone() -> None:
    config = ParallelConfig(pipeline=4, data=1, schedule="interleaved_1f1b", virtual_stages=2)
    short, long = (max(one.sent for one in moments(config, 1, count)) for count in (16, 64))
    assert (
        long - short == 4 * 48
    )  # two stages that send an activation onward and a gradient back, 48 micro-batches more


def test_parts_make_the_total_and_allowances_stay_apart() -> None:
    parallel = ParallelConfig(tensor=8, pipeline=4, data=4, sequence_parallel=True, engine="torch")
    found = memory_of(work(), parallel, 1, 0)
    parts = found.parts()
    assert sum(parts.values()) == found.total == found.counted + parts["framework"] + parts["fragments"]
    assert "host" not in parts
    on_cpu = memory_of(work(gpu=False), parallel, 1, 0)
    assert on_cpu.framework == on_cpu.fragments == 0


def test_the_fullest_rank_is_the_largest_of_all() -> None:
    for parallel in (
        ParallelConfig(tensor=8, pipeline=8, data=2, engine="torch"),
        ParallelConfig(tensor=4, pipeline=4, data=2, engine="torch", schedule="zbv", zero_stage=2),
        ParallelConfig(tensor=8, pipeline=16, data=2, engine="torch", recompute="block"),
    ):
        totals = [memory_of(work(), parallel, 1, rank).total for rank in range(parallel.pipeline)]
        rank, most = fullest(work(), parallel, 1)
        assert most.total == max(totals) == totals[rank]


def test_state_of_all_ranks_is_the_model_s() -> None:
    """Sixteen bytes a parameter in bf16 with float32 masters, moments and gradients, however they are cut."""
    parallel = ParallelConfig(tensor=8, pipeline=1, data=64, zero_stage=3, engine="torch")
    found = memory_of(work(), parallel, 1)
    held = 8 * 64 * (found.weights + found.gradients + found.optimizer)
    assert held == pytest.approx(16 * count_parameters(LARGE), rel=1e-3)


def test_recomputation_and_formats_save_what_they_are_for() -> None:
    def kept(recompute: str = "none", **options: object) -> int:
        parallel = ParallelConfig(
            tensor=8, pipeline=1, data=8, sequence_parallel=True, recompute=recompute, engine="torch"
        )
        return memory_of(work(**options), parallel, 1).activations

    assert kept("block") < 0.1 * kept("none") and kept("selective") < kept("none")
    assert kept(products=MXFP8) < 0.75 * kept()


def test_ten_thousand_layouts_take_seconds() -> None:
    """Processor time of a call with nothing cached for the layout, relative to a loop of plain additions: no absolute time."""
    layouts = [ParallelConfig(tensor=8, pipeline=8, data=data, engine="torch", zero_stage=1) for data in range(1, 401)]
    memory_of(work(), layouts[0], 1)
    began = time.process_time()
    for parallel in layouts:
        memory_of(work(), parallel, 1)
    calls = time.process_time() - began
    began = time.process_time()
    for _ in layouts:
        sum(range(20_000))
    assert calls < 4 * (time.process_time() - began)


def test_the_bench_sums_up_and_refuses(pools: Pools) -> None:
    (found,) = counted(pools, [layout(ParallelConfig(data=1, engine="torch"), "fp32")])
    off = replace(found, counted=replace(found.counted, weights=found.counted.weights + 1, activations=found.kept * 2))
    told = summary([found, off])
    assert (told["ranks"], told["exact"], told["met"]) == (2, 1, False)
    assert told["worst_error"] == 0.5
    assert summary([found])["met"]
    for arguments, words in (
        (["--layouts", "0"], "--layouts=0: must be at least 1"),
        (["--only", "time", "--seed", "3"], "--seed: has no effect with --only=time"),
    ):
        with pytest.raises(RecipeError, match=words):
            main(arguments)


def test_the_bench_tells_each_of_its_tables(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Memory of a draw whose first layout is of one process."""
    told = tmp_path / "figures.json"
    for part, words in (("time", "mean error"), ("search", "layouts judged"), ("memory", "1 layouts, 1 of 1 ranks")):
        flags = {"search": ["--judged", "2000"], "memory": ["--layouts", "1", "--seed", "9"]}.get(part, [])
        assert main(["--only", part, *flags, "--json", str(told)]) == 0
        assert words in capsys.readouterr().out
        assert set(json.loads(told.read_text())) == {"date", "environment", part}


@pytest.mark.gpu
@pytest.mark.parametrize("recompute", ["none", "selective", "block"])
def test_a_gpu_allocates_what_was_planned(recompute: str) -> None:
    """The counterpart on CPU counts storages; here the allocator does, at the most of a step."""
    if not torch.cuda.is_available():
        pytest.skip("needs a GPU")
    model = replace(SMALL, hidden_size=1024, heads=16, kv_heads=4, ffn_size=2816, vocab_size=32_000)
    parallel = ParallelConfig(data=1, engine="torch", recompute=recompute)
    one = Layout(
        "llama", model, parallel, PrecisionConfig("bf16"), sequence_length=1024, micro_batch=4, micro_batches=2
    )
    mesh = Mesh(parallel, torch.device("cuda"))
    engine = TorchEngine(spec_for(one, mesh), mesh)
    batch = batch_for(one, mesh)
    engine.step(batch, 1e-4)
    torch.cuda.reset_peak_memory_stats()
    engine.step(batch, 1e-4)
    found = memory_of(replace(work_of(one), gpu=True, kernels=True), parallel, one.micro_batch)
    assert found.counted == pytest.approx(torch.cuda.max_memory_allocated(), rel=0.1)
    mesh.close()


def test_a_gpu_fills_one_bucket_of_gradients_while_another_is_reduced() -> None:
    parallel = ParallelConfig("deepspeed", data=8, zero_stage=2)
    one, two = (memory_of(work(gpu=gpu), parallel, 1).buffers for gpu in (False, True))
    assert two - one == 4 * 200_000_000, "the largest bucket, in float32"
