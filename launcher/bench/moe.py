"""`triaxis bench moe`: what a mixture costs beside the dense model of the same work, and where its time goes.

    triaxis bench moe [experiment=moe_tiny …overrides] [--rounds N] [--steps N] [--json FILE]

Three comparisons, each in turns within one run: grouped products against the loop over experts, for the recipe's experts and
for as many parameters in four times as many; a step of the mixture against one of the dense model whose feed-forward layer
is as wide as a token's experts together; and, on two processes that share the experts, what share of a step tokens travel.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
import torch.distributed as dist
from rich.console import Console

from launcher.bench.show import write_figures
from launcher.bench.stepper import VOCABULARY, stepper
from launcher.compose import build_recipe, compose_tree
from launcher.config import Recipe, RecipeError
from launcher.machine import environment
from launcher.terminal import new_table, open_console
from launcher.workers import free_port
from models.config import ModelConfig, count_active_parameters, count_parameters
from models.layers import PlainLayers
from models.moe.config import MoEConfig
from models.moe.experts import Experts
from parallel.config import ParallelConfig
from parallel.mesh import Mesh

WARM_UP = 2
TRAVELLERS = 2  # processes that share the experts


def run(recipe: Recipe, *, rounds: int, steps: int) -> dict[str, Any]:
    """All figures. rounds: turns of each contender; steps: counted ones of each turn."""
    model = recipe.model
    if not model.moe.experts:
        raise RecipeError(
            "model.moe.experts=0: there is no mixture to measure; name a recipe with experts, as moe_tiny"
        )
    if rounds < 2 or steps < 1:
        raise RecipeError(f"--rounds={rounds} --steps={steps}: a comparison needs at least 2 rounds of 1 step")
    model = replace(model, vocab_size=model.vocab_size or VOCABULARY)
    recipe = replace(recipe, model=model)
    torch.manual_seed(0)
    return {
        "date": time.strftime("%Y-%m-%d"),
        "environment": environment(),
        "load_before": os.getloadavg()[0],
        "model": model.name,
        "parameters": count_parameters(model),
        "active_parameters": count_active_parameters(model),
        "threads": torch.get_num_threads(),
        "rounds": rounds,
        "steps": steps,
        "products": [
            {"experts": shape.moe.experts, "width": shape.expert_width, **_products(shape, recipe, rounds, steps)}
            for shape in (model, _finer(model, 4))
        ],
        "dense": _against_dense(recipe, rounds, steps),
        "travel": _travel(recipe, rounds * steps),
    }


def dense_of(model: ModelConfig) -> ModelConfig:
    """The dense model that does the same products for a token."""
    moe = model.moe
    width = model.expert_width * (moe.top_k + moe.shared_experts)
    return replace(model, name=f"{model.name} dense", ffn_size=width, moe=MoEConfig())


def _finer(model: ModelConfig, parts: int) -> ModelConfig:
    """As many parameters in `parts` times as many experts, of which a token uses as many more."""
    moe, width = model.moe, max(8, model.expert_width // parts // 8 * 8)
    shared = moe.shared_experts * parts
    finer = replace(moe, experts=moe.experts * parts, top_k=moe.top_k * parts, expert_size=width, shared_experts=shared)
    return replace(model, moe=finer)


def turns(contenders: dict[str, Callable[[], None]], rounds: int, steps: int) -> dict[str, Any]:
    """Median seconds of each contender, and how many times as fast as the last the first is, round by round."""
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    names = list(contenders)
    for number in range(rounds):
        for name in names[number % len(names) :] + names[: number % len(names)]:
            taken = []
            for _ in range(1 + steps):
                began = time.perf_counter()
                contenders[name]()
                taken.append(time.perf_counter() - began)
            seconds[name].append(statistics.median(taken[1:]))
    ratios = [b / a for a, b in zip(seconds[names[0]], seconds[names[-1]], strict=True)]
    low, middle, high = statistics.quantiles(ratios, n=4, method="inclusive")
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    return {"seconds": medians, "ratio": middle, "low": low, "high": high}


def _products(model: ModelConfig, recipe: Recipe, rounds: int, steps: int) -> dict[str, Any]:
    """Forward and backward of a layer's experts for one micro-batch, evenly spread."""
    tokens = recipe.train.micro_batch * recipe.train.sequence_length * model.moe.top_k
    counts = torch.full((model.moe.experts,), tokens // model.moe.experts, dtype=torch.int64)
    x = torch.randn(int(counts.sum()), model.hidden_size, requires_grad=True)
    outward = torch.randn_like(x)

    def contender(kind: str) -> Callable[[], None]:
        experts = Experts(replace(model, moe=replace(model.moe, product=kind)), PlainLayers())
        for parameter in experts.parameters():
            torch.nn.init.normal_(parameter, std=0.02)

        def step() -> None:
            experts(x, counts).backward(outward)

        return step

    return turns({kind: contender(kind) for kind in ("grouped", "loop")}, rounds, steps)


def _against_dense(recipe: Recipe, rounds: int, steps: int) -> dict[str, Any]:
    os.environ.update(RANK="0", WORLD_SIZE="1", MASTER_ADDR="127.0.0.1", MASTER_PORT=str(free_port()))
    config = ParallelConfig("torch", data=1)
    mesh = Mesh(config, torch.device("cpu"))
    try:
        contenders = {
            "mixture": stepper(recipe, recipe.model, config, mesh),
            "dense": stepper(recipe, dense_of(recipe.model), config, mesh),
        }
        return turns(contenders, rounds, steps)
    finally:
        mesh.close()
        dist.destroy_process_group()


def _travel(recipe: Recipe, steps: int) -> dict[str, float]:
    """Shares of a step on two processes that share the experts: sending and receiving, waiting for the slower included."""
    port = free_port()
    context = torch.multiprocessing.get_context("spawn")
    queue = context.SimpleQueue()
    arguments = (recipe, steps, port, queue)
    torch.multiprocessing.start_processes(_traveller, args=arguments, nprocs=TRAVELLERS, start_method="spawn")
    found = [queue.get() for _ in range(TRAVELLERS)]
    return {name: statistics.mean(one[name] for one in found) for name in found[0]}


def _traveller(rank: int, recipe: Recipe, steps: int, port: int, queue: Any) -> None:
    torch.set_num_threads(max(1, (os.cpu_count() or 1) // TRAVELLERS))
    os.environ.update(RANK=str(rank), WORLD_SIZE=str(TRAVELLERS), MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    config = ParallelConfig("torch", data=TRAVELLERS, expert=TRAVELLERS)
    mesh = Mesh(config, torch.device("cpu"))
    step = stepper(recipe, recipe.model, config, mesh)
    spent = 0.0
    plain = dist.all_to_all_single

    def timed(*args: Any, **options: Any) -> Any:
        nonlocal spent
        began = time.perf_counter()
        work = plain(*args, **options)
        spent += time.perf_counter() - began
        return _Timed(work, add) if work is not None else None

    def add(seconds: float) -> None:
        nonlocal spent
        spent += seconds

    for _ in range(WARM_UP):
        step()
    dist.all_to_all_single = timed
    taken, travelled = [], []
    for _ in range(steps):
        spent, began = 0.0, time.perf_counter()
        step()
        taken.append(time.perf_counter() - began)
        travelled.append(spent)
    dist.all_to_all_single = plain
    total = statistics.median(taken)
    share = statistics.median(a / b for a, b in zip(travelled, taken, strict=True))
    queue.put({"step_seconds": total, "share": share})
    mesh.barrier()
    dist.destroy_process_group()


class _Timed:
    """Work under way whose wait is counted."""

    def __init__(self, work: Any, add: Callable[[float], None]) -> None:
        self._work, self._add = work, add

    def wait(self) -> None:
        began = time.perf_counter()
        self._work.wait()
        self._add(time.perf_counter() - began)


def show(figures: dict[str, Any], console: Console | None = None) -> None:
    """The figures as a table."""
    console = console or open_console()
    machine = figures["environment"]["machine"]
    console.print(figures["model"], style="bold", end=", ")
    console.print(
        f"{figures['parameters']:,} parameters, {figures['active_parameters']:,} used by a token, "
        f"float32, {figures['threads']} threads; {machine['cpu']}, {machine['cores']} cores, load {figures['load_before']:.1f} "
        f"before; {figures['rounds']} rounds of {figures['steps']} steps"
    )
    found = new_table("Medians; ratios of turns that were neighbours", "", "ms", "beside", "ms", "times as fast")
    rows = [(f"{one['experts']} experts of {one['width']}: grouped", "loop", one) for one in figures["products"]]
    rows.append(("step of the mixture", "step of the dense model of the same work", figures["dense"]))
    for ours, theirs, one in rows:
        first, last = list(one["seconds"].values())
        told = f"{one['ratio']:.2f}× ({one['low']:.2f}–{one['high']:.2f})"
        found.add_row(ours, f"{1000 * first:.1f}", theirs, f"{1000 * last:.1f}", told)
    console.print(found)
    travel = figures["travel"]
    console.print(
        f"{TRAVELLERS} processes that share the experts: tokens travel for {travel['share']:.0%} of a step of "
        f"{1000 * travel['step_seconds']:.0f} ms, waiting for the slower rank included"
    )


def main(arguments: list[str]) -> int:
    """The command; everything that is not one of its flags is an override of the recipe."""
    parser = argparse.ArgumentParser(
        prog="triaxis bench moe", description="What a mixture of experts costs, in one run."
    )
    parser.add_argument("--rounds", type=int, default=9, help="turns of each contender (default 9)")
    parser.add_argument("--steps", type=int, default=3, help="counted steps of each turn (default 3)")
    parser.add_argument("--json", metavar="FILE", help="write all figures there; - prints them")
    flags, overrides = parser.parse_known_args(arguments)
    if not any(text.startswith("experiment=") for text in overrides):
        overrides.insert(0, "experiment=moe_tiny")
    figures = run(build_recipe(compose_tree(overrides)), rounds=flags.rounds, steps=flags.steps)
    show(figures)
    write_figures(figures, flags.json)
    return 0
