"""Layouts on paper: 512 ranks in one process, one at a time, and every parameter accounted for.

The fake process group must not meet the real ones of other tests, so each of its worlds has a process of its own.
"""

from __future__ import annotations

import time
from pathlib import Path

import pytest
import yaml

from models.config import ModelConfig, count_parameters
from models.moe.config import MoEConfig
from parallel.config import ParallelConfig
from tests.helpers.pool import in_a_process
from tests.parallel import paper_jobs

ROOT = Path(__file__).resolve().parents[2]


def on_paper(model: dict, parallel: dict, world: int, ranks: list[int], sequence: int) -> list[dict]:
    task = {"model": model, "parallel": parallel, "world": world, "ranks": ranks, "sequence": sequence}
    return in_a_process(paper_jobs.on_paper, **task)


def preset(name: str) -> dict:
    return yaml.safe_load((ROOT / "recipes" / "model" / f"{name}.yaml").read_text())


@pytest.mark.parametrize(
    ("name", "stages", "sequence"), [("mtnlg_530b", 32, 2048), ("llama3_405b", 16, 8192)], ids=["mtnlg", "llama"]
)
def test_published_giants_fit_512_ranks(name: str, stages: int, sequence: int) -> None:
    model = preset(name)
    world, per_stage = 512, 512 // stages
    ranks = [0, world // 2 + 3, world - 1]
    began = time.monotonic()
    parallel = {"tensor": 8, "pipeline": stages, "sequence_parallel": True}
    first, middle, last = on_paper(model, parallel, world, ranks, sequence)
    assert time.monotonic() - began < 60, "an hour of one rank at a time would be no use"
    count = count_parameters(ModelConfig(**{k: v for k, v in model.items() if k != "rope_scaling"}))
    for built in (first, middle, last):
        assert 0.5 < built["held"] / (count / 8 / stages) < 1.5, built
        assert built["place"]["pipeline"] == built["rank"] // per_stage
    assert first["blocks"][0][0] == 0
    assert last["blocks"][-1][1] == model["layers"] + 4


@pytest.mark.parametrize("schedule", ["1f1b", "zbv"])
@pytest.mark.parametrize("tied", [True, False])
def test_all_ranks_together_own_every_parameter_once(tied: bool, schedule: str) -> None:
    model = {
        "vocab_size": 96,
        "hidden_size": 48,
        "layers": 6,
        "heads": 4,
        "kv_heads": 2,
        "tied_embeddings": tied,
        "positions": "learned",
        "max_sequence": 32,
        "norm": "layernorm",
        "activation": "gelu",
        "bias": True,
    }
    parallel = ParallelConfig(tensor=2, pipeline=3, data=2)
    ranks = [p * 4 + t for p in range(3) for t in range(2)]  # data rank 0 of every stage and tensor rank
    built = on_paper(model, {"tensor": 2, "pipeline": 3, "data": 2, "schedule": schedule}, 12, ranks, 32)
    assert sum(rank["owned"] for rank in built) == count_parameters(ModelConfig(**model))
    assert [rank["place"]["tensor"] for rank in built] == [0, 1] * parallel.pipeline


@pytest.mark.parametrize("method", ["ring", "ulysses"])
def test_a_context_axis_adds_ranks_and_no_parameters(method: str) -> None:
    model = {"vocab_size": 96, "hidden_size": 48, "layers": 2, "heads": 4, "kv_heads": 2}
    cut = {"tensor": 2, "context": 2, "context_method": method, "data": 2}
    built = on_paper(model, cut, 8, list(range(8)), 32)
    (plain, *_) = on_paper(model, {"tensor": 2, "data": 4}, 8, [0], 32)
    assert [rank["held"] for rank in built] == [plain["held"]] * 8
    places = [rank["place"] for rank in built]
    assert [place["context"] for place in places] == [0, 0, 1, 1] * 2
    assert [place["replica"] for place in places] == [0, 0, 1, 1, 2, 2, 3, 3]


def test_experts_are_shared_out_over_tensor_and_expert_axes() -> None:
    model = {
        "vocab_size": 96,
        "hidden_size": 48,
        "layers": 3,
        "heads": 4,
        "kv_heads": 2,
        "bias": True,
        "norm": "layernorm",
    }
    model |= {"moe": {"experts": 8, "expert_size": 32, "shared_experts": 1, "first_dense": 1}}
    built = on_paper(model, {"tensor": 2, "context": 2, "data": 2, "expert": 4}, 8, list(range(8)), 32)
    count = count_parameters(ModelConfig(**{**model, "moe": MoEConfig(**model["moe"])}))
    dense = [rank["owned"] - rank["experts"] for rank in built[:2]]
    (alone,) = on_paper(model, {}, 1, [0], 32)
    assert alone["held"] == count
    weights = 2 * 8 * 3 * 48 * 32
    biases = 2 * 8 * (2 * 32 + 48)  # of the outputs whole on each rank of the tensor axis
    assert alone["experts"] == weights + biases
    assert all(rank["experts"] == weights // 8 + 2 * 2 * (32 + 48) for rank in built)
    assert dense[0] + dense[1] + alone["experts"] == count - 2 * 2 * 48  # tensor rank 1 does not own its output biases
    assert [rank["place"]["expert"] for rank in built] == [0, 0, 1, 1, 2, 2, 3, 3]
