"""The plan's arithmetic against ranks that are built on paper: every parameter of many layouts, by name and shape.

A fake process group must not meet the real ones of other tests, so the ranks are built by an interpreter of their own.
"""

from __future__ import annotations

import json
import random
import subprocess
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from launcher.bench.plan_layouts import DIALECTS
from launcher.plan.parameters import stages_on
from models.config import ModelConfig, count_parameters
from models.errors import ModelError
from models.moe.config import MoEConfig
from parallel.check import check_model
from parallel.config import ParallelConfig, ParallelError

ROOT = Path(__file__).resolve().parents[2]
LENGTH = 64

SCRIPT = """
import json, sys
from launcher.schema import build
from models.config import ModelConfig
from parallel.config import ParallelConfig
from parallel.paper import build_rank
for line in sys.stdin:
    task = json.loads(line)
    model, parallel = build(ModelConfig, task["model"]), ParallelConfig(**task["parallel"])
    built = build_rank(model, parallel, task["world"], task["rank"], task["length"])
    shapes = [[name, list(shape), name in built.cut, name in built.of_experts] for name, shape in built.shapes.items()]
    print(json.dumps(shapes))
"""


def drawn(draw: random.Random) -> tuple[ModelConfig, ParallelConfig]:
    options: dict[str, Any] = {
        "hidden_size": draw.choice((32, 48)),
        "heads": draw.choice((4, 8)),
        "layers": draw.choice((3, 4, 7)),
        "ffn_size": draw.choice((40, 64)),
        "vocab_size": draw.choice((100, 129)),
        "vocab_multiple": 8,
        "max_sequence": LENGTH,
        "tied_embeddings": draw.random() < 0.5,
        "norm_position": draw.choice(("pre", "post")),
        "qkv_bias": False,
        **draw.choice(tuple(DIALECTS.values())),
    }
    kind = draw.choice(("plain", "plain", "encoder", "experts", "powers"))
    options |= {"qk_norm": False, "qk_norm_whole": True} if draw.random() < 0.3 else {}
    if kind == "encoder":
        options |= {"encoder_layers": 3, "encoder_length": 16}
    if kind == "experts":
        moe = MoEConfig(experts=8, expert_size=16, first_dense=draw.choice((0, 1)), every=draw.choice((1, 2)))
        options["moe"] = replace(moe, shared_experts=draw.choice((0, 2)))
        if options["moe"].shared_experts:
            options["moe"] = replace(options["moe"], shared_gate=draw.random() < 0.5)
    if kind == "powers":
        options |= {"activation": "polynorm"}
    layout: dict[str, Any] = {
        "tensor": draw.choice((1, 2, 4)),
        "pipeline": draw.choice((1, 2, 3)),
        "data": draw.choice((1, 2, 4)),
    }
    if layout["pipeline"] > 1:
        layout["schedule"] = draw.choice(("1f1b", "zbv", "interleaved_1f1b"))
        layout["virtual_stages"] = 2 if layout["schedule"] == "interleaved_1f1b" else 1
    layout["expert"] = draw.choice((1, 2)) if kind == "experts" and layout["data"] > 1 else 1
    return ModelConfig(**options), ParallelConfig(**layout)


def layouts(count: int) -> list[tuple[ModelConfig, ParallelConfig, int]]:
    draw, found = random.Random(6), []
    while len(found) < count:
        try:
            model, parallel = drawn(draw)
            check_model(parallel, model, LENGTH)
        except (ModelError, ParallelError):
            continue
        found.append((model, parallel, draw.randrange(parallel.model_parallel * parallel.data)))
    return found


def on_paper(tasks: list[tuple[ModelConfig, ParallelConfig, int]]) -> list[Any]:
    lines = [
        {
            "model": asdict(model),
            "parallel": asdict(parallel),
            "world": parallel.model_parallel * parallel.data,
            "rank": rank,
            "length": LENGTH,
        }
        for model, parallel, rank in tasks
    ]
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT],
        cwd=ROOT,
        input="\n".join(map(json.dumps, lines)),
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return [json.loads(line) for line in done.stdout.splitlines()]


def by_arithmetic(model: ModelConfig, parallel: ParallelConfig, rank: int) -> list[Any]:
    """As `PaperRank` tells it: shapes of all parameters, without the names of blocks, sorted."""
    found = []
    for stage in stages_on(model, parallel, parallel.places(rank)["pipeline"], LENGTH):
        for block in stage.parameters(model, parallel.tensor, parallel.expert):
            found += [[one.name, list(one.shape), one.cut, one.expert] for one in block]
    return sorted(found)


def without_blocks(shapes: list[Any]) -> list[Any]:
    """Names within their blocks: `layers.3.feed_forward.up.weight` is `feed_forward.up.weight`."""
    found = []
    for name, shape, cut, expert in shapes:
        parts = name.removesuffix(" (copy)").split(".")
        skip = 2 if parts[0] in ("layers", "encoder") else 1
        found.append([".".join(parts[skip:]), shape, cut, expert])
    return sorted(found)


def test_arithmetic_holds_what_ranks_on_paper_hold() -> None:
    tasks = layouts(40)
    for (model, parallel, rank), shapes in zip(tasks, on_paper(tasks), strict=True):
        assert by_arithmetic(model, parallel, rank) == without_blocks(shapes), (model, parallel, rank)


def test_all_ranks_together_hold_the_model() -> None:
    for model, parallel, _ in layouts(40):
        total = 0
        for rank in range(parallel.pipeline):
            for stage in stages_on(model, parallel, rank, LENGTH):
                blocks = stage.parameters(model, parallel.tensor, parallel.expert)
                for one in (one for block in (blocks[:-1] if stage.copy else blocks) for one in block):
                    total += one.count * (parallel.tensor if one.cut else 1) * (parallel.expert if one.expert else 1)
        assert total == count_parameters(model), (model, parallel)


@pytest.mark.parametrize("stages", [1, 4])
def test_a_stage_is_looked_up_not_searched_again(stages: int) -> None:
    model = ModelConfig(vocab_size=1000, layers=80, hidden_size=1024, heads=16)
    parallel = ParallelConfig(pipeline=stages, data=1)
    stages_on(model, parallel, 0, 2048)
    began = time.process_time()
    for _ in range(200):
        stages_on(model, parallel, 0, 2048)
    again = time.process_time() - began
    began = time.process_time()
    for count in range(200):
        stages_on(replace(model, layers=81 + count), parallel, 0, 2048)
    assert again < time.process_time() - began
