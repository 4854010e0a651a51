"""Planned checkpoints against those on disk, and what a save holds up."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from launcher.bench.plan_layouts import Layout
from launcher.bench.plan_memory import work_of
from launcher.plan.checkpoints import CheckpointSize, checkpoint_size, stall_of
from models.config import ModelConfig
from models.moe.config import MoEConfig
from parallel.checkpoint.manifest import read_index, read_manifest
from parallel.checkpoint.store import Store
from parallel.config import ParallelConfig, PrecisionConfig
from tests.helpers.pool import Pools
from tests.launcher import plan_jobs

MODEL = ModelConfig(vocab_size=256, hidden_size=64, layers=4, heads=4, kv_heads=2, ffn_size=192, tied_embeddings=True)
MIXTURE = replace(MODEL, moe=MoEConfig(experts=4, expert_size=64, aux_loss=0.0, bias_rate=0.01))
LAYOUTS = [
    (MODEL, ParallelConfig(data=2, engine="torch", zero_stage=1), "bf16"),
    (MODEL, ParallelConfig(pipeline=2, data=1, engine="torch"), "bf16"),
    (MODEL, ParallelConfig(data=2, engine="deepspeed", zero_stage=0), "fp32"),
    (MODEL, ParallelConfig(data=2, engine="deepspeed", zero_stage=3), "bf16"),
    (MIXTURE, ParallelConfig(tensor=2, data=1, engine="torch"), "fp32"),
]


@pytest.mark.parametrize(("model", "parallel", "precision"), LAYOUTS)
def test_a_checkpoint_takes_what_was_planned(
    model: ModelConfig, parallel: ParallelConfig, precision: str, pools: Pools, tmp_path: Path
) -> None:
    layout = Layout(
        "llama", model, parallel, PrecisionConfig(precision), sequence_length=64, micro_batch=2, micro_batches=2
    )
    attempt = Store(tmp_path).open_attempt()
    answers = pools.run(2, plan_jobs.save, layout=layout, directory=str(tmp_path), attempt=attempt)
    found = checkpoint_size(work_of(layout), parallel)
    assert found.total == sum(answer["saved"] for answer in answers)
    assert found.widest == max(answer["saved"] for answer in answers)
    path = Store(tmp_path).path(1)
    manifest = read_manifest(path)
    data = [read_index(path, manifest, rank) for rank in range(2)]
    assert found.total == sum(index.size - index.header_size for index in data)


def test_a_stall_is_the_copy_and_what_the_save_before_still_takes() -> None:
    size = CheckpointSize(weights=40_000, moments=80_000, routing=0, widest=20_000)
    alone = stall_of(size, nodes=2, host_bandwidth=10_000, write_bandwidth=1_000)
    assert (alone.held, alone.write) == (2, 62)
    assert stall_of(size, nodes=2, asynchronous=False, host_bandwidth=10_000, write_bandwidth=1_000).held == 62
    close = stall_of(size, nodes=2, between=40, host_bandwidth=10_000, write_bandwidth=1_000)
    assert close.held == 2 + 60 - 40
